package chain

import (
	"context"
	"time"
)

// A silence is that an endpoint gave no answer in its share of the time: it hangs, or drops what is sent to it. It is left out,
// since each read that waits for it would hold up what money hangs on, until it answers a question beside them. Of two
// endpoints the other one is believed alone meanwhile, as where one is down.
type silence struct {
	since time.Time // when it was last noticed
	until time.Time // it is asked nothing before; zero: it is not silent
	times int       // in a row
	asked bool      // it is being asked whether it answers again
}

// The next question comes after a share of the time, twice that after another silence, and so on; it begins anew where an endpoint
// answered for long.
const (
	mostShares    = 32
	silenceForget = 10 * time.Minute
)

// unheard notes that an endpoint did not answer in time. It reports whether it did before.
func (n *endpoint) unheard(share time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, now := &n.silence, time.Now()
	fresh := s.until.IsZero()
	if now.Sub(s.since) > silenceForget {
		s.times = 0
	}
	s.since, s.until = now, now.Add(share*time.Duration(min(1<<min(s.times, 10), mostShares)))
	s.times++
	return fresh
}

// silent reports whether an endpoint is left out. Where it is time to, it is asked beside whether it answers again.
func (e *Endpoints) silent(n *endpoint) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &n.silence
	if s.until.IsZero() {
		return false
	}
	if !s.asked && time.Now().After(s.until) {
		s.asked = true
		go e.probe(n)
	}
	return true
}

// probe asks a silent endpoint for its newest block, with nobody waiting.
func (e *Endpoints) probe(n *endpoint) {
	ctx, cancel := context.WithTimeout(context.Background(), e.share)
	defer cancel()
	backend, err := n.dial(ctx, e.chain)
	if err == nil {
		_, err = backend.BlockNumber(ctx)
	}
	if err != nil && ctx.Err() != nil {
		n.unheard(e.share)
	}
	over := (err == nil || ctx.Err() == nil) && n.heard() // also an error is an answer: the endpoint does not hang
	n.mu.Lock()
	n.silence.asked = false
	n.mu.Unlock()
	if over {
		e.say("an RPC endpoint answers again", "endpoint", n.name)
	}
}

// heard ends a silence. It reports whether there was one.
func (n *endpoint) heard() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := !n.silence.until.IsZero()
	n.silence.until = time.Time{}
	return was
}
