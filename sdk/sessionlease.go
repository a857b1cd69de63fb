package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// start begins a lease on an open channel, on the reservation of its request.
func (d *session) start(r *request, s channel.State) (*lease.Lease, string, error) {
	ctx, offer, gpus := r.Context(), r.offer, r.gpus
	if s.Behind() {
		var err error
		if s, err = d.payee.CatchUp(ctx, s.ID, s.Settled); err != nil {
			return nil, "", err
		}
	}
	begins, carried, err := d.store.Carry(ctx, s)
	if err != nil {
		return nil, "", err
	}
	s.Spent = begins
	if err := errors.Join(d.canBegin(offer, gpus), d.canPay(s, offer, gpus)); err != nil {
		return nil, "", err
	}
	if err := d.debts.Creditworthy(ctx, s, offer, gpus); err != nil {
		return nil, "", err
	}
	if r.seat, err = d.gpus.Seated(ctx, r.seat, s.ID, gpus); err != nil {
		return nil, "", err
	}
	id, secret := r.seat.Lease, randomHash().Hex()[2:]
	row := leasestore.Row{
		ID: id.Hex(), Channel: s.ID.Hex(), Offer: offer.Hash.Hex(), SecretHash: hashSecret(secret), GPUs: gpus,
		Allocation: "{}", OwedBefore: begins.Dec(), Carried: int64(carried), State: wire.StateAllocating, StartedAt: time.Now().UnixNano(),
	}
	l, err := d.leases.BeginLease(ctx, row, s, offer, nil)
	if err != nil {
		return nil, "", err
	}
	return l, secret, nil
}

// canServe refuses a lease that could not be begun, before anybody's money
// moves for it.
func (d *session) canServe(ctx context.Context, id common.Hash, offer wire.SignedOffer, gpus int) error {
	if err := d.canBegin(offer, gpus); err != nil {
		return err
	}
	return d.gpus.Room(ctx, id, gpus, 0)
}

// canBegin is canServe for who has its GPUs reserved.
func (d *session) canBegin(offer wire.SignedOffer, gpus int) error {
	if err := d.leases.TakesLeases(); err != nil {
		return err
	}
	if offer.ExpiredAt(time.Now()) {
		return wire.PaymentExpired.With("the offer %s has expired: ask again for the price", offer.Hash)
	}
	if least := wire.MinCredit(gpus, d.config.Tick); d.config.Credit < least {
		return wire.NoCapacity.With("%d GPUs need a credit of %s, this provider gives %s", gpus, least, d.config.Credit)
	}
	return nil
}

// canPay refuses a lease that would be suspended at once: the deposit must
// have room for one record of every GPU, after what is owed already.
func (d *session) canPay(s channel.State, offer wire.SignedOffer, gpus int) error {
	price, err := offer.Price()
	if err != nil {
		return err
	}
	need, err := wire.MinLease(price, gpus, d.config.RecordEvery, d.config.Tick)
	if err != nil {
		return err
	}
	need.Add(&need, &s.Spent)
	if need.Gt(&s.Deposit) {
		return wire.InsufficientBalance.With("channel %s holds %s base units and has spent %s, a lease of %d GPU(s) begins with %s: top it up, or open another",
			s.ID, s.Deposit.Dec(), s.Spent.Dec(), gpus, need.Dec())
	}
	return nil
}

// remembered is the lease that the request's secret belongs to, if it is over:
// its records can still be read, and its GPUs no longer be reached.
func (d *session) remembered(r *request, s channel.State) (*lease.Lease, error) {
	row, ok, err := d.store.Leases.Newest(r.Context(), s.ID)
	if err != nil || !ok || row.State != wire.StateEnded || !sameSecret(r.cred.Payload.LeaseSecret, row.SecretHash) {
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
	last, err := d.store.Records.Last(r.Context(), a.LeaseID)
	v.Shows(last)
	return lease.Past(lease.Spec{ID: a.LeaseID, Terms: s.Terms, Allocation: a, OwedBefore: before, Deps: lease.Deps{Store: d.store},
		Offer: &wire.SignedOffer{Hash: common.HexToHash(row.Offer)}, Binding: binding}, v), err
}

// safeToServe refuses a lease on a channel that somebody can close below what the
// lease will be paid: the holder of a key that is not ours any more, or whoever
// sends a close that is signed already. No voucher that comes after is worth anything
// then.
func (d *session) safeToServe(ctx context.Context, s channel.State) error {
	if s.Status != channel.Open {
		return fmt.Errorf("channel %s: %w", s.ID, channel.ErrClosing)
	}
	if s.Terms.Payee != d.config.Key.Address() {
		return wire.NotServed.With("channel %s pays %s, whose key this provider does not use any more: ask again for the price and open another", s.ID, s.Terms.Payee)
	}
	closes, err := d.closeStands(ctx, s.ID)
	if err != nil {
		return err
	}
	if closes {
		return fmt.Errorf("channel %s: %w: its close is signed, and can be sent by anyone who has it", s.ID, channel.ErrClosing)
	}
	return d.outbox.IsWhole(ctx)
}

// closeStands reports whether a close of a channel was mined, or still can be: it is
// in flight under this key, or was signed for whoever sends it, and its deadline has
// not passed by the chain's clock. What became of its own transaction does not matter
// then: the calldata was public.
func (d *session) closeStands(ctx context.Context, id common.Hash) (bool, error) {
	closes, err := d.sender.Find(ctx, id, chain.Close)
	if err != nil {
		return false, err
	}
	for _, tx := range closes {
		if d.sender.InForce(tx) {
			return true, nil
		}
		deadline, signed := chain.CloseDeadline(tx.Call)
		if !signed {
			continue
		}
		now, err := d.escrow.Now(ctx)
		if err != nil {
			return false, err
		}
		if uint64(now.Unix()) <= deadline {
			return true, nil
		}
	}
	return false, nil
}

// worthSending refuses a top-up that we would send and that is not worth its gas.
func (d *session) worthSending(amount uint256.Int) error {
	if !amount.Lt(&d.minTransfer) {
		return nil
	}
	return wire.PaymentInsufficient.With("the top-up is %s, the least that this provider sends for others is %s: add more, or send the transaction yourself and give its hash",
		amount.Dec(), d.minTransfer.Dec())
}

// reserveFor keeps what a session's request wants, if it wants a lease to begin.
func (d *session) reserveFor(r *request, id common.Hash) (err error) {
	if r.Method == http.MethodGet && !d.leases.Begun(r.Context(), id) {
		r.seat, err = d.gpus.Reserve(r.Context(), id, r.gpus, 0)
	}
	return err
}
