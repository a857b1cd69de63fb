package sdk

import (
	"context"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common"
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
		failed = errors.Join(failed, r.recover(ctx, row))
	}
	return errors.Join(err, failed)
}

// tidy ends leases that are ours in the table and nowhere else: the database
// failed us when they began or ended.
func (r *replicas) tidy(ctx context.Context) error {
	rows, err := r.p.store.owned(ctx, r.identity(), time.Now().Add(-2*r.p.config.CallTimeout))
	for _, row := range rows {
		err = errors.Join(err, r.forget(ctx, row))
	}
	return err
}

func (r *replicas) forget(ctx context.Context, row leaseRow) error {
	id := common.HexToHash(row.Channel)
	if r.p.running(id) != nil {
		return nil
	}
	defer r.p.starts.Lock(id)() // nothing begins or closes meanwhile
	now, err := r.p.store.byID(ctx, row.ID)
	if err != nil || now.State == string(leaseEnded) || now.Term != row.Term || r.p.running(id) != nil {
		return err
	}
	return r.p.abandon(ctx, now, "the database failed when it began or ended")
}

// rescue takes up one lease if its devices can be reached from here, and leaves
// it to the others if not.
func (r *replicas) rescue(ctx context.Context, row leaseRow) error {
	if r.p.running(common.HexToHash(row.Channel)) != nil || r.refuses(row.ID) {
		return nil
	}
	before := row.Owner
	silent, err := r.p.store.silent(ctx, before)
	if err != nil {
		return err
	}
	if ok, err := r.p.store.take(ctx, &row, r.identity()); err != nil || !ok {
		return err
	}
	err = r.p.adopt(ctx, row)
	if err == nil {
		r.p.config.Log.Info("lease taken over from a gateway that is gone", "lease", row.ID, "gateway", before, "term", row.Term)
		return nil
	}
	if !errors.Is(err, errNotHere) {
		r.p.config.Log.Warn("lease of a gateway that is gone is ended", "lease", row.ID, "reason", err)
		if err = r.p.abandon(ctx, row, err.Error()); err == nil {
			return nil
		}
	}
	if silent > r.p.config.SuspendTimeout {
		return r.endBooks(ctx, row, "its host is gone")
	}
	r.refuse(row.ID)
	r.p.config.Log.Warn("lease of a gateway that is gone is left to the others", "lease", row.ID, "reason", err)
	return r.p.store.giveBack(ctx, row, before)
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
	ok, err := r.p.store.take(ctx, &row, r.identity())
	if err != nil || !ok {
		return err
	}
	if r.p.nodes != nil { // from here it can be reached as from anywhere
		if err := r.p.adopt(ctx, row); !errors.Is(err, errNotHere) {
			return err
		}
	}
	return r.endBooks(ctx, row, reason)
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
	if err := r.p.store.setHeld(ctx, row.ID, 1); err != nil {
		return err
	}
	r.p.config.Log.Warn("lease ended without its devices: they are taken back when their host is there again", "lease", row.ID, "reason", reason)
	return r.p.store.setState(ctx, a.LeaseID, row.Term, leaseEnded, reason, time.Now().Unix())
}

// recover takes the devices of an ended lease back, if they are here.
func (r *replicas) recover(ctx context.Context, row leaseRow) error {
	if r.refuses(row.ID) {
		return nil
	}
	a, err := row.allocation()
	if err != nil {
		return err
	}
	if adopter, ok := r.p.deps.allocator.(Adopter); ok && len(a.Devices) > 0 {
		if err := adopter.Adopt(ctx, a); err != nil {
			r.refuse(row.ID)
			return nil // not here
		}
	}
	call, cancel := context.WithTimeout(ctx, r.p.config.CallTimeout)
	defer cancel()
	if err := r.p.deps.allocator.Release(call, a); err != nil {
		r.refuse(row.ID)
		return err
	}
	return r.p.store.setHeld(ctx, row.ID, 0)
}
