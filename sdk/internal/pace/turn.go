package pace

import (
	"context"
	"sync"
)

// A Turn is a lock that is waited for only as long as a context lasts: who holds it may wait for an endpoint, and an
// interrupt must not wait for that. The zero value is free.
type Turn struct {
	once sync.Once
	held chan struct{}
}

// Enter takes it, or returns the error of a context that ended first.
func (t *Turn) Enter(ctx context.Context) error {
	t.once.Do(func() { t.held = make(chan struct{}, 1) })
	select {
	case t.held <- struct{}{}:
		return nil
	default:
	}
	select {
	case t.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Leave gives it back.
func (t *Turn) Leave() { <-t.held }
