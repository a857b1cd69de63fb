//go:build linux && cgo

package metercost

import (
	"sync"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// clock stands still until it is moved, so that a day takes seconds. Whoever looks at it waits for the host's clocks as
// well: they are a part of what a tick costs.
type clock struct {
	mu     sync.Mutex
	now    metering.Instant
	timers []timer

	sleepers, asleep int           // of a Sampler, which are there and which wait for the next tick
	quiet            chan struct{} // has one when all do
}

type timer struct {
	at int64
	c  chan time.Time
}

// newClock starts at a whole second: a Sampler may round up to share its sleeps.
func newClock() *clock {
	now := metering.System.Now()
	now.Mono -= now.Mono % int64(time.Second)
	return &clock{now: now, quiet: make(chan struct{}, 1)}
}

// expect forgets who waited, and expects so many sleepers.
func (c *clock) expect(sleepers int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timers, c.sleepers, c.asleep = nil, sleepers, 0
}

// waiting is how many wait for the next tick.
func (c *clock) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asleep
}

func (c *clock) BootID() string { return metering.System.BootID() }

func (c *clock) Now() metering.Instant {
	metering.System.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := timer{c.now.Mono + int64(d), make(chan time.Time, 1)}
	c.timers = append(c.timers, t)
	if d != tick { // a watchdog's, or what is due at once
		return t.c
	}
	c.asleep++
	if c.asleep == c.sleepers {
		c.asleep = 0
		c.quiet <- struct{}{}
	}
	return t.c
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Boot += int64(d)
	c.now.Mono += int64(d)
	c.now.Wall += int64(d)
	c.fire()
}

func (c *clock) fire() {
	rest := c.timers[:0]
	for _, t := range c.timers {
		if t.at > c.now.Mono {
			rest = append(rest, t)
			continue
		}
		t.c <- time.Unix(0, c.now.Wall)
	}
	clear(c.timers[len(rest):])
	c.timers = rest
}

// running is a clock that is moved on by whoever waits by it.
type running struct{ *clock }

func (r running) After(d time.Duration) <-chan time.Time {
	r.advance(max(d, 0))
	c := make(chan time.Time, 1)
	c <- time.Time{}
	return c
}
