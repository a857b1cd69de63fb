package sim

import (
	"sync"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// Clock is a clock that stands still until a test moves it.
type Clock struct {
	mu     sync.Mutex
	now    metering.Instant
	timers []timer
	boot   string
}

type timer struct {
	at int64
	c  chan time.Time
}

var _ metering.Clock = (*Clock)(nil)

// NewClock starts a clock at a fixed moment.
func NewClock() *Clock {
	return &Clock{
		now:  metering.Instant{Boot: 1e9, Mono: 1e9, Wall: 1_767_225_600e9},
		boot: "simulated-boot",
	}
}

// Now is the moment the clock stands at.
func (c *Clock) Now() metering.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// BootID is fixed.
func (c *Clock) BootID() string { return c.boot }

// After fires when the clock was moved by d.
func (c *Clock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()

	t := timer{at: c.now.Mono + int64(d), c: make(chan time.Time, 1)}
	c.timers = append(c.timers, t)
	c.fire()
	return t.c
}

// Waiting is how many timers have not fired: a test that moves the clock waits
// for the sleepers first.
func (c *Clock) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.timers)
}

// Advance moves all three clocks.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.now.Boot += int64(d)
	c.now.Mono += int64(d)
	c.now.Wall += int64(d)
	c.fire()
}

// Sleep suspends the host: monotonic time stands still.
func (c *Clock) Sleep(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.now.Boot += int64(d)
	c.now.Wall += int64(d)
}

// SetWall sets the wall clock, as an administrator or a time server may.
func (c *Clock) SetWall(nanos int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Wall = nanos
}

func (c *Clock) fire() {
	var rest []timer
	for _, t := range c.timers {
		if t.at > c.now.Mono {
			rest = append(rest, t)
			continue
		}
		t.c <- time.Unix(0, c.now.Wall)
	}
	c.timers = rest
}
