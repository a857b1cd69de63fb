package sampling_test

import (
	"context"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
)

// quiet is for who asks the meter itself.
type quiet struct{}

func (quiet) Sampled(metering.Reading, usage.Interval) {}
func (quiet) SamplingEnded(error)                      {}

// One request is metered from its first byte to its last one, between two ticks.
func Example() {
	clock := sim.NewClock()
	all := sampling.New(sim.New(1, sim.Options{Clock: clock}), clock)
	defer all.Close()
	meter, err := usage.NewMeter(usage.Config{Devices: []string{sim.UUID(0)}})
	if err != nil {
		panic(err)
	}
	request, err := all.AddRead(context.Background(), meter, time.Second, quiet{})
	if err != nil {
		panic(err)
	}
	clock.Advance(350 * time.Millisecond)
	request.Finish(clock.Now())
	fmt.Println(time.Duration(meter.Allocated()))
	// Output: 350ms
}
