package sessionscheme

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Records compares records that renters show, and those that were signed, with those that the database has: what was used before a
// database was lost or rolled back is charged, and not served once more.
type Records struct{ core }

// heed looks at the newest record that a renter has of a lease on its channel.
// If we signed it and the database does not have it, the database was rolled back,
// and the file of high-water marks with it, or we would know: the lease ends
// without another signature. The record is kept, and what counts as used is charged
// (usedBy). It returns the lease as it ended then, and nil if nothing is amiss.
func (d *Records) heed(r *Request, s channel.State) (*lease.Lease, error) {
	s, err := d.Remember(r.Context(), s)
	if err != nil {
		return nil, err
	}
	shown, err := wire.ParseShownRecord(r.Header)
	if shown == nil || err != nil || s.Status == channel.Finalized {
		return nil, err
	}
	rec := shown.Record
	if rec.ChannelID != s.ID || !d.signed(r.Context(), s, *shown) {
		return nil, nil // nobody's word
	}
	row, known, err := d.Store.Leases.Find(r.Context(), rec.LeaseID)
	if err != nil {
		return nil, err
	}
	if has, err := d.has(r.Context(), row, known, rec); has || err != nil {
		return nil, err
	}
	d.Log.Error("a renter shows a usage record of ours that the database does not have: was it restored from a backup? the lease ends, and the record is kept",
		"lease", rec.LeaseID, "channel", s.ID, "shown", rec.Sequence, "stored", row.Sequence)
	used, err := d.usedBy(r, s, rec)
	if err == nil {
		err = d.Store.Shown.Put(r.Context(), *shown, used)
	}
	if err != nil {
		return nil, err
	}
	if known {
		if err := d.Mute(r.Context(), s.ID, row); err != nil {
			return nil, err
		}
	}
	return d.rolledBack(s, row, *shown)
}

// Remember charges a channel what the newest record said that was signed on this host, where the database has forgotten
// that record: else what it was vouchered for is served once more. A record that is in the database and about to be signed is
// not forgotten, and is charged when it is stored: its lease could not go on, if it were cut off between. Records that nodes sign
// are with them.
func (d *Records) Remember(ctx context.Context, s channel.State) (channel.State, error) {
	owed, err := d.Marks.Owed(ctx, s.ID)
	if err != nil || !owed.Gt(&s.Spent) {
		return s, err
	}
	row, known, err := d.Store.Leases.Newest(ctx, s.ID)
	if err != nil {
		return s, err
	}
	if known {
		_, _, pending, err := row.Resume(nil)
		if err != nil || pending != nil && !pending.Record.Owed.Lt(&owed) {
			return s, err
		}
	}
	charged, err := d.Payee.Charge(ctx, s.ID, owed)
	if errors.Is(err, channel.ErrLower) { // its lease wrote that record meanwhile, and a later one
		return d.Payee.State(ctx, s.ID)
	}
	return charged, err
}

// usedBy returns what counts as used on a channel whose lease is shown a record of that the database does not have: what the record
// states, or, where the file of what was signed here is as old as the database, the voucher beside it if that is more, for the
// record may be an old one.
func (d *Records) usedBy(r *Request, s channel.State, rec metering.Record) (uint256.Int, error) {
	signed, err := d.Marks.Owed(r.Context(), s.ID)
	if err != nil || !signed.Lt(&rec.Owed) {
		return u256.Max(rec.Owed, signed), err
	}
	used, err := vouchered(d.Escrow.Domain(), r, s)
	return u256.Max(rec.Owed, used), err
}

// signed reports a record that was signed with a metering key of ours: that of now, the one that the record's offer names, or
// the one that we bound to its lease, as its renter shows where the database has forgotten the lease.
func (d *Records) signed(ctx context.Context, s channel.State, shown wire.ShownRecord) bool {
	signer, err := eip712.Recover(shown.Record.Digest(metering.Domain(s.Terms.ChainID, s.Terms.Escrow)), shown.Signature)
	if err != nil {
		return false
	}
	if signer == d.Meter {
		return true
	}
	if b := shown.Binding; b != nil {
		return common.Address(b.Meter) == signer && b.Of(shown.Record.LeaseID, s.ID, shown.Record.OfferHash) &&
			b.SignedBy(s.Terms.Payee, s.Terms.ChainID, s.Terms.Escrow)
	}
	offer, err := d.Store.Offers.Get(ctx, shown.Record.OfferHash)
	return err == nil && common.Address(offer.Meter) == signer
}

// has reports whether the database has a record, or soon will: a node delivers what
// it signed.
func (d *Records) has(ctx context.Context, row leasestore.Row, known bool, rec metering.Record) (bool, error) {
	if !known {
		return false, nil
	}
	if a, err := row.Allocated(); err != nil || a.Node != "" {
		return true, err
	}
	if uint64(row.Sequence) < rec.Sequence {
		return false, nil
	}
	kept, err := d.Store.Records.After(ctx, rec.LeaseID, rec.Sequence-1, 1)
	return len(kept) == 0 || kept[0].Record == rec, err
}

// rolledBack returns the end of a lease as its renter is shown it.
func (d *Records) rolledBack(s channel.State, row leasestore.Row, shown wire.ShownRecord) (*lease.Lease, error) {
	spec := lease.Spec{ID: shown.Record.LeaseID, Terms: s.Terms, OwedBefore: shown.Record.OwedBefore, Deps: lease.Deps{Store: d.Store},
		Offer: &wire.SignedOffer{Hash: shown.Record.OfferHash}, Binding: shown.Binding}
	if row.ID != "" {
		var err error
		if spec.Allocation, err = row.Allocated(); err != nil {
			return nil, err
		}
	}
	spec.Allocation.Access = json.RawMessage("null")
	return lease.Past(spec, lease.View{State: leasestore.Ended, Reason: leasestore.ErrRolledBack.Error(), Version: 2, Sequence: shown.Record.Sequence,
		Owed: shown.Record.Owed, Nanos: shown.Record.Nanos, Accepted: s.Accepted, Deposit: s.Deposit}), nil
}
