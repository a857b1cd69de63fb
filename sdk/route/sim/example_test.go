package sim_test

import (
	"fmt"
	"time"

	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/route/sim"
)

// Of three servers one is cheap and fails half of the time. Two policies serve the same requests of ten minutes.
func Example() {
	server := sim.Server{Slots: 32, Prefill: 10_000, Decode: 80, Slows: 1, Load: sim.Load{Mean: .3}}
	cheap, usual, fast := server, server, server
	cheap.ID, cheap.Price.PerSlotSecond, cheap.Fails = "cheap", route.Base(8), .5
	usual.ID, usual.Price.PerSlotSecond = "usual", route.Base(20)
	fast.ID, fast.Price.PerSlotSecond, fast.Decode = "fast", route.Base(30), 160
	world := sim.NewWorld(1, []sim.Server{cheap, usual, fast})
	arrivals := sim.Process{Seed: 1, Rate: 2, Burst: 3}.Arrivals(10 * time.Minute)

	ours, rival := sim.Run(world, arrivals, sim.Ours), sim.Run(world, arrivals, sim.PeakEWMA)
	fmt.Println("ours costs less:", ours.J < rival.J)
	fmt.Println("most of it where it is fast:", ours.Sent[2] > ours.Requests/2)
	// Output:
	// ours costs less: true
	// most of it where it is fast: true
}
