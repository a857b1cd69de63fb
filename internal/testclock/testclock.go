// Package testclock is the clock of tests that meter: time passes on it only while the test's process runs.
package testclock

import (
	"sync"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
)

// These bound how far the clock falls behind the reading of a GPU that is due: a meter that is read more seldom than
// mostStep finds no tick missed, whatever the machine does besides.
const (
	look     = 2 * time.Millisecond
	mostStep = 20 * time.Millisecond
)

// Process is the clock of this process, the same at each call. It goes with real time, by no more than 20 ms at once: a
// processor that was given to others, or a process that was stopped, makes no gap, no late reading and no bill. What a
// test bounds by the time that was metered holds on any machine.
var Process = sync.OnceValue(func() metering.Clock {
	clock := sim.NewClock()
	clock.SetWall(time.Now().UnixNano())
	go func() {
		for last := time.Now(); ; {
			time.Sleep(look)
			now := time.Now()
			clock.Advance(min(now.Sub(last), mostStep))
			last = now
		}
	}()
	return clock
})

// GPUs is a host of n simulated GPUs that are read by that clock.
func GPUs(n int) *sim.Source { return sim.New(n, sim.Options{Clock: Process()}) }

// Sleep returns when d has passed on the clock, and so on real clocks: whoever meters by it bills no less.
func Sleep(d time.Duration) { <-Process().After(d) }

// Stopwatch tells how long ago it was started, by the clock.
func Stopwatch() func() time.Duration {
	began := Process().Now().Mono
	return func() time.Duration { return time.Duration(Process().Now().Mono - began) }
}
