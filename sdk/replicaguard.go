package sdk

import (
	"context"
	"database/sql"
	"errors"
	"sort"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// watchOver keeps a lease that was let go, because the database was not reached,
// from being served for nothing: nobody meters it then. When the credit that was
// left is used up, by our own clock, its devices are suspended, unless another
// owner that runs it was heard of. Who finds it running, later, has them resumed.
func (r *replicas) watchOver(l *lease) {
	if l.remote != nil || !r.p.begin() { // a node does so by itself
		return
	}
	go func() {
		defer r.p.wait.Done()
		select {
		case <-l.done:
			r.guardCredit(r.p.life, l)
		case <-r.p.life.Done():
		}
	}()
}

func (r *replicas) guardCredit(ctx context.Context, l *lease) {
	active := l.state() == leaseActive
	until := time.Now().Add(l.lasts())
	for suspended := false; chain.Pause(ctx, r.poll()) == nil; {
		row, err := r.seen(ctx, l)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			l.takeBack()
			return
		case err == nil && (row.State != wire.StateActive || row.Term != l.term && r.isRun(ctx, l, row)):
			if suspended && row.State == wire.StateActive {
				r.undo(ctx, l, row)
			}
			return
		case active && !suspended && time.Now().After(until):
			suspended = true
			r.p.config.Log.Warn("nobody meters a lease and its credit is used up: its devices are suspended", "lease", l.id, "channel", l.terms.ID())
			call, cancel := context.WithTimeout(ctx, l.deps.timing.callTimeout)
			err := l.deps.placer.Suspend(call, l.allocation)
			cancel()
			if err != nil {
				r.p.config.Log.Error("a lease that nobody meters could not be suspended", "lease", l.id, "error", err)
				return
			}
		}
	}
}

// seen is the lease's row, if the database answers.
func (r *replicas) seen(ctx context.Context, l *lease) (leaseRow, error) {
	ask, cancel := context.WithTimeout(ctx, ownerTimeout)
	defer cancel()
	return r.p.store.byID(ask, l.id.Hex())
}

// isRun reports whether somebody runs a lease that was taken over. Who could not read what he needs for that, as this gateway
// itself under its new name, gives it back: nobody meters it meanwhile.
func (r *replicas) isRun(ctx context.Context, l *lease, row leaseRow) bool {
	if r.p.running(l.terms.ID()) != nil {
		return true
	}
	ask, cancel := context.WithTimeout(ctx, ownerTimeout)
	defer cancel()
	lives, err := r.p.store.lives(ask, row.Owner)
	return err == nil && lives && row.Owner != r.identity()
}

// halt suspends a lease that this gateway took over and cannot go on with. Who goes on with it has it resumed.
func (r *replicas) halt(ctx context.Context, row leaseRow) error {
	a, err := row.allocation()
	if err != nil || row.State != wire.StateActive || a.Node != "" { // a node does so by itself
		return err
	}
	r.p.config.Log.Warn("a lease of a gateway that is gone cannot be taken up, and its credit is used up: its devices are suspended", "lease", row.ID, "channel", row.Channel)
	call, cancel := context.WithTimeout(ctx, r.p.config.CallTimeout)
	defer cancel()
	return r.p.config.Allocator.Suspend(call, a)
}

// undo gives the devices of a lease that runs again back to its renter.
func (r *replicas) undo(ctx context.Context, l *lease, row leaseRow) {
	a := l.allocation
	a.Term = row.Term
	call, cancel := context.WithTimeout(ctx, l.deps.timing.callTimeout)
	defer cancel()
	if err := l.deps.placer.Resume(call, a); err != nil && ctx.Err() == nil { // else the process stops, and the next one resumes it
		r.p.config.Log.Error("a lease that runs again could not be resumed: it ends", "lease", l.id, "error", err)
		_ = r.p.store.command(ctx, l.id, "could not be resumed")
	}
}

// lasts is how long what may still be owed of a lease serves all of its devices.
func (l *lease) lasts() time.Duration {
	v := l.look()
	owed, err := l.owedAt(uint64(l.meter.Allocated()))
	limit := l.limit(&v)
	if err != nil || !limit.Gt(&owed) {
		return 0
	}
	var left uint256.Int
	left.Sub(&limit, &owed)
	const step, most = 100 * time.Millisecond, 24 * time.Hour
	n := sort.Search(int(most/step), func(n int) bool {
		cost, err := l.price.Charge(uint64(len(l.allocation.Devices)) * uint64(time.Duration(n)*step))
		return err != nil || cost.Gt(&left)
	})
	return time.Duration(max(n-1, 0)) * step
}
