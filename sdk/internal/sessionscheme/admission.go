package sessionscheme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Admission refuses what could not be served or would not be paid, before anybody's money moves for it.
type Admission struct {
	core
	access   *access
	channels *Channels
}

// worthFunding refuses a deposit that we would send for a request that would be
// refused after it: for a lease that cannot be begun or paid, or with a voucher
// that would not be taken. Of a payer's own transaction nothing is known yet, and
// its money has moved.
func (d *Admission) worthFunding(r *Request, deposit *wire.Payload) error {
	after, known, err := d.funded(r, deposit)
	if err != nil {
		return err
	}
	if known && deposit.Action == wire.ActionOpen {
		return nil // an open that is sent again moves nothing
	}
	if !known && deposit.Type == wire.TypeAuthorization && after.Deposit.Lt(&r.Offer.MinDeposit.Int) {
		return wire.PaymentInsufficient.With("the deposit is %s, the offer wants at least %s", after.Deposit.Dec(), r.Offer.MinDeposit.Dec())
	}
	if err := d.worthStarting(r, after, known, deposit.Type); err != nil {
		return err
	}
	if deposit.Type != wire.TypeAuthorization || r.Cred.Payload.CumulativeAmount == nil {
		return nil
	}
	voucher := channel.Voucher{ChannelID: after.ID, Cumulative: r.Cred.Payload.CumulativeAmount.Int, Signature: r.Cred.Payload.Signature}
	if r.Cred.Payload.Action == wire.ActionOpen {
		voucher.Signature = r.Cred.Payload.Voucher()
	}
	if voucher.Cumulative.IsZero() {
		return d.Payee.Verify(r.Context(), after.Terms, voucher)
	}
	_, err = d.Payee.Judge(r.Context(), after, voucher)
	return err
}

// funded returns a channel as a deposit would leave it, and whether it is known here.
func (d *Admission) funded(r *Request, deposit *wire.Payload) (after channel.State, known bool, err error) {
	var value uint256.Int
	if deposit.Type == wire.TypeAuthorization {
		value = deposit.Authorization.Value.Int
	}
	after, err = d.find(r.Context(), deposit.ChannelID)
	if errors.Is(err, channel.ErrUnknown) && deposit.Action == wire.ActionOpen {
		terms, err := d.channels.termsOf(r, deposit)
		return channel.State{ID: deposit.ChannelID, Terms: terms, Status: channel.Open, Deposit: value}, false, err
	}
	if err == nil && deposit.Action == wire.ActionTopUp {
		after.Deposit.Add(&after.Deposit, &value)
	}
	return after, err == nil, err
}

// worthStarting refuses a request for a lease that could not be given.
func (d *Admission) worthStarting(r *Request, after channel.State, known bool, deposit string) error {
	if r.Method != http.MethodGet {
		return nil
	}
	if known {
		if _, _, err := d.access.shown(r, after, "attach"); err != nil {
			return err
		}
	}
	if d.Leases.Begun(r.Context(), after.ID) {
		return nil
	}
	if ahead := r.Cred.Payload.CumulativeAmount; ahead != nil && ahead.Gt(&after.Accepted) {
		after.Accepted = ahead.Int // verified and taken before the lease begins
	}
	err := d.safeToServe(r.Context(), after)
	if err == nil {
		err = d.CanServe(r.Context(), after.ID, r.Offer, r.GPUs)
	}
	if err == nil {
		err = d.Debts.Creditworthy(r.Context(), after, r.Offer, r.GPUs)
	}
	if err == nil && deposit == wire.TypeAuthorization {
		err = d.canPay(after, r.Offer, r.GPUs)
	}
	return err
}

// CanServe refuses a lease that could not be begun, before anybody's money
// moves for it.
func (d *Admission) CanServe(ctx context.Context, id common.Hash, offer wire.SignedOffer, gpus int) error {
	if err := d.canBegin(offer, gpus); err != nil {
		return err
	}
	return d.GPUs.Room(ctx, offer.ClassID(), id, gpus, 0)
}

// canBegin refuses a lease as CanServe does, to who has its GPUs reserved.
func (d *Admission) canBegin(offer wire.SignedOffer, gpus int) error {
	if err := d.Leases.TakesLeases(); err != nil {
		return err
	}
	now, err := d.Leases.Of(offer.ClassID())
	switch {
	case err != nil: // the provider was started with other classes since
		return err
	case !offer.Sells(now.Offer): // or gave the name to other GPUs, which would be counted for those that are let
		return wire.PaymentExpired.With("the offer %s is for other GPUs than this provider has by that name now: ask again for the price", offer.Hash)
	case offer.ExpiredAt(time.Now()):
		return wire.PaymentExpired.With("the offer %s has expired: ask again for the price", offer.Hash)
	}
	if least := wire.MinCredit(gpus, d.Tick); d.Credit < least {
		return wire.NoCapacity.With("%d GPUs need a credit of %s, this provider gives %s", gpus, least, d.Credit)
	}
	return nil
}

// canPay refuses a lease that would be suspended at once: the deposit must
// have room for one record of every GPU, after what is owed already.
func (d *Admission) canPay(s channel.State, offer wire.SignedOffer, gpus int) error {
	price, err := offer.Price()
	if err != nil {
		return err
	}
	need, err := wire.MinLease(price, gpus, d.RecordEvery, d.Tick)
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

// safeToServe refuses a lease on a channel that somebody can close below what the
// lease will be paid: the holder of a key that is not ours any more, or whoever
// sends a close that is signed already. No voucher that comes after is worth anything
// then.
func (d *Admission) safeToServe(ctx context.Context, s channel.State) error {
	if s.Status != channel.Open {
		return fmt.Errorf("channel %s: %w", s.ID, channel.ErrClosing)
	}
	if s.Terms.Payee != d.Key.Address() {
		return wire.NotServed.With("channel %s pays %s, whose key this provider does not use any more: ask again for the price and open another", s.ID, s.Terms.Payee)
	}
	closes, err := d.closeStands(ctx, s.ID)
	if err != nil {
		return err
	}
	if closes {
		return fmt.Errorf("channel %s: %w: its close is signed, and can be sent by anyone who has it", s.ID, channel.ErrClosing)
	}
	return d.Outbox.IsWhole(ctx)
}

// closeStands reports whether a close of a channel was mined, or still can be: it is
// in flight under this key, or was signed for whoever sends it, and its deadline has
// not passed by the chain's clock. What became of its own transaction does not matter
// then: the calldata was public.
func (d *Admission) closeStands(ctx context.Context, id common.Hash) (bool, error) {
	closes, err := d.Sender.Find(ctx, id, chain.Close)
	if err != nil {
		return false, err
	}
	for _, tx := range closes {
		if d.Sender.InForce(tx) {
			return true, nil
		}
		deadline, signed := chain.CloseDeadline(tx.Call)
		if !signed {
			continue
		}
		now, err := d.Escrow.Now(ctx)
		if err != nil {
			return false, err
		}
		if uint64(now.Unix()) <= deadline {
			return true, nil
		}
	}
	return false, nil
}
