package placement

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// fenced is the local placer of a gateway that shares its database. The gateways of a host share a file, too (highwater), which has the
// newest term of each lease whose command ran here: one that is cut off from the database does nothing to devices of which another
// gateway of its host runs the lease by now. Where the file fails commands run as they would without it.
type fenced struct {
	Local
	marks *highwater.Marks
	store leasestore.Store
	log   *slog.Logger
}

func (f fenced) Suspend(ctx context.Context, a gpu.Allocation) error {
	return f.run(ctx, a, time.Time{}, f.Local.Suspend)
}

func (f fenced) Resume(ctx context.Context, a gpu.Allocation) error {
	return f.run(ctx, a, time.Time{}, f.Local.Resume)
}

func (f fenced) Release(ctx context.Context, a gpu.Allocation) error {
	return f.run(ctx, a, time.Time{}, f.Local.Release)
}

// SuspendLate suspends devices of a lease that this gateway has let go: whoever takes it over waits until that is done, or a renter who
// pays would be left with devices that were suspended after they had been resumed.
func SuspendLate(ctx context.Context, p Placer, a gpu.Allocation) error {
	f, ok := p.(fenced)
	until, bound := ctx.Deadline()
	if !ok || !bound {
		return p.Suspend(ctx, a)
	}
	defer func() {
		err := within(context.WithoutCancel(ctx), func(ctx context.Context) error { return f.marks.Leave(ctx, a.LeaseID, a.Term) })
		if err != nil {
			f.log.Warn("who takes a lease over waits longer than it has to", "lease", a.LeaseID, "error", err)
		}
	}()
	return f.run(ctx, a, until, f.Local.Suspend)
}

// run runs a command unless it is of an earlier term than one that ran on this host: then it is leasestore.ErrNotOwner.
func (f fenced) run(ctx context.Context, a gpu.Allocation, late time.Time, do func(context.Context, gpu.Allocation) error) error {
	err := f.enter(ctx, a, late)
	if errors.Is(err, highwater.ErrNewerTerm) {
		err = f.older(ctx, a)
	}
	if errors.Is(err, leasestore.ErrNotOwner) {
		return err
	}
	if err != nil {
		f.log.Warn("a command on a lease's devices is run though the gateways of this host cannot hear of it", "lease", a.LeaseID, "error", err)
	}
	return do(ctx, a)
}

// enter writes the term down, and waits for who let go of the lease to be done with it: not for so long that the command has no time left.
func (f fenced) enter(ctx context.Context, a gpu.Allocation, late time.Time) error {
	patience, cancel := context.WithCancel(ctx)
	if end, ok := ctx.Deadline(); ok {
		patience, cancel = context.WithDeadline(ctx, time.Now().Add(time.Until(end)/2))
	}
	defer cancel()
	for {
		err := within(patience, func(ctx context.Context) error { return f.marks.Enter(ctx, a.LeaseID, a.Term, late) })
		if !errors.Is(err, highwater.ErrLate) || chain.Pause(patience, 20*time.Millisecond) != nil {
			return err
		}
	}
}

// older is asked where the file has a later term than a command: it is leasestore.ErrNotOwner, unless the database says that it is from before the
// file, as after a restore, or has forgotten the lease, whose devices are to be taken back.
func (f fenced) older(ctx context.Context, a gpu.Allocation) error {
	ask, cancel := context.WithTimeout(ctx, leasestore.OwnerTimeout)
	defer cancel()
	term, err := f.store.Leases.Term(ask, a.LeaseID)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil || term != a.Term:
		return fmt.Errorf("lease %s, term %d: %w", a.LeaseID, a.Term, errors.Join(leasestore.ErrNotOwner, highwater.ErrNewerTerm))
	}
	return within(ctx, func(ctx context.Context) error { return f.marks.SetTerm(ctx, a.LeaseID, a.Term) })
}

// within waits no longer for a file than for a database that says whose a lease is: a suspension needs no disk.
func within(ctx context.Context, write func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- write(ctx) }()
	select {
	case err := <-done:
		return err
	case <-time.After(leasestore.OwnerTimeout):
		return fmt.Errorf("the file could not be written for %s", leasestore.OwnerTimeout)
	}
}
