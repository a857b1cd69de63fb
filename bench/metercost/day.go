//go:build linux && cgo

package metercost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/gpupay/gpupay/bench"
)

const (
	hours = 24
	hour  = 3600 // ticks
	slice = 60   // ticks that are timed together
)

// hourly is what was seen of one hour of the day.
type hourly struct {
	ticks    bench.Spread // microseconds of a processor, a tick with its share of a record
	heap     uint64       // bytes, at its end, after a collection
	resident uint64       // bytes of the process, at its end
	evidence int          // bytes of the newest record's, canonical
}

// day lets 24 hours pass, with a record every five seconds.
func (l *lease) day(ctx context.Context, set bench.Settings) ([]hourly, error) {
	debug.FreeOSMemory() // what others left behind
	var all []hourly
	for h := range hours {
		set.Log("meter: hour %d of %d", h+1, hours)
		var costs []float64
		for range hour / slice {
			begun := bench.ProcessorTime()
			for i := range slice {
				if err := errors.Join(l.pass(), l.recordAt(ctx, i)); err != nil {
					return nil, err
				}
			}
			costs = append(costs, float64(bench.ProcessorTime()-begun)/slice/1e3)
		}
		seen := hourly{ticks: bench.SpreadOf(costs), evidence: len(l.last.Evidence.Encode())}
		var err error
		if seen.resident, err = resident(); err != nil {
			return nil, err
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		seen.heap = m.HeapAlloc
		all = append(all, seen)
	}
	return all, nil
}

// resident is how much of this process is in memory.
func resident() (uint64, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, pages uint64
	if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &size, &pages); err != nil {
		return 0, fmt.Errorf("/proc/self/statm: %w", err)
	}
	return pages * uint64(os.Getpagesize()), nil
}
