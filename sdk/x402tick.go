package sdk

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// tick lets the channel's lease run on for one more window, or begins one, and
// answers when that was metered.
func (d *x402Desk) tick(ctx context.Context, r *x402Request, tab x402Tab, note x402Note) (*x402Answer, error) {
	l, err := d.attach(ctx, r, tab, &note)
	if err != nil {
		return nil, err
	}
	defer d.leases.detach(l)
	if err := d.await(ctx, l, uint64(note.Sequence)); err != nil {
		return nil, err
	}
	return d.ticked(ctx, tab, note)
}

// attach lets the lease that runs on a channel go on, or begins one, under what
// a request pays for. The caller owes a detach.
func (d *x402Desk) attach(ctx context.Context, r *x402Request, tab x402Tab, note *x402Note) (*lease, error) {
	defer d.starts.Lock(r.id)()
	defer func() { r.seat.release() }()
	l, err := d.leases.serving(ctx, tab.State)
	if err != nil {
		return nil, err
	}
	if l == nil {
		if r.seat, err = d.gpus.seated(ctx, r.seat, r.id, r.route.gpus); err != nil {
			return nil, err
		}
		note.Lease = r.seat.lease.Hex()
		if err := d.admit(ctx, r, *note, nil); err != nil {
			return nil, err
		}
		return d.let(ctx, r, tab, r.route.gpus, note.Lease)
	}
	if n := len(l.allocation.Devices); n != r.route.gpus {
		d.leases.detach(l)
		return nil, misfit(r, n)
	}
	v, _ := l.snapshot()
	note.Lease, note.Sequence = l.id.Hex(), int64(v.sequence)
	if err := d.admit(ctx, r, *note, l); err != nil {
		d.leases.detach(l)
		return nil, err
	}
	if l.price != d.price { // it ends with the record that answers this request, and the next one begins another
		if err := d.endNewest(ctx, r, "the price changed"); err != nil {
			d.leases.detach(l)
			return nil, err
		}
	}
	return l, nil
}

// endNewest ends the lease that runs on a request's channel, wherever it does: not one
// that began under another's claim.
func (d *x402Desk) endNewest(ctx context.Context, r *x402Request, reason string) error {
	row, ok, err := d.store.Leases.Newest(ctx, r.id)
	if err != nil || !ok {
		return err
	}
	if err := r.claim.Held(ctx); err != nil {
		return err
	}
	return d.leases.endLease(ctx, r.id, &row, reason)
}

// errConflict is a request that does not fit what runs on its channel.
var errConflict = wire.Problem{Type: "about:blank", Title: "Conflict", Status: http.StatusConflict}

// let begins a lease on a channel of x402. It has no secret: each request shows
// a voucher that only its payer can have signed.
func (d *x402Desk) let(ctx context.Context, r *x402Request, tab x402Tab, gpus int, id string) (*lease, error) {
	offer := d.leases.Offer()
	row := leasestore.Row{
		ID: id, Channel: tab.ID.Hex(), Offer: offer.Hash.Hex(), GPUs: gpus,
		Allocation: "{}", OwedBefore: tab.Spent.Dec(), State: wire.StateAllocating, StartedAt: time.Now().UnixNano(),
	}
	return d.leases.beginLease(ctx, row, tab.State, offer, r.claim)
}

// admit lets a lease use what a request pays for: on disk first, then in force.
// A lease that is not yet there, or runs at another gateway, finds it on disk.
// The last base unit of the voucher is never used: see outdate.
func (d *x402Desk) admit(ctx context.Context, r *x402Request, note x402Note, l *lease) error {
	most, err := note.reserves()
	if err != nil {
		return err
	}
	if err := d.notesOf(r).admit(ctx, note, most); err != nil {
		return err
	}
	if l != nil && !l.mirror {
		l.reserve(most)
	}
	return nil
}

// reserves is what a request may be charged up to, cumulative.
func (n x402Note) reserves() (uint256.Int, error) {
	most, err := channel.ParseAmount(n.MaxClaimable)
	if err == nil && most.IsZero() {
		err = errors.New("x402: a voucher over nothing reserves nothing")
	}
	most.SubUint64(&most, 1)
	return most, err
}

// await waits until a lease has a newer record. Where none comes, because its
// devices cannot be metered, the lease is asked for one of what there is.
func (d *x402Desk) await(ctx context.Context, l *lease, after uint64) error {
	patience := time.NewTimer(2*d.x.Window + d.x.Slack)
	defer patience.Stop()
	given := time.NewTimer(2*d.x.Window + d.x.Slack + time.Minute)
	defer given.Stop()
	for {
		v, changed := l.snapshot()
		if v.sequence > after {
			return nil
		}
		select {
		case <-changed:
		case <-l.done:
			if last, _ := l.snapshot(); last.sequence > after {
				return nil
			}
			return wire.Unavailable.With("the lease on channel %s stopped before anything was metered: nothing was charged, try again", l.terms.ID())
		case <-patience.C:
			l.cutNow()
		case <-given.C:
			return wire.Unavailable.With("nothing was metered on channel %s: nothing was charged, try again", l.terms.ID())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ticked is the answer to a tick, made from what is on disk: the first record
// after its admission says what it cost. It is the same each time.
func (d *x402Desk) ticked(ctx context.Context, tab x402Tab, note x402Note) (*x402Answer, error) {
	rec, row, err := d.recordOf(ctx, note)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, errors.New("x402: a tick without a record")
	}
	base, err := channel.ParseAmount(note.Base)
	if err != nil {
		return nil, err
	}
	a, err := row.Allocated()
	if err != nil {
		return nil, err
	}
	if row.State == wire.StateEnded {
		a.Access = json.RawMessage("null")
	}
	most, err := note.reserves()
	if err != nil {
		return nil, err
	}
	charged := u256.Min(rec.Owed, most)
	if base.Gt(&charged) {
		charged = base // it was paid for before
	}
	s, err := d.book.State(ctx, tab.ID)
	if err != nil {
		return nil, err
	}
	tab.State = s
	receipt := tab.receipt(note, base, charged)
	body, err := json.Marshal(wire.Tick{
		LeaseID: a.LeaseID, ChannelID: tab.ID, OfferHash: common.HexToHash(row.Offer), Devices: a.Devices, Access: a.Access,
		State: row.State, Charged: *receipt.ChargedAmount, Record: rec,
	})
	return &x402Answer{note: note, receipt: receipt, status: http.StatusOK, header: jsonHeader(), body: append(body, '\n')}, err
}

// recordOf finds the record that states what a tick used: nil if there is none.
func (d *x402Desk) recordOf(ctx context.Context, note x402Note) (*metering.SignedRecord, leasestore.Row, error) {
	row, err := d.store.Leases.ByID(ctx, note.Lease)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, row, nil // it could not be begun
	}
	if err != nil {
		return nil, row, fmt.Errorf("lease %s: %w", note.Lease, err)
	}
	records, err := d.store.Records.After(ctx, common.HexToHash(note.Lease), uint64(note.Sequence), 1)
	if err != nil || len(records) == 0 {
		return nil, row, err
	}
	return &records[0], row, nil
}
