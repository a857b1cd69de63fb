package lease

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
)

// custody is who has the use of a lease's devices, by the commands that were run, and not by the state on disk, which is written
// before or after them.
type custody struct {
	mu    sync.Mutex  // one command at a time
	given atomic.Bool // the renter may have the use of them: no command that takes it away has succeeded since

	giving  atomic.Bool // a suspended lease is being resumed: its devices are not taken away for that it is suspended
	watched atomic.Bool // see hasten
	failed  atomic.Bool // that the devices could not be suspended was said

	alone struct { // what nobody meters
		mu    sync.Mutex
		since *metering.Instant // by when the renter has had them; nil: it does not
		mono  int64             // nanoseconds of each device before
	}
}

// LetGo begins to count the time in which the renter has devices that nobody meters.
func (l *Lease) LetGo() {
	c, now := &l.custody, l.Deps.Clock.Now()
	c.alone.mu.Lock()
	defer c.alone.mu.Unlock()
	if c.given.Load() && c.alone.since == nil {
		c.alone.since = &now
	}
}

// unmeteredTo ends it.
func (c *custody) unmeteredTo(now metering.Instant) {
	c.alone.mu.Lock()
	defer c.alone.mu.Unlock()
	if c.alone.since != nil {
		c.alone.mono += max(now.Mono-c.alone.since.Mono, 0)
		c.alone.since = nil
	}
}

// unmetered is that time, nanoseconds.
func (c *custody) unmetered(clock metering.Clock) int64 {
	c.alone.mu.Lock()
	defer c.alone.mu.Unlock()
	if c.alone.since == nil {
		return c.alone.mono
	}
	return c.alone.mono + max(clock.Now().Mono-c.alone.since.Mono, 0)
}

// used is device time, nanoseconds: what was metered, and what was not because the lease was let go while its renter had the devices.
func (l *Lease) used() uint64 {
	return uint64(l.Meter.Allocated()) + uint64(len(l.Allocation.Devices))*uint64(l.custody.unmetered(l.Deps.Clock))
}

// giveOut lets the renter use the devices. It may have done so also where it fails.
func (l *Lease) giveOut(ctx context.Context, a gpu.Allocation) error {
	l.custody.mu.Lock()
	defer l.custody.mu.Unlock()
	l.custody.given.Store(true)
	return l.Deps.Placer.Resume(ctx, a)
}

// takeIn suspends the devices, unless they are.
func (l *Lease) takeIn(ctx context.Context, a gpu.Allocation) error {
	l.custody.mu.Lock()
	defer l.custody.mu.Unlock()
	return l.takeInBy(ctx, a, l.Deps.Placer.Suspend)
}

// takeInBy is takeIn by some command. The caller holds custody's mu.
func (l *Lease) takeInBy(ctx context.Context, a gpu.Allocation, suspend func(context.Context, gpu.Allocation) error) error {
	if !l.custody.given.Load() {
		return nil
	}
	err := suspend(ctx, a)
	if err == nil {
		l.custody.given.Store(false)
		l.custody.failed.Store(false)
		l.custody.unmeteredTo(l.Deps.Clock.Now())
	}
	return err
}

// takeBackDevices releases the devices.
func (l *Lease) takeBackDevices(ctx context.Context, a gpu.Allocation) error {
	l.custody.mu.Lock()
	defer l.custody.mu.Unlock()
	err := l.Deps.Placer.Release(ctx, a)
	if err == nil {
		l.custody.given.Store(false)
	}
	return err
}

// bills has the meter bill, and is false where the renter does not have the devices: see holdBack.
func (l *Lease) bills() bool {
	l.custody.mu.Lock()
	defer l.custody.mu.Unlock()
	if !l.custody.given.Load() {
		return false
	}
	l.goOn()
	return true
}

// CannotSuspend says once that devices could not be suspended: it is tried again until they are.
func (l *Lease) CannotSuspend(err error) {
	if !l.custody.failed.Swap(true) {
		l.Deps.Log.Error("the devices of a lease that must not be served could not be suspended: it is tried again until they are", "lease", l.ID, "channel", l.Terms.ID(), "devices", l.Allocation.Devices, "error", err)
	}
}

// hastenAfter is how long a lease's own goroutine has to suspend it, at least, before holdBack does.
const hastenAfter = 500 * time.Millisecond

// hasten has a lease held back that must not be served and whose goroutine does not get to it, as it waits for a database.
func (l *Lease) hasten() {
	if l.life == nil || !l.custody.given.Load() || l.custody.watched.Swap(true) {
		return
	}
	time.AfterFunc(max(l.Deps.Timing.Tick, hastenAfter), l.holdBack)
}

// holdBack suspends the devices of a lease that must not be served, and goes on trying until that is done, its goroutine has
// done it, or it may be served again. Its state may say suspended: the command failed. It waits for no database but to hear whose the lease is.
func (l *Lease) holdBack() {
	defer l.custody.watched.Store(false)
	var pace chain.Backoff
	for l.mustNotServe() {
		l.rush()
		err := l.Command(l.life, func(ctx context.Context, a gpu.Allocation) error {
			l.custody.mu.Lock()
			defer l.custody.mu.Unlock()
			if !l.mustNotServe() {
				return nil
			}
			l.Meter.Pause()
			return l.takeInBy(ctx, a, l.Deps.Placer.Suspend)
		})
		if err == nil || l.Lost.Load() || l.life.Err() != nil {
			break
		}
		l.CannotSuspend(err)
		if chain.Pause(l.life, pace.Next()) != nil {
			break
		}
	}
	l.Wake()
}

// mustNotServe reports whether a renter has devices that it must not have now.
func (l *Lease) mustNotServe() bool {
	select {
	case <-l.Done:
		return false
	default:
	}
	v := l.Look()
	if v.State == leasestore.Suspended {
		return l.custody.given.Load() && !l.custody.giving.Load()
	}
	return v.State == leasestore.Active && l.custody.given.Load() && l.hindrance(&v) != ""
}

// insist suspends the devices of a lease that is run by nobody from now on, as its process stops: there are some tries, and no more time
// than for one command. Another gateway's it leaves alone.
func (l *Lease) insist(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, l.Deps.Timing.CallTimeout)
	defer cancel()
	pace := chain.Backoff{Least: 100 * time.Millisecond}
	for l.custody.given.Load() {
		err := l.TakeInLate(call)
		if err == nil || errors.Is(err, leasestore.ErrNotOwner) {
			return
		}
		l.CannotSuspend(err)
		if chain.Pause(call, pace.Next()) != nil {
			l.Deps.Log.Error("the process stops, and the devices of a lease that nobody meters could not be suspended: do it by hand", "lease", l.ID, "devices", l.Allocation.Devices, "error", err)
			return
		}
	}
}

// TakeInLate is takeIn of a lease that was let go, and may be another gateway's.
func (l *Lease) TakeInLate(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, l.Deps.Timing.CallTimeout)
	defer cancel()
	l.custody.mu.Lock()
	defer l.custody.mu.Unlock()
	return l.takeInBy(call, l.Allocation, func(ctx context.Context, a gpu.Allocation) error { return placement.SuspendLate(ctx, l.Deps.Placer, a) })
}

// LeaveSuspended suspends what a process that stops could not write down: no process that begins before the database is back could
// meter it, and so it has no bound. Whoever goes on with the lease resumes it first.
func (l *Lease) LeaveSuspended(ctx context.Context) {
	if l.Read != nil || l.returned || l.Elsewhere.Load() || !l.custody.given.Load() {
		return
	}
	l.Deps.Log.Warn("the process stops, and what a lease used cannot be written: its devices are suspended until a process goes on with it", "lease", l.ID, "channel", l.Terms.ID())
	l.insist(ctx)
}
