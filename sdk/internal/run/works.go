package run

import (
	"context"
	"sync"
)

// Works is what goes on until its program stops, and is waited for then. It is complete with Live.
type Works struct {
	life context.Context
	wait sync.WaitGroup

	mu               sync.Mutex
	closed, draining bool
}

// Live has all of it end with life.
func (w *Works) Live(life context.Context) { w.life = life }

// Lifetime ends when the program stops.
func (w *Works) Lifetime() context.Context { return w.life }

// Begin registers work that Close waits for. It is false where Close was called.
func (w *Works) Begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.wait.Add(1)
	return true
}

// Done ends work that Begin registered.
func (w *Works) Done() { w.wait.Done() }

// Go does work that Close waits for, until Lifetime ends. It is false where Close was called.
func (w *Works) Go(work func(ctx context.Context)) bool {
	begun := w.Begin()
	if begun {
		go func() {
			defer w.Done()
			work(w.life)
		}()
	}
	return begun
}

// Drain has nothing new be accepted.
func (w *Works) Drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.draining = true
}

// Accepts reports whether something new may begin: neither Drain nor Shut was called.
func (w *Works) Accepts() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.closed && !w.draining
}

// Shut has nothing begin any more, ends all by finish, and waits for it. It is false the second time.
func (w *Works) Shut(finish func()) bool {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return false
	}
	w.closed = true
	w.mu.Unlock()
	finish()
	w.wait.Wait()
	return true
}
