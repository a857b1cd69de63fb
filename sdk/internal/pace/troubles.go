package pace

import (
	"maps"
	"sync"
	"time"
)

// Troubles are the things, of many, that failed when they were last looked at: each is left alone for a while, ever longer, and holds
// up none of the others. The zero value has none.
type Troubles[K comparable] struct {
	mu sync.Mutex // guards of
	of map[K]trouble
}

type trouble struct {
	err   error
	pace  Backoff
	until time.Time
}

// Note notes what a look at one came to: an error leaves it alone for as long as is returned, nil ends its trouble.
func (t *Troubles[K]) Note(key K, err error) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		delete(t.of, key)
		return 0
	}
	if t.of == nil {
		t.of = make(map[K]trouble)
	}
	now := t.of[key]
	wait := now.pace.Next()
	now.err, now.until = err, time.Now().Add(wait)
	t.of[key] = now
	return wait
}

// Rests reports whether one is left alone for now.
func (t *Troubles[K]) Rests(key K) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.of[key].until)
}

// Why is why one is, or was until the next look at it; nil: nothing failed.
func (t *Troubles[K]) Why(key K) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.of[key].err
}

// Keep forgets those that are none of these.
func (t *Troubles[K]) Keep(wanted func(K) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.of, func(key K, _ trouble) bool { return !wanted(key) })
}
