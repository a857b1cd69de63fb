// Package pace says when what has failed is tried again, what is held up until then, and whose turn it is.
package pace

import (
	"context"
	"math/rand/v2"
	"time"
)

// A Backoff paces retries: each pause is twice the one before, up to Most, and a random part of it is left out, so that
// many programs that lost one endpoint do not come back to it at one moment. The zero value begins at 1 s and ends at 30 s.
type Backoff struct {
	Least, Most time.Duration

	failures int
}

// Next is how long to pause after one more failure: between half of the step and the whole.
func (b *Backoff) Next() time.Duration {
	least, most := b.Least, b.Most
	if least <= 0 {
		least = time.Second
	}
	if most < least {
		most = max(least, 30*time.Second)
	}
	step := least << min(b.failures, 20)
	if step > most || step <= 0 {
		step = most
	}
	b.failures++
	return step/2 + rand.N(step/2+1)
}

// Reset begins anew after a success.
func (b *Backoff) Reset() { b.failures = 0 }

// Pause waits for d or until the context ends, and returns the context's error then.
func Pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
