package placement

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/sdk/gpu"
)

// Asks is who is asked whether what it allocated is alive, for all leases: of how many at once, how often, and for how long.
type Asks struct {
	Alive         func(context.Context, gpu.Allocation) error // nil: it does not say
	Every, Within time.Duration
	Turn          chan struct{}
	Log           *slog.Logger
}

// AskedAtOnce is how many allocations of a provider are asked at once whether they are alive.
const AskedAtOnce = 16

// Liveness is what the allocator said last of whether a lease is alive.
type Liveness struct {
	Dead atomic.Bool

	unknown bool // it could not say, which was logged; for who asks
	next    atomic.Pointer[time.Timer]
}

// Stop lets go of a lease that has ended: the timer would keep it in memory.
func (l *Liveness) Stop() {
	if next := l.next.Load(); next != nil {
		next.Stop()
	}
}

// Watch asks again and again until done is closed or life ends, and tells what changed. It does not wait for who runs the lease, nor that for
// it: a command that hangs holds up no suspension.
func (l *Liveness) Watch(life context.Context, done <-chan struct{}, a gpu.Allocation, by Asks, changed func(dead bool)) {
	l.next.Store(time.AfterFunc(by.Every, func() {
		select {
		case <-done: // what it was allocated is another's
			return
		default:
		}
		select {
		case by.Turn <- struct{}{}:
		case <-done:
			return
		case <-life.Done():
			return
		}
		ctx, cancel := context.WithTimeout(life, by.Within)
		err := by.Alive(ctx, a)
		cancel()
		<-by.Turn
		l.answered(life, a, err, by.Log, changed)
		l.Watch(life, done, a, by, changed)
	}))
}

// Lifeless reports whether nothing runs that would have to stop, of a lease whose command failed: it may have died just now, or before this
// process began, and is not over for that.
func (l *Liveness) Lifeless(ctx context.Context, a gpu.Allocation, by Asks) bool {
	if l.Dead.Load() || by.Alive == nil {
		return l.Dead.Load()
	}
	call, cancel := context.WithTimeout(ctx, by.Within)
	defer cancel()
	return errors.Is(by.Alive(call, a), gpu.ErrDead)
}

// answered takes what the allocator says.
func (l *Liveness) answered(life context.Context, a gpu.Allocation, err error, log *slog.Logger, changed func(dead bool)) {
	switch {
	case err == nil:
		l.unknown = false
		if l.Dead.Swap(false) {
			changed(false)
		}
	case errors.Is(err, gpu.ErrDead):
		if !l.Dead.Swap(true) {
			log.Warn("lease is not alive: it is suspended and not billed", "lease", a.LeaseID, "error", err)
			changed(true)
		}
	case !l.unknown && life.Err() == nil:
		l.unknown = true
		log.Warn("nobody knows whether a lease is alive", "lease", a.LeaseID, "error", err)
	}
}
