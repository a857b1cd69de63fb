package route

import (
	"math/bits"
	"math/rand/v2"
	"time"
)

// When an endpoint is not asked, and for how long.
const (
	inARow      = 3               // failures in a row that open a breaker
	window      = 20              // newest outcomes of which more than half open it
	openFor     = 5 * time.Second // how long the first time; twice as long each next time
	throttleFor = time.Second / 2 // how long after a 429 without Retry-After; twice as long each next time
	longest     = 5 * time.Minute // of either, and of any Retry-After
	jitter      = .2              // by which an own time is made shorter or longer
)

// Breaker says whether an endpoint is asked.
type Breaker uint8

const (
	Closed   Breaker = iota // it is asked
	HalfOpen                // it failed; the next request is a trial, one at a time
	Open                    // it failed too often or said 429 (Too Many Requests), and is asked only where all are open
)

func (b Breaker) String() string { return [...]string{"closed", "half-open", "open"}[min(b, Open)] }

// breaker remembers the failures of one endpoint and model. Its zero value is closed.
type breaker struct {
	failed    uint32        // the newest outcomes since it closed; bit 0 is the newest, 1 a failure
	seen      int           // outcomes since it closed, up to window
	row       int           // failures in a row
	opens     int           // times that it opened, until window outcomes have come without
	throttles int           // 429s in a row
	tripped   bool          // open or half-open
	until     time.Duration // when tripped: to when it is open
	resting   time.Duration // to when a 429 keeps it open
	trying    bool          // a trial is under way
	trial     time.Duration // since when
}

// state is what a request that comes now meets, and when the endpoint may be asked.
func (b *breaker) state(now time.Duration) (Breaker, time.Duration) {
	until := b.resting
	if b.tripped {
		until = max(until, b.until)
		if b.trying && b.trial+longest > now { // whoever forgot to end a trial does not hold it up for ever
			return Open, max(until, now)
		}
	}
	switch {
	case now < until:
		return Open, until
	case b.tripped:
		return HalfOpen, now
	}
	return Closed, now
}

// begin marks that a request was sent, and says whether it is a trial.
func (b *breaker) begin(now time.Duration) bool {
	if b.tripped {
		b.trying, b.trial = true, now
	}
	return b.tripped
}

// succeed books an answer that came whole. Only one that was sent after the breaker had opened closes it.
func (b *breaker) succeed(trial bool) {
	b.throttles = 0
	switch {
	case b.tripped && trial:
		*b = breaker{opens: b.opens, resting: b.resting}
	case !b.tripped:
		b.row = 0
		b.outcome(0)
	}
}

// fail books a failure, which may open the breaker. While it is open, those that were under way change nothing.
func (b *breaker) fail(now time.Duration, random *rand.Rand) {
	if b.tripped {
		if now >= b.until {
			b.open(now, random)
		}
		return
	}
	b.row++
	b.outcome(1)
	if b.row >= inARow || bits.OnesCount32(b.failed) > window/2 {
		b.open(now, random)
	}
}

func (b *breaker) outcome(failed uint32) {
	b.failed = (b.failed<<1 | failed) & (1<<window - 1)
	if b.seen++; b.seen >= window {
		b.seen, b.opens = window, 0
	}
}

func (b *breaker) open(now time.Duration, random *rand.Rand) {
	*b = breaker{tripped: true, opens: min(b.opens+1, 30), throttles: b.throttles, resting: b.resting}
	b.until = now + shake(doubled(openFor, b.opens-1), random)
}

// throttle books a 429. Retry-After is believed from half a second to five minutes. Of several that were under way at once the first one
// counts, or a burst would be taken for a server that stays full.
func (b *breaker) throttle(now, retryAfter time.Duration, random *rand.Rand) {
	if now < b.resting {
		return
	}
	rest := shake(doubled(throttleFor, b.throttles), random)
	if retryAfter > 0 {
		rest = min(max(retryAfter, throttleFor), longest)
	}
	b.resting = now + rest
	b.throttles = min(b.throttles+1, 30)
}

func doubled(t time.Duration, times int) time.Duration { return min(t<<min(times, 20), longest) }

func shake(t time.Duration, random *rand.Rand) time.Duration {
	return min(time.Duration(float64(t)*(1-jitter+2*jitter*random.Float64())), longest)
}
