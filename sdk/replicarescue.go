package sdk

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// hopeless is how long a gateway does not try a lease again that it could not
// take up.
const hopeless = 30 * time.Second

// sweep resolves what nobody runs: leases of gateways that died, those of ours that do not run here (the database failed us when they began
// or ended, or its clock was set), and devices of leases that ended without them, or that a restored database has forgotten.
func (r *replicas) sweep(ctx context.Context) error {
	rows, err := r.p.store.Leases.Orphans(ctx, r.identity(), time.Now().Add(-2*r.p.config.CallTimeout))
	r.reclaim.Do(func() { err = errors.Join(err, r.p.leases.TakeBackForgotten(ctx)) }) // what cannot be taken back is said each time
	for _, row := range rows {
		if row.State == wire.StateEnded && row.AtNode() {
			continue // remote.Nodes.Collect asks for it
		}
		if failed := r.resolve(ctx, row, ""); !errors.Is(failed, lease.ErrHeld) {
			err = errors.Join(err, failed)
		}
	}
	return err
}

// resolve is the lessor's, by one gateway at a time, which owns the lease meanwhile. What is done in its name is cut off when others
// may take the lease: then it is an orphan, and tried again under the next name.
func (r *replicas) resolve(ctx context.Context, row leasestore.Row, wish string) error {
	unlock, free := r.p.leases.Busy.TryLock(common.HexToHash(row.ID))
	if !free {
		return nil
	}
	defer unlock()
	if r.p.leases.Runs(row) != nil || wish == "" && r.refuses(row.ID) {
		return nil
	}
	tenure, owner := r.tenureNow(), r.identity()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(tenure, cancel)()
	if err := r.resolveAs(ctx, owner, row, wish); tenure.Err() == nil {
		return err
	}
	return nil
}

// resolveAs is resolve in a gateway's name. A lease whose devices are on another host is left to the gateways there, unless its
// renter wishes that it ends, or for as long as one that does not pay would have them.
func (r *replicas) resolveAs(ctx context.Context, owner string, row leasestore.Row, wish string) error {
	now, err := r.p.store.Leases.ByID(ctx, row.ID)
	if err != nil || now.Term != row.Term || now.State != row.State || now.Held != row.Held {
		return err // somebody was faster, or it ended by itself
	}
	row = now
	silent, err := r.members().Silent(ctx, row.Owner)
	if err != nil {
		return err
	}
	where := placement.Locate(ctx, r.p.leases.Deps.Placer, row, nil) // before it is taken: who lives after all keeps it
	if err := ctx.Err(); err != nil {
		return err
	}
	if errors.Is(where, placement.ErrNotHere) && wish == "" && (row.State == wire.StateEnded || silent <= r.p.config.SuspendTimeout) {
		r.refuse(row.ID)
		r.p.config.Log.Warn("lease of a gateway that is gone is left to the others", "lease", row.ID, "reason", where)
		return nil
	}
	before := row.Owner
	if ok, err := r.p.store.Leases.TakeOver(ctx, &row, owner); err != nil || !ok {
		return err
	}
	err = r.p.leases.Resolve(ctx, row, where, cmp.Or(wish, "its host is gone"))
	switch {
	case errors.Is(err, lease.ErrHeld):
		r.refuse(row.ID)
	case err != nil:
		if where == nil && !errors.Is(err, lease.ErrMetered) && silent > r.p.config.Credit && ctx.Err() == nil {
			err = errors.Join(err, r.halt(ctx, row)) // it may be unpaid, and nobody meters it
		}
		return errors.Join(err, r.p.store.Leases.GiveBack(ctx, row, before))
	case r.p.leases.Runs(row) != nil:
		r.p.config.Log.Info("lease taken over from a gateway that is gone", "lease", row.ID, "gateway", before, "term", row.Term)
	}
	return err
}

func (r *replicas) refuses(lease string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.refused[lease])
}

func (r *replicas) refuse(lease string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused[lease] = time.Now().Add(hopeless)
}
