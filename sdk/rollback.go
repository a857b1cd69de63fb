package sdk

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

// heedShown looks at the newest record that a renter has of a lease on its channel.
// If we signed it and the database does not have it, the database was rolled back,
// and the file of high-water marks with it, or we would know: the lease ends
// without another signature. The record is kept, and what counts as used is charged
// (usedBy). It returns the lease as it ended then, and nil if nothing is amiss.
func (p *Provider) heedShown(r *request, s channel.State) (*lease.Lease, error) {
	s, err := p.remember(r.Context(), s)
	if err != nil {
		return nil, err
	}
	shown, err := wire.ParseShownRecord(r.Header)
	if shown == nil || err != nil || s.Status == channel.Finalized {
		return nil, err
	}
	rec := shown.Record
	if rec.ChannelID != s.ID || !p.signed(r.Context(), s, *shown) {
		return nil, nil // nobody's word
	}
	row, known, err := p.store.Leases.Find(r.Context(), rec.LeaseID)
	if err != nil {
		return nil, err
	}
	if has, err := p.has(r.Context(), row, known, rec); has || err != nil {
		return nil, err
	}
	p.config.Log.Error("a renter shows a usage record of ours that the database does not have: was it restored from a backup? the lease ends, and the record is kept",
		"lease", rec.LeaseID, "channel", s.ID, "shown", rec.Sequence, "stored", row.Sequence)
	used, err := p.usedBy(r, s, rec)
	if err == nil {
		err = p.store.Shown.Put(r.Context(), *shown, used)
	}
	if err != nil {
		return nil, err
	}
	if known {
		if err := p.muteLease(r.Context(), s.ID, row); err != nil {
			return nil, err
		}
	}
	return p.rolledBack(s, row, *shown)
}

// remember charges a channel what the newest record said that was signed on this host, where the database has forgotten
// that record: else what it was vouchered for is served once more. A record that is in the database and about to be signed is
// not forgotten, and is charged when it is stored: its lease could not go on, if it were cut off between. Records that nodes sign
// are with them.
func (p *Provider) remember(ctx context.Context, s channel.State) (channel.State, error) {
	owed, err := p.leases.Deps.Marks.Owed(ctx, s.ID)
	if err != nil || !owed.Gt(&s.Spent) {
		return s, err
	}
	row, known, err := p.store.Leases.Newest(ctx, s.ID)
	if err != nil {
		return s, err
	}
	if known {
		_, _, pending, err := row.Resume(nil)
		if err != nil || pending != nil && !pending.Record.Owed.Lt(&owed) {
			return s, err
		}
	}
	charged, err := p.payee.Charge(ctx, s.ID, owed)
	if errors.Is(err, channel.ErrLower) { // its lease wrote that record meanwhile, and a later one
		return p.payee.State(ctx, s.ID)
	}
	return charged, err
}

// usedBy is what counts as used on a channel whose lease is shown a record of that the database does not have: what the record
// states, or, where the file of what was signed here is as old as the database, the voucher beside it if that is more, for the
// record may be an old one.
func (p *Provider) usedBy(r *request, s channel.State, rec metering.Record) (uint256.Int, error) {
	signed, err := p.leases.Deps.Marks.Owed(r.Context(), s.ID)
	if err != nil || !signed.Lt(&rec.Owed) {
		return u256.Max(rec.Owed, signed), err
	}
	used, err := vouchered(p.escrow.Domain(), r, s)
	return u256.Max(rec.Owed, used), err
}

// vouchered is what a request's voucher is over that is within the deposit; zero if it has none.
func vouchered(domain channel.Domain, r *request, s channel.State) (uint256.Int, error) {
	payload := &r.cred.Payload
	if payload.CumulativeAmount == nil || payload.CumulativeAmount.IsZero() {
		return uint256.Int{}, nil
	}
	v := channel.Voucher{ChannelID: s.ID, Cumulative: payload.CumulativeAmount.Int, Signature: payload.Voucher()}
	if err := domain.Verify(v, s.Terms.Signer()); err != nil {
		return uint256.Int{}, err
	}
	return u256.Min(v.Cumulative, s.Deposit), nil
}

// signed reports a record that was signed with a metering key of ours: that of now, the one that the record's offer names, or
// the one that we bound to its lease, as its renter shows where the database has forgotten the lease.
func (p *Provider) signed(ctx context.Context, s channel.State, shown wire.ShownRecord) bool {
	signer, err := eip712.Recover(shown.Record.Digest(metering.Domain(s.Terms.ChainID, s.Terms.Escrow)), shown.Signature)
	if err != nil {
		return false
	}
	if signer == p.leases.MeterKey.Address() {
		return true
	}
	if b := shown.Binding; b != nil {
		return common.Address(b.Meter) == signer && b.Of(shown.Record.LeaseID, s.ID, shown.Record.OfferHash) &&
			b.SignedBy(s.Terms.Payee, s.Terms.ChainID, s.Terms.Escrow)
	}
	offer, err := p.store.Offers.Get(ctx, shown.Record.OfferHash)
	return err == nil && common.Address(offer.Meter) == signer
}

// has reports whether the database has a record, or soon will: a node delivers what
// it signed.
func (p *Provider) has(ctx context.Context, row leasestore.Row, known bool, rec metering.Record) (bool, error) {
	if !known {
		return false, nil
	}
	if a, err := row.Allocated(); err != nil || a.Node != "" {
		return true, err
	}
	if uint64(row.Sequence) < rec.Sequence {
		return false, nil
	}
	kept, err := p.store.Records.After(ctx, rec.LeaseID, rec.Sequence-1, 1)
	return len(kept) == 0 || kept[0].Record == rec, err
}

// muteLease ends a lease, wherever it runs, without another signature.
func (p *Provider) muteLease(ctx context.Context, channelID common.Hash, row leasestore.Row) error {
	if l := p.running(channelID); l != nil && l.ID.Hex() == row.ID {
		l.Abort()
		select {
		case <-l.Done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if p.replicas == nil || row.State == wire.StateEnded {
		return nil
	}
	return p.replicas.end(ctx, common.HexToHash(row.ID), leasestore.ErrRolledBack.Error())
}

// rolledBack is the end of a lease as its renter is shown it.
func (p *Provider) rolledBack(s channel.State, row leasestore.Row, shown wire.ShownRecord) (*lease.Lease, error) {
	spec := lease.Spec{ID: shown.Record.LeaseID, Terms: s.Terms, OwedBefore: shown.Record.OwedBefore, Deps: lease.Deps{Store: p.store},
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
