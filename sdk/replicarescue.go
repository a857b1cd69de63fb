package sdk

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/wire"
)

// hopeless is how long a gateway does not try a lease again that it could not
// take up.
const hopeless = 30 * time.Second

// sweep takes up what nobody runs: leases of gateways that died, and devices of
// leases that ended without them.
func (r *replicas) sweep(ctx context.Context) error {
	rows, err := r.p.store.orphans(ctx)
	if err != nil {
		return err
	}
	for _, row := range rows {
		err = errors.Join(err, r.rescue(ctx, row))
	}
	err = errors.Join(err, r.tidy(ctx))
	stranded, failed := r.p.store.stranded(ctx)
	for _, row := range stranded {
		if row.atNode() {
			continue // nodes.collect asks for it
		}
		failed = errors.Join(failed, r.recover(ctx, row))
	}
	return errors.Join(err, failed)
}

// tidy takes up leases that are ours in the table and do not run here: the
// database failed us when they began or ended, or its clock was set.
func (r *replicas) tidy(ctx context.Context) error {
	rows, err := r.p.store.owned(ctx, r.identity(), time.Now().Add(-2*r.p.config.CallTimeout))
	for _, row := range rows {
		err = errors.Join(err, r.resume(ctx, row))
	}
	return err
}

// resume runs a lease that is ours in the table, or ends it if it can go on nowhere.
func (r *replicas) resume(ctx context.Context, row leaseRow) error {
	id := common.HexToHash(row.Channel)
	if r.p.running(id) != nil {
		return nil
	}
	defer r.p.starts.Lock(id)() // nothing begins or closes meanwhile
	now, err := r.p.store.byID(ctx, row.ID)
	if err != nil || now.State == wire.StateEnded || now.Term != row.Term || r.p.running(id) != nil {
		return err
	}
	err = r.p.adopt(ctx, now)
	if isOver(err) {
		r.p.config.Log.Warn("lease that did not run is ended", "lease", row.ID, "reason", err)
		err = r.p.abandon(ctx, now, err.Error())
	}
	return err
}

// rescue takes up one lease if its devices can be reached from here, and leaves
// it to the others if not. What fails for now ends nothing: it is tried again, here
// or by another gateway.
func (r *replicas) rescue(ctx context.Context, row leaseRow) error {
	if r.p.running(common.HexToHash(row.Channel)) != nil || r.refuses(row.ID) {
		return nil
	}
	before := row.Owner
	silent, err := r.p.store.silent(ctx, before)
	if err != nil {
		return err
	}
	a, err := row.allocation()
	if err == nil {
		err = r.p.reachable(ctx, a) // before it is taken: who lives after all keeps it
	}
	if errors.Is(err, errNotHere) {
		return r.leaveTo(ctx, row, silent, err)
	}
	if err != nil {
		return err
	}
	return r.taken(ctx, row, func(row leaseRow) error {
		err := r.p.adopt(ctx, row)
		if err == nil {
			r.p.config.Log.Info("lease taken over from a gateway that is gone", "lease", row.ID, "gateway", before, "term", row.Term)
		}
		if isOver(err) {
			r.p.config.Log.Warn("lease of a gateway that is gone is ended", "lease", row.ID, "reason", err)
			return r.p.abandon(ctx, row, err.Error())
		}
		if err == nil || errors.Is(err, errNotHere) || errors.Is(err, errMetered) || ctx.Err() != nil || silent <= r.p.config.Credit {
			return err
		}
		return errors.Join(err, r.halt(ctx, row)) // it may be unpaid, and nobody meters it
	})
}

// taken takes an orphan and goes on with it or ends it. Where that fails for now it is an orphan again: nobody runs a lease that
// was only taken, while its renter has the devices.
func (r *replicas) taken(ctx context.Context, row leaseRow, do func(leaseRow) error) error {
	before := row.Owner
	if ok, err := r.p.store.take(ctx, &row, r.identity()); err != nil || !ok {
		return err
	}
	err := do(row)
	if err != nil {
		err = errors.Join(err, r.p.store.giveBack(ctx, row, before))
	}
	return err
}

// leaveTo leaves a lease to the gateways that reach its devices, for as long as a
// renter that does not pay would have them.
func (r *replicas) leaveTo(ctx context.Context, row leaseRow, silent time.Duration, reason error) error {
	letAgain := row.State == wire.StateEnding && errors.Is(reason, inventory.ErrTaken)
	if letAgain || silent > r.p.config.SuspendTimeout {
		return r.taken(ctx, row, func(row leaseRow) error {
			if letAgain {
				return r.p.store.setEnded(ctx, common.HexToHash(row.ID), row.Term, row.Reason, false)
			}
			return r.endBooks(ctx, row, "its host is gone")
		})
	}
	r.refuse(row.ID)
	r.p.config.Log.Warn("lease of a gateway that is gone is left to the others", "lease", row.ID, "reason", reason)
	return nil
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

// closeBooks ends a lease whose host is gone, unless somebody else does it.
func (r *replicas) closeBooks(ctx context.Context, row leaseRow, reason string) error {
	return r.taken(ctx, row, func(row leaseRow) error {
		if r.p.nodes != nil { // from here it can be reached as from anywhere
			err := r.p.adopt(ctx, row)
			if isOver(err) {
				return r.p.abandon(ctx, row, err.Error())
			}
			if !errors.Is(err, errNotHere) {
				return err
			}
		}
		return r.endBooks(ctx, row, reason)
	})
}

// endBooks states the final record of a lease that is ours and ends it. Nothing
// is billed for the time that nobody metered. Its devices are out of reach: the
// gateway that can reach them takes them back (recover).
func (r *replicas) endBooks(ctx context.Context, row leaseRow, reason string) error {
	a, err := row.allocation()
	if err != nil {
		return err
	}
	s, err := r.p.payee.State(ctx, common.HexToHash(row.Channel))
	if err != nil {
		return err
	}
	last, err := r.p.store.last(ctx, a.LeaseID)
	if err != nil {
		return err
	}
	if a.Node == "" && len(a.Devices) > 0 && (last == nil || !last.Final) { // a node signs its own
		l, err := r.p.rebuild(ctx, row, s, a, last)
		if err != nil {
			return err
		}
		l.meter.Pause()
		if err := l.record(ctx, true); err != nil && !l.muted.Load() {
			return err
		}
	}
	r.p.config.Log.Warn("lease ended without its devices: they are taken back when their host is there again", "lease", row.ID, "reason", reason)
	return r.p.store.setEnded(ctx, a.LeaseID, row.Term, reason, true)
}

// recover takes the devices of an ended lease back, if they are here: at one gateway of
// the host, as the command of a slower one would run in the next renter's time. The
// claim lasts longer than the command may.
func (r *replicas) recover(ctx context.Context, row leaseRow) error {
	if r.refuses(row.ID) {
		return nil
	}
	name, owner := "release "+row.ID, newGatewayID()
	if ok, err := r.p.store.claim(ctx, name, owner, r.p.config.CallTimeout+claimTime); err != nil || !ok {
		return err
	}
	err := r.recoverAlone(ctx, row)
	return errors.Join(err, r.p.store.unclaim(context.WithoutCancel(ctx), name, owner))
}

// recoverAlone is recover with the claim, where nobody has done it since the row was
// read.
func (r *replicas) recoverAlone(ctx context.Context, row leaseRow) error {
	rows, err := r.p.store.stranded(ctx)
	if err != nil || !slices.ContainsFunc(rows, func(other leaseRow) bool { return other.ID == row.ID }) {
		return err
	}
	err = r.p.recover(ctx, row)
	if err != nil {
		r.refuse(row.ID)
	}
	if errors.Is(err, errNotHere) {
		return nil
	}
	return err
}
