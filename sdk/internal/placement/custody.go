package placement

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// Fence is whether a lease is still ours: what is commanded is so in our term, or not at all.
type Fence struct {
	Leases     leasestore.Leases
	Allocation gpu.Allocation  // the lease's, in our term
	Timeout    time.Duration   // of a command
	Tenure     context.Context // ends when others may run the lease; nil: nobody else does

	Lost      atomic.Bool // another gateway has it, or may: nothing of it is touched here any more
	Elsewhere atomic.Bool // another gateway has it: the database says so, or the file that this host's gateways share
	Aborted   atomic.Bool // more was signed of it than the database has, or its devices are not what its offer sells: nothing is signed any more, and it ends

	unsold atomic.Pointer[string] // of which device
}

// Why says in words why it is Aborted.
func (f *Fence) Why() string {
	if unsold := f.unsold.Load(); unsold != nil {
		return *unsold
	}
	return leasestore.ErrRolledBack.Error()
}

// Command has the allocator do something, in the term that is ours only: another
// gateway's devices are not touched, and what is under way when others may take
// the lease is cut off.
func (f *Fence) Command(ctx context.Context, do func(context.Context, gpu.Allocation) error) error {
	call, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	if f.Tenure != nil {
		defer context.AfterFunc(f.Tenure, cancel)()
		ask, done := context.WithTimeout(call, leasestore.OwnerTimeout)
		term, err := f.Leases.Term(ask, f.Allocation.LeaseID)
		done()
		f.Elsewhere.CompareAndSwap(false, err == nil && term != f.Allocation.Term)
		if f.Elsewhere.Load() || f.Tenure.Err() != nil { // where it does not answer, our tenure says it
			f.Lost.Store(true)
			return fmt.Errorf("lease %s: %w", f.Allocation.LeaseID, leasestore.ErrNotOwner)
		}
	}
	err := do(call, f.Allocation)
	if errors.Is(err, leasestore.ErrNotOwner) {
		f.Check(err)
	}
	return err
}

// Check hears that the lease is another gateway's now, or that the database is
// older than what was signed from it, or that its devices are described as others than its offer sells.
func (f *Fence) Check(err error) {
	switch {
	case errors.Is(err, leasestore.ErrNotOwner):
		f.Elsewhere.Store(true)
		f.Lost.Store(true)
	case errors.Is(err, highwater.ErrBehind), errors.Is(err, leasestore.ErrRolledBack), errors.Is(err, channel.ErrLower):
		f.Aborted.Store(true)
	case errors.Is(err, metering.ErrModel):
		text := err.Error()
		f.unsold.Store(&text)
		f.Aborted.Store(true)
	}
}

// Custody is who has the use of a lease's devices, by the commands that were run, and not by the state on disk, which is written
// before or after them.
type Custody struct {
	Placer Placer
	Clock  metering.Clock

	mu     sync.Mutex  // one command at a time
	Given  atomic.Bool // the renter may have the use of them: no command that takes it away has succeeded since
	failed atomic.Bool // see Fails

	alone sync.Mutex        // guards what nobody meters
	since *metering.Instant // by when the renter has had devices that nobody meters; nil: it does not
	mono  int64             // nanoseconds of each device before
}

// Resume lets the renter use the devices. It may have done so also where it fails.
func (c *Custody) Resume(ctx context.Context, a gpu.Allocation) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Given.Store(true)
	return c.Placer.Resume(ctx, a)
}

// Suspend suspends the devices, unless they are.
func (c *Custody) Suspend(ctx context.Context, a gpu.Allocation) error {
	return c.SuspendIf(ctx, a, func() bool { return true })
}

// SuspendIf is Suspend if must says so, while no other command runs.
func (c *Custody) SuspendIf(ctx context.Context, a gpu.Allocation, must func() bool) error {
	return c.suspendBy(ctx, a, must, c.Placer.Suspend)
}

// SuspendLate is Suspend of a lease that was let go, and may be another gateway's.
func (c *Custody) SuspendLate(ctx context.Context, a gpu.Allocation) error {
	late := func(ctx context.Context, a gpu.Allocation) error { return SuspendLate(ctx, c.Placer, a) }
	return c.suspendBy(ctx, a, func() bool { return true }, late)
}

func (c *Custody) suspendBy(ctx context.Context, a gpu.Allocation, must func() bool, suspend func(context.Context, gpu.Allocation) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.Given.Load() || !must() {
		return nil
	}
	err := suspend(ctx, a)
	if err == nil {
		c.Given.Store(false)
		c.failed.Store(false)
		c.metered(c.Clock.Now())
	}
	return err
}

// Fails reports whether it is the first time since the devices were suspended that they could not be.
func (c *Custody) Fails() bool { return !c.failed.Swap(true) }

// Release releases the devices.
func (c *Custody) Release(ctx context.Context, a gpu.Allocation) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.Placer.Release(ctx, a)
	if err == nil {
		c.Given.Store(false)
	}
	return err
}

// IfGiven does something while no command runs, and does not and is false where the renter does not have the devices.
func (c *Custody) IfGiven(do func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.Given.Load() {
		return false
	}
	do()
	return true
}

// CountUnmetered begins to count the time in which the renter has devices that nobody meters.
func (c *Custody) CountUnmetered() {
	now := c.Clock.Now()
	c.alone.Lock()
	defer c.alone.Unlock()
	if c.Given.Load() && c.since == nil {
		c.since = &now
	}
}

// metered ends it.
func (c *Custody) metered(now metering.Instant) {
	c.alone.Lock()
	defer c.alone.Unlock()
	if c.since != nil {
		c.mono += max(now.Mono-c.since.Mono, 0)
		c.since = nil
	}
}

// Unmetered is that time, nanoseconds.
func (c *Custody) Unmetered() int64 {
	c.alone.Lock()
	defer c.alone.Unlock()
	if c.since == nil {
		return c.mono
	}
	return c.mono + max(c.Clock.Now().Mono-c.since.Mono, 0)
}
