package trace_test

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/trace"
	"github.com/gpupay/gpupay/metering/usage"
)

// What a source read is written down, and metered again elsewhere: the same readings are billed the same.
func Example() {
	ctx, clock := context.Background(), sim.NewClock()
	gpu := sim.New(1, sim.Options{Clock: clock, Script: []sim.Fault{{Kind: sim.Lost, At: 4 * time.Second, For: 3 * time.Second}}})
	defer gpu.Close()
	var file bytes.Buffer
	recorder, err := trace.Record(ctx, gpu, &file, "an example", nil)
	must(err)
	for range 11 {
		_, err := recorder.Read(ctx, sim.UUID(0))
		must(err)
		clock.Advance(time.Second)
	}
	must(recorder.Err())

	recorded, err := trace.Parse(&file)
	must(err)
	meter, err := usage.NewMeter(usage.Config{Devices: []string{recorded.Devices[0].UUID}}) // a salted hash
	must(err)
	must(recorded.Replay(meter))
	fmt.Println(len(recorded.Readings), "readings, simulated:", recorded.Simulated)
	fmt.Println("billed:", time.Duration(meter.Totals().Allocated))
	// Output:
	// 11 readings, simulated: true
	// billed: 6s
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
