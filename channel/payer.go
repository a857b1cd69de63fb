package channel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/fault"
)

// PayerState is a payer's channel. Amounts are cumulative and in base units.
type PayerState struct {
	ID      common.Hash
	Terms   Terms
	Deposit uint256.Int // meant for it, until the chain was observed
	Settled uint256.Int // paid out by the chain
	// Signed is the most that a voucher was, or is being, signed for: what this
	// channel can cost us.
	Signed uint256.Int
	// Signature is of the voucher for Signed; empty where a crash came between the
	// decision to sign and the signature.
	Signature        []byte
	Status           Status
	Closed           bool   // by us: no voucher is made, whatever the chain says
	CloseRequestedAt uint64 // unix seconds; zero: no close is pending
	UpdatedAt        time.Time
}

// observe takes the chain's word. A pending channel that the chain does not
// show yet stays pending.
func (s *PayerState) observe(v ChainView) {
	if s.Status == Pending && v == (ChainView{}) {
		return
	}
	s.Deposit, s.Settled, s.CloseRequestedAt = v.Deposit, v.Settled, v.CloseRequestedAt
	s.Status = v.status()
	if s.Closed && s.Status == Open {
		s.Status = Closing
	}
}

// Left returns what can still be signed for.
func (s PayerState) Left() uint256.Int { return minus(s.Deposit, s.Signed) }

// Caps bound what a payer's key signs away, in base units. They are not limits
// until they are set: the zero value refuses every payment. Use MaxAmount for
// "no cap". Each token is counted by itself.
type Caps struct {
	PerChannel uint256.Int // deposited in or signed for on one channel
	PerPayee   uint256.Int // signed for to one payee, over all channels, for ever
	PerDay     uint256.Int // signed for in one UTC day, to anyone
}

// The caps by name, as in CapError.Cap.
const (
	CapChannel = "per channel"
	CapPayee   = "per payee"
	CapDay     = "per day"
)

// CapError says which cap stood before the key. Nothing was signed.
type CapError struct {
	Channel common.Hash
	Cap     string      // CapChannel, CapPayee or CapDay
	Limit   uint256.Int // the cap
	Wanted  uint256.Int // the total that the payment would have made
}

// Error names the cap, the limit and the amount.
func (e *CapError) Error() string {
	return fmt.Sprintf("channel %s: payment refused: it would make %s %s, the cap is %s: raise the cap or stop paying",
		e.Channel, e.Wanted.Dec(), e.Cap, e.Limit.Dec())
}

// Budget is what was signed away so far, beside one channel's own total.
type Budget struct {
	Payee uint256.Int // to the channel's payee, over all channels
	Day   uint256.Int // in the day asked for, to anyone
}

// PayerStore keeps a payer's channels and budget. Every method that changes
// something returns when the change is on disk, or an error and nothing changed.
type PayerStore interface {
	// Create keeps a channel unless its id is already kept, and returns what is
	// kept then.
	Create(ctx context.Context, s PayerState) (PayerState, error)
	// Update changes one channel: it runs change on the current state and what
	// was signed away to its payee and in day (YYYY-MM-DD), alone on all of them,
	// and keeps the state unless change returns an error. By how much Signed
	// grew, the budget grows in the same transaction. change may run more than
	// once.
	Update(ctx context.Context, id common.Hash, day string, change func(*PayerState, Budget) error) (PayerState, error)
	// Load returns one channel, or ErrUnknown.
	Load(ctx context.Context, id common.Hash) (PayerState, error)
	// List returns the channels of the given statuses, or all, in order of id.
	List(ctx context.Context, statuses ...Status) ([]PayerState, error)
}

// Payer signs vouchers. It is safe for concurrent use, also by several processes
// on one store.
type Payer struct {
	Store  PayerStore
	Signer Signer
	Domain Domain
	Caps   Caps
	Now    func() time.Time // what day it is; nil means time.Now
}

// Open keeps a channel that is about to be funded with deposit. It comes before
// any authorization or transaction is signed: a channel that holds our money is
// then never lost track of. It is idempotent.
func (p *Payer) Open(ctx context.Context, t Terms, deposit uint256.Int) error {
	if err := p.Domain.Holds(t); err != nil {
		return err
	}
	id := t.ID()
	if t.Signer() != p.Signer.Address() {
		return fmt.Errorf("channel %s: %w: its vouchers are for %s to sign, the key is of %s",
			id, ErrTerms, t.Signer(), p.Signer.Address())
	}
	if err := p.checkDeposit(id, deposit); err != nil {
		return err
	}
	_, err := p.Store.Create(ctx, PayerState{ID: id, Terms: t, Deposit: deposit, Status: Pending})
	return err
}

// Fund records that a channel's deposit is about to be deposit in all. It comes
// before the top-up is signed, like Open, so that a voucher may go with it. It
// takes back a Close of ours; a close that the chain has stays until Observe
// sees it cancelled.
func (p *Payer) Fund(ctx context.Context, id common.Hash, deposit uint256.Int) error {
	if err := p.checkDeposit(id, deposit); err != nil {
		return err
	}
	_, err := p.update(ctx, id, func(s *PayerState, _ Budget) error {
		if s.Status == Finalized {
			return fmt.Errorf("channel %s: %w: open another", id, ErrFinalized)
		}
		s.Deposit, s.Closed = deposit, false
		if s.Status == Closing && s.CloseRequestedAt == 0 {
			s.Status = Open
		}
		return nil
	})
	return err
}

func (p *Payer) checkDeposit(id common.Hash, deposit uint256.Int) error {
	if err := checkAmount(deposit); err != nil {
		return fmt.Errorf("channel %s: deposit: %w", id, err)
	}
	if deposit.Gt(&p.Caps.PerChannel) {
		return &CapError{id, CapChannel, p.Caps.PerChannel, deposit}
	}
	return nil
}

// Observe records what the chain says of a channel; the newest word counts. A
// channel that we Closed stays closed to payments.
func (p *Payer) Observe(ctx context.Context, id common.Hash, v ChainView) (PayerState, error) {
	if err := v.validate(id); err != nil {
		return PayerState{}, err
	}
	return p.update(ctx, id, func(s *PayerState, _ Budget) error {
		s.observe(v)
		return nil
	})
}

// Close ends payments on a channel, before its close is signed or sent: no
// voucher is made for it any more. The channel stays listed until Observe sees
// it finalized, since our money is in it.
func (p *Payer) Close(ctx context.Context, id common.Hash) (PayerState, error) {
	return p.update(ctx, id, func(s *PayerState, _ Budget) error {
		s.Closed = true
		if s.Status != Finalized {
			s.Status = Closing
		}
		return nil
	})
}

// Pay returns a voucher for cumulative base units. The same amount gives the
// same voucher; zero is allowed, as an initial voucher that pays nothing.
//
// In Session an amount below an earlier one is ErrLower. In BatchSettlement,
// where a voucher is a ceiling and less may be charged under it, the next one
// may be lower: it is signed, and what the channel can cost stays the highest.
//
// The amount is on disk, and counted against the caps, before the key is asked;
// the voucher is on disk before it is returned. A crash between the two is
// healed by paying the same amount again.
//
// The errors are CapError, ErrLower, ErrExceedsDeposit, ErrUnknown, ErrClosing,
// ErrFinalized, ErrAmount, and those of the signer and the store.
func (p *Payer) Pay(ctx context.Context, id common.Hash, cumulative uint256.Int) (Voucher, error) {
	if err := checkAmount(cumulative); err != nil {
		return Voucher{}, fmt.Errorf("channel %s: %w", id, err)
	}
	s, err := p.reserve(ctx, id, cumulative)
	if err != nil {
		return Voucher{}, err
	}
	fault.Point(fault.VoucherReserved)
	if s.Signed == cumulative && len(s.Signature) > 0 {
		return Voucher{id, cumulative, s.Signature}, nil
	}
	v, err := p.Domain.Sign(ctx, p.Signer, id, cumulative)
	if err != nil {
		return Voucher{}, err
	}
	fault.Point(fault.VoucherSigned)
	if cumulative.Lt(&s.Signed) {
		return v, nil // what it could cost is on disk, and so is a voucher for more
	}
	if err := p.keep(ctx, v); err != nil {
		return Voucher{}, err
	}
	fault.Point(fault.VoucherStored)
	return v, nil
}

// reserve commits us to an amount before there is a signature for it.
func (p *Payer) reserve(ctx context.Context, id common.Hash, cumulative uint256.Int) (PayerState, error) {
	return p.update(ctx, id, func(s *PayerState, spent Budget) error {
		if err := p.allow(*s, spent, cumulative); err != nil {
			return err
		}
		if cumulative.Gt(&s.Signed) {
			s.Signed, s.Signature = cumulative, nil
		}
		return nil
	})
}

// allow says whether the key may sign for cumulative. What was reserved already
// needs no budget again.
func (p *Payer) allow(s PayerState, spent Budget, cumulative uint256.Int) error {
	if err := live(s.ID, s.Terms, s.Status); err != nil {
		return err
	}
	if err := p.Domain.Holds(s.Terms); err != nil {
		return err
	}
	if cumulative.Lt(&s.Signed) && !s.Terms.Scheme.rules().lower {
		return fmt.Errorf("channel %s: %w: %s, signed for %s already", s.ID, ErrLower, cumulative.Dec(), s.Signed.Dec())
	}
	if !cumulative.Gt(&s.Signed) {
		return nil
	}
	if cumulative.Gt(&s.Deposit) {
		return fmt.Errorf("channel %s: %w: %s, deposit %s: top up first", s.ID, ErrExceedsDeposit, cumulative.Dec(), s.Deposit.Dec())
	}
	return p.Caps.allow(s.ID, cumulative, minus(cumulative, s.Signed), spent)
}

// allow holds a payment that brings a channel to total, by growth, to the caps.
func (c Caps) allow(id common.Hash, total, growth uint256.Int, spent Budget) error {
	for _, cap := range []struct {
		name          string
		limit, before uint256.Int
	}{
		{CapChannel, c.PerChannel, minus(total, growth)},
		{CapPayee, c.PerPayee, spent.Payee},
		{CapDay, c.PerDay, spent.Day},
	} {
		var wanted uint256.Int
		if _, overflow := wanted.AddOverflow(&cap.before, &growth); overflow || wanted.Gt(&cap.limit) {
			return &CapError{id, cap.name, cap.limit, wanted}
		}
	}
	return nil
}

// keep puts the signature on disk. A voucher that a newer one overtook meanwhile
// is not handed out where vouchers only grow.
func (p *Payer) keep(ctx context.Context, v Voucher) error {
	_, err := p.update(ctx, v.ChannelID, func(s *PayerState, _ Budget) error {
		if s.Signed != v.Cumulative && s.Terms.Scheme.rules().lower {
			return nil
		}
		if s.Signed != v.Cumulative {
			return fmt.Errorf("channel %s: %w: %s, signed for %s meanwhile",
				v.ChannelID, ErrLower, v.Cumulative.Dec(), s.Signed.Dec())
		}
		s.Signature = v.Signature
		return nil
	})
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("channel %s: voucher for %s was signed and not kept: pay it again: %w",
			v.ChannelID, v.Cumulative.Dec(), err)
	}
	return err
}

func (p *Payer) update(ctx context.Context, id common.Hash, change func(*PayerState, Budget) error) (PayerState, error) {
	now := time.Now
	if p.Now != nil {
		now = p.Now
	}
	return p.Store.Update(ctx, id, now().UTC().Format(time.DateOnly), change)
}

// State returns a channel, or ErrUnknown.
func (p *Payer) State(ctx context.Context, id common.Hash) (PayerState, error) {
	return p.Store.Load(ctx, id)
}

// Channels returns the channels of the given statuses, or all, in order of id.
func (p *Payer) Channels(ctx context.Context, statuses ...Status) ([]PayerState, error) {
	return p.Store.List(ctx, statuses...)
}
