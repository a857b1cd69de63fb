package sim_test

import (
	"context"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
)

// A simulated GPU is idle for two seconds and falls off the bus for three, on a clock that the test moves. What a meter makes of
// that is known to the nanosecond.
func Example() {
	ctx, clock := context.Background(), sim.NewClock()
	gpu := sim.New(1, sim.Options{Clock: clock, Script: []sim.Fault{
		{Kind: sim.Idle, At: 2 * time.Second, For: 2 * time.Second},
		{Kind: sim.Lost, At: 6 * time.Second, For: 3 * time.Second},
	}})
	defer gpu.Close()
	meter, err := usage.NewMeter(usage.Config{Devices: []string{sim.UUID(0)}})
	if err != nil {
		panic(err)
	}
	for range 13 {
		reading, err := gpu.Read(ctx, sim.UUID(0))
		if err != nil {
			panic(err)
		}
		if _, err := meter.Observe(reading); err != nil {
			panic(err)
		}
		clock.Advance(time.Second)
	}
	total := meter.Totals()
	fmt.Println("billed:", time.Duration(total.Allocated))
	fmt.Println("in use:", time.Duration(total.Active))
	fmt.Println("down, not billed:", time.Duration(total.Down))
	// Output:
	// billed: 8s
	// in use: 6s
	// down, not billed: 4s
}
