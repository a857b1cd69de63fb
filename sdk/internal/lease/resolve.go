package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Restore resolves the leases of an earlier run.
func (h *Manager) Restore(ctx context.Context) error {
	rows, err := h.Store.Leases.Unfinished(ctx)
	if err != nil {
		return fmt.Errorf("leases of the last run: %w", err)
	}
	for i, row := range rows {
		if row.State == wire.StateEnded && row.AtNode() {
			continue // nodes.collect asks for it
		}
		if err := h.Resolve(ctx, row, placement.Locate(ctx, h.Deps.Placer, row, rows[i+1:]), ""); err != nil && !errors.Is(err, ErrHeld) {
			return fmt.Errorf("lease %s of the last run could not be taken up, nothing of it is lost: start again: %w", row.ID, err)
		}
	}
	return h.Forgotten.TakeBack(ctx)
}

// keepRests has devices that could not be metered rest over a restart, and at all gateways of the database, until the process stops. A
// gateway over nodes has none.
func (h *Manager) keepRests(ctx context.Context) {
	if h.Remote != nil {
		return
	}
	rests := &inventory.Sharing{Book: h.Store.Rests, Sick: h.Deps.Sick, Alone: !h.Store.DB.Shared(), Log: h.Deps.Log}
	rests.Pass(ctx)
	h.Go(rests.Run)
}

// ErrHeld is a lease that has ended, and whose devices are still to be taken back.
var ErrHeld = errors.New("its devices could not be taken back yet")

// Resolve does what is next for a lease that no process runs, by its state and by where its devices are (placement.Locate):
//
//	             here                           on another host             in a later lease
//	allocating   taken back, ended              ended, held                 ended
//	active,      goes on; where it never can,   final record, ended,        ended
//	suspended    taken back, ended              held
//	ending       taken back, ended              ended, held                 ended
//	ended, held  taken back, held no more       held                        held no more
//
// What cannot be taken back is held (ErrHeld), and tried again. Of a process that is alone there is no other host: it takes back what it does not find, too.
// Any other error is of this moment: another try goes on from there. The reason is for a lease that ends because its devices are on another host; empty: that.
func (h *Manager) Resolve(ctx context.Context, row leasestore.Row, where error, reason string) error {
	if _, undone := h.undone.Load(row.ID); undone || row.State == wire.StateAllocating && row.Placed() {
		return h.undo(ctx, row, where)
	}
	switch {
	case row.State == wire.StateEnding, row.State == wire.StateEnded:
		reason = cmp.Or(row.Reason, "its final record was written")
	case errors.Is(where, inventory.ErrTaken):
		reason = where.Error()
	case errors.Is(where, placement.ErrNotHere):
		reason = cmp.Or(reason, where.Error())
		if err := h.finalize(ctx, row); err != nil {
			return err
		}
	default:
		err := where
		if err == nil {
			err = h.adopt(ctx, row)
		}
		if !isOver(err) {
			return err
		}
		reason = err.Error()
	}
	return h.giveBack(ctx, row, where, reason)
}

// giveBack ends a lease that no process runs in the two steps of expire, and has its devices taken back where they can be.
func (h *Manager) giveBack(ctx context.Context, row leasestore.Row, where error, reason string) error {
	a, err := row.Allocated()
	if err != nil {
		return err
	}
	if row.State != wire.StateEnded {
		h.Deps.Log.Warn("lease that does not run is ended", "lease", row.ID, "channel", row.Channel, "reason", reason)
		if err := h.Store.Leases.SetState(ctx, a.LeaseID, row.Term, leasestore.Ending, reason, cmp.Or(row.EndedAt, time.Now().Unix())); err != nil {
			return err
		}
	}
	var held error
	switch {
	case errors.Is(where, inventory.ErrTaken): // they were taken back
	case errors.Is(where, placement.ErrNotHere) && h.Deps.Tenure != nil:
		held = where
	default:
		held = h.release(ctx, a)
	}
	err = h.Store.Leases.SetEnded(ctx, a.LeaseID, row.Term, reason, held != nil)
	if err != nil || held == nil {
		return err
	}
	h.Deps.Log.Warn("devices of an ended lease could not be taken back: it is tried again", "lease", row.ID, "error", held)
	return fmt.Errorf("lease %s: %w: %w", row.ID, ErrHeld, held)
}

// finalize states the final record of a lease whose devices are on another host. Nothing is billed for the time that nobody metered. What a node meters it
// signs itself, and what must not be signed here is not.
func (h *Manager) finalize(ctx context.Context, row leasestore.Row) error {
	a, err := row.Allocated()
	if err != nil || a.Node != "" {
		return err
	}
	last, err := h.Store.Records.Last(ctx, a.LeaseID)
	if err != nil || last != nil && last.Final {
		return err
	}
	s, err := h.Channel(ctx, row)
	if err != nil {
		return err
	}
	l, err := h.Load(ctx, row, s, a, last)
	if err == nil {
		err = h.mayGoOn(ctx, l, row)
	}
	switch {
	case isOver(err):
		return nil
	case err != nil:
		return err
	}
	l.Meter.Pause()
	if err = l.Records.Make(ctx, true); l.Fence.Aborted.Load() {
		return nil
	}
	return err
}

// release takes the devices of a lease back that does not run any more, and is cut off when others may do so.
func (h *Manager) release(ctx context.Context, a gpu.Allocation) error {
	call, cancel := context.WithTimeout(ctx, h.Deps.Timing.CallTimeout)
	defer cancel()
	if h.Deps.Tenure != nil {
		defer context.AfterFunc(h.Deps.Tenure(), cancel)()
	}
	return h.Deps.Placer.Release(call, a)
}

// TakeBackHeld tries again to take back what could not be when its lease ended, and ends what could not be begun, as where a disk fails for a
// moment: each CallTimeout, until the process stops. Gateways that share a database do so when they sweep.
func (h *Manager) TakeBackHeld() {
	h.Go(func(ctx context.Context) {
		for chain.Pause(ctx, h.Deps.Timing.CallTimeout) == nil {
			if err := errors.Join(h.resolveStrays(ctx), h.Forgotten.TakeBack(ctx)); err != nil && ctx.Err() == nil {
				h.Deps.Log.Error("devices of leases that do not run", "error", err)
			}
		}
	})
}

// resolveStrays resolves the leases that have devices and do not run, but what nodes still have of ended ones.
func (h *Manager) resolveStrays(ctx context.Context) error {
	rows, err := h.Store.Leases.Unfinished(ctx)
	for _, row := range rows {
		if unlock, free := h.Busy.TryLock(common.HexToHash(row.ID)); free { // otherwise it begins
			if failed := h.resolveStray(ctx, row.ID); !errors.Is(failed, ErrHeld) { // which is logged
				err = errors.Join(err, failed)
			}
			unlock()
		}
	}
	return err
}

// resolveStray looks at a lease anew: it may have begun, or ended, since it was listed. What a lease has that runs by now stays with that one.
func (h *Manager) resolveStray(ctx context.Context, id string) error {
	row, err := h.Store.Leases.ByID(ctx, id)
	ended := row.State == wire.StateEnded
	if err != nil || h.Runs(row) != nil || ended && (row.AtNode() || row.Held == 0) {
		return err
	}
	var where error
	for _, other := range h.All() {
		where = cmp.Or(where, row.Spare(other.Allocation))
	}
	if where == nil {
		where = placement.Locate(ctx, h.Deps.Placer, row, nil)
	}
	if where == nil && !ended && row.State != wire.StateEnding {
		where = errUnbegun
	}
	return h.Resolve(ctx, row, where, "")
}

const errUnbegun = OverError("it could not be begun")

// undo ends a lease that did not begin. Its renter was told nothing of it and is charged nothing: where a node meters it the row says first that none
// does, and it ends there as one whose node's answer was lost (remote.Nodes.Place). What cannot be written now is tried again by resolveStray.
func (h *Manager) undo(ctx context.Context, row leasestore.Row, where error) error {
	if row.AtNode() {
		h.undone.Store(row.ID, true)
		if err := h.Store.Leases.Unplace(ctx, &row); err != nil {
			return err
		}
		h.undone.Delete(row.ID)
	}
	return h.giveBack(ctx, row, where, errUnbegun.Error())
}

// OverError is why a lease can go on nowhere and never: it is ended. Any other error of adopt is of this moment or of this host, and ends nothing.
type OverError string

func isOver(err error) bool {
	var over OverError
	return errors.As(err, &over) || errors.Is(err, placement.ErrNoAdopter) || errors.Is(err, placement.ErrReclaimed) || errors.Is(err, leasestore.ErrRolledBack)
}

// adopt goes on with a lease whose devices are here.
func (h *Manager) adopt(ctx context.Context, row leasestore.Row) error {
	if row.State == wire.StateAllocating {
		return OverError("it was not allocated yet")
	}
	a, err := row.Allocated()
	if err != nil {
		return err
	}
	last, err := h.Store.Records.Last(ctx, a.LeaseID)
	if err != nil {
		return err
	}
	if last != nil && last.Final {
		return OverError("its final record was written")
	}
	s, err := h.Channel(ctx, row)
	if err != nil {
		return err
	}
	if placement.ForOneRequest(a) || a.Shared && s.Terms.Scheme == channel.BatchSettlement {
		return OverError("it was one request's, which ended with the program")
	}
	over := h.overOn(s)
	if over != "" && a.Node == "" {
		return OverError(over)
	}
	l, err := h.Load(ctx, row, s, a, last)
	if err != nil {
		return err
	}
	if err := h.mayGoOn(ctx, l, row); err != nil {
		return err
	}
	if l.unsure = l.own != nil && row.State == wire.StateActive; l.unsure {
		l.Meter.Pause()
	}
	if err := h.launch(l, leasestore.State(row.State), s, last, func() error { return nil }); err != nil || over == "" {
		return err
	}
	h.EndSoon(l, over) // when its node has told the rest
	return nil
}

// overOn says why no lease goes on on a channel: it closes, or who has the key that it pays can close it below what was vouchered. It is empty while one may.
func (h *Manager) overOn(s channel.State) string {
	if s.Status != channel.Open {
		return "its channel is " + s.Status.String()
	}
	if h.PaidTo != (common.Address{}) && s.Terms.Payee != h.PaidTo {
		return fmt.Sprintf("its channel pays %s, and this provider's key is %s now", s.Terms.Payee, h.PaidTo)
	}
	return ""
}

// mayGoOn refuses to sign on for a lease whose later records this database has forgotten, whose records another key than ours signs, or whose
// devices are not what its offer sells: no renter would take what we sign.
func (h *Manager) mayGoOn(ctx context.Context, l *Lease, row leasestore.Row) error {
	if row.Command == leasestore.ErrRolledBack.Error() || l.Fence.Aborted.Load() {
		return leasestore.ErrRolledBack // another gateway knows it, or the chain
	}
	if !l.MetersHere() {
		return nil // its node signs, and knows what it signed
	}
	key := l.Records.recorder.Signer()
	if bound := row.SigningKey(*l.Offer); bound != key {
		return OverError(fmt.Sprintf("its records are signed with metering key %s, and this host has %s now", bound, key))
	}
	if err := h.Offered.Are(l.Allocation.Devices, l.Records.recorder.Sells); err != nil {
		return OverError(err.Error())
	}
	return h.unforked(ctx, l)
}

// unforked is leasestore.ErrRolledBack where more was signed of a lease than its row knows.
func (h *Manager) unforked(ctx context.Context, l *Lease) error {
	mark, err := h.Deps.Marks.Get(ctx, l.Records.recorder.Signer(), l.ID)
	if err != nil || mark.Sequence == 0 {
		return err
	}
	last, _ := l.Records.recorder.Last()
	newest := last
	if l.Records.draft != nil {
		newest = l.Records.draft.Record
	}
	switch {
	case mark.Sequence > newest.Sequence,
		mark.Sequence == newest.Sequence && mark.Digest != l.Records.recorder.Digest(newest),
		mark.Sequence == last.Sequence && mark.Digest != l.Records.recorder.Digest(last):
		return leasestore.ErrRolledBack
	}
	return nil
}
