// Package awake is a clock of the time that this process runs.
package awake

import (
	"context"
	"sync/atomic"
	"time"
)

// Clock counts only while this process runs: it stands still
// while the process is stopped, or its host asleep. What a provider did not say
// meanwhile is no silence: it waits to be read. The zero value is ready.
type Clock struct{ seen atomic.Int64 } // nanoseconds

const (
	tick = 100 * time.Millisecond
	most = time.Second // between two ticks of a process that runs, on a host that has too much to do
)

// Run lets the clock run until the context ends.
func (c *Clock) Run(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			now := time.Now()
			c.Count(now.Sub(last))
			last = now
		}
	}
}

// Count adds the time between two ticks.
func (c *Clock) Count(passed time.Duration) { c.seen.Add(int64(min(passed, most))) }

// Now is comparable with other times of this clock only.
func (c *Clock) Now() time.Time { return time.Unix(1, c.seen.Load()) }

// Since is how long ago t was by this clock.
func (c *Clock) Since(t time.Time) time.Duration { return c.Now().Sub(t) }
