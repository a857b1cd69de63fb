package sessionscheme

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Leasing finds the lease that a request is for, or begins it.
type Leasing struct {
	core
	admission *Admission
}

// join finds the lease that runs on the channel or begins one. Who comes with
// a proof instead of the secret gets a new secret; who comes with the secret of
// a lease that is over gets the end of that one, and not another lease.
func (d *Leasing) join(r *Request, s channel.State) (*lease.Lease, string, error) {
	defer d.Starts.Lock(s.ID)()
	defer func() { r.Seat.Release() }()
	if r.over != nil {
		return r.over, "", nil
	}
	l, err := d.Leases.Serving(r.Context(), s)
	if err != nil {
		return nil, "", err
	}
	if l == nil {
		over, err := d.remembered(r, s)
		if over != nil || err != nil {
			return over, "", err
		}
		if s, err = d.Payee.State(r.Context(), s.ID); err != nil { // it may have closed, or paid for a lease, while we waited
			return nil, "", err
		}
		if err := d.admission.safeToServe(r.Context(), s); err != nil { // another gateway may close it, or this one for a renter that hung up
			return nil, "", err
		}
		return d.Start(r, s)
	}
	if r.Cred.Payload.LeaseSecret != "" {
		return l, "", nil
	}
	secret, err := d.renewSecret(r.Context(), l)
	if err != nil {
		d.Leases.Detach(l)
	}
	return l, secret, err
}

// Start begins a lease on an open channel, on the reservation of its request.
func (d *Leasing) Start(r *Request, s channel.State) (*lease.Lease, string, error) {
	ctx, offer, gpus := r.Context(), r.Offer, r.GPUs
	if s.Behind() {
		var err error
		if s, err = d.Payee.CatchUp(ctx, s.ID, s.Settled); err != nil {
			return nil, "", err
		}
	}
	begins, carried, err := d.Store.Carry(ctx, s)
	if err != nil {
		return nil, "", err
	}
	s.Spent = begins
	if err := errors.Join(d.admission.canBegin(offer, gpus), d.admission.canPay(s, offer, gpus)); err != nil {
		return nil, "", err
	}
	if err := d.Debts.Creditworthy(ctx, s, offer, gpus); err != nil {
		return nil, "", err
	}
	if r.Seat, err = d.GPUs.Seated(ctx, r.Seat, offer.ClassID(), s.ID, gpus); err != nil {
		return nil, "", err
	}
	id, secret := r.Seat.Lease, randomHash().Hex()[2:]
	row := leasestore.Row{
		ID: id.Hex(), Channel: s.ID.Hex(), Offer: offer.Hash.Hex(), SecretHash: hashSecret(secret), GPUs: gpus,
		Allocation: "{}", OwedBefore: begins.Dec(), Carried: int64(carried), State: wire.StateAllocating, StartedAt: time.Now().UnixNano(),
	}
	l, err := d.Leases.BeginLease(ctx, row, s, offer, nil)
	if err != nil {
		return nil, "", err
	}
	return l, secret, nil
}

// remembered returns the lease that the request's secret belongs to, if it is over:
// its records can still be read, and its GPUs no longer be reached.
func (d *Leasing) remembered(r *Request, s channel.State) (*lease.Lease, error) {
	row, ok, err := d.Store.Leases.Newest(r.Context(), s.ID)
	if err != nil || !ok || row.State != wire.StateEnded || !sameSecret(r.Cred.Payload.LeaseSecret, row.SecretHash) {
		return nil, err
	}
	a, err := row.Allocated()
	if err != nil {
		return nil, err
	}
	a.Access = json.RawMessage("null")
	before, err := channel.ParseAmount(row.OwedBefore)
	if err != nil {
		return nil, err
	}
	binding, err := row.MeterBinding()
	if err != nil {
		return nil, err
	}
	v := lease.View{State: leasestore.Ended, Reason: row.Reason, Version: 2, Owed: s.Spent, Accepted: s.Accepted, Deposit: s.Deposit}
	last, err := d.Store.Records.Last(r.Context(), a.LeaseID)
	v.Shows(last)
	return lease.Past(lease.Spec{ID: a.LeaseID, Terms: s.Terms, Allocation: a, OwedBefore: before, Deps: lease.Deps{Store: d.Store},
		Offer: &wire.SignedOffer{Hash: common.HexToHash(row.Offer)}, Binding: binding}, v), err
}

// renewSecret gives a renter that proved itself, but lost the secret, a new
// one. The old one no longer works.
func (d *Leasing) renewSecret(ctx context.Context, l *lease.Lease) (string, error) {
	secret := randomHash().Hex()[2:]
	return secret, d.Store.Leases.SetSecret(ctx, l.ID, hashSecret(secret))
}
