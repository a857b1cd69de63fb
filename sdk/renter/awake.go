package renter

import (
	"context"
	"sync/atomic"
	"time"
)

// awake is a clock that counts only while this process runs: it stands still
// while the process is stopped, or its host asleep. What a provider did not say
// meanwhile is no silence: it waits to be read. The zero value is ready.
type awake struct{ seen atomic.Int64 } // nanoseconds

const (
	awakeTick = 100 * time.Millisecond
	awakeMost = time.Second // between two ticks of a process that runs, on a host that has too much to do
)

// run lets the clock run until the context ends.
func (a *awake) run(ctx context.Context) {
	ticker := time.NewTicker(awakeTick)
	defer ticker.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			now := time.Now()
			a.count(now.Sub(last))
			last = now
		}
	}
}

// count adds the time between two ticks.
func (a *awake) count(passed time.Duration) { a.seen.Add(int64(min(passed, awakeMost))) }

// now is comparable with other times of this clock only.
func (a *awake) now() time.Time { return time.Unix(1, a.seen.Load()) }

// since is how long ago t was by this clock.
func (a *awake) since(t time.Time) time.Duration { return a.now().Sub(t) }
