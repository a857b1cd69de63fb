// Command routesim prints how policies that choose endpoints compare, on worlds drawn from seeds, or on a public trace.
//
//	go run ./internal/routesim                              the table of docs/routing.md
//	go run ./internal/routesim -trace AzureLLMInferenceTrace_conv.csv -speed 4
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/gpupay/gpupay/sdk/route/sim"
)

func main() {
	first := flag.Uint64("first", 1, "seed of the first world")
	worlds := flag.Int("worlds", 20, "how many worlds, of consecutive seeds")
	span := flag.Duration("span", 30*time.Minute, "how long requests come; of a trace, how much of it is taken")
	trace := flag.String("trace", "", "file of a public trace (Azure, BurstGPT, Mooncake) whose requests come instead of random ones")
	speed := flag.Float64("speed", 1, "how many times faster than it was a trace is played")
	flag.Parse()
	if err := run(*first, *worlds, *span, *trace, *speed); err != nil {
		fmt.Fprintln(os.Stderr, "routesim:", err)
		os.Exit(1)
	}
}

func run(first uint64, n int, span time.Duration, trace string, speed float64) error {
	if n < 1 || span <= 0 || !(speed > 0) {
		return fmt.Errorf("%d worlds of %s at %g times the speed: all of these are over 0", n, span, speed)
	}
	worlds, arrivals := sim.DrawAll(first, n, span)
	if trace != "" {
		list, err := sim.ReadTrace(trace)
		if err != nil {
			return err
		}
		list = sim.Played(list, speed, span)
		for i := range arrivals {
			arrivals[i] = list
		}
	}
	requests := 0
	for _, list := range arrivals {
		requests += len(list)
	}
	fmt.Printf("%d worlds from seed %d, %d requests in all; each figure over the oracle's in the same world, but for failed %%\n\n", n, first, requests)
	return sim.Write(os.Stdout, sim.Compare(worlds, arrivals, append(sim.Rivals(), sim.Ours)))
}
