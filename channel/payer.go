package channel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/internal/u256"
)

// PayerState is a payer's channel. Amounts are cumulative and in base units.
type PayerState struct {
	ID      common.Hash
	Terms   Terms
	Deposit uint256.Int // meant for it, until the chain was observed
	// Authorized is what the channel may come to hold by what was signed and may
	// still be sent; zero once the chain shows as much. It counts in the caps
	// whatever the chain says meanwhile: somebody else's deposit is not ours.
	Authorized uint256.Int
	Settled    uint256.Int // paid out by the chain
	// Signed is the most that a voucher was, or is being, signed for. The chain's
	// word never raises it: an endpoint that lies has nothing signed away.
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
	if v.Finalized || !v.Deposit.Lt(&s.Authorized) {
		s.Authorized = uint256.Int{}
	}
	s.Status = v.status()
	if s.Closed && s.Status == Open {
		s.Status = Closing
	}
}

// Cost returns what the channel can cost us: what was signed for, or what the
// chain says was settled, if that is more, by a voucher that this store does not
// know of. It counts in the caps. Nothing is signed for it.
func (s PayerState) Cost() uint256.Int {
	if s.Settled.Gt(&s.Signed) {
		return s.Settled
	}
	return s.Signed
}

// Left returns what can still be signed for.
func (s PayerState) Left() uint256.Int { return u256.SaturatingSub(s.Deposit, s.Cost()) }

// committed is what the payer has at stake in the channel: what it can cost, and
// what it holds or may come to hold.
func (s PayerState) committed() uint256.Int {
	most := s.Cost()
	if s.Status == Finalized {
		return most
	}
	for _, held := range []uint256.Int{s.Deposit, s.Authorized} {
		if held.Gt(&most) {
			most = held
		}
	}
	return most
}

// Locked returns what the channel holds, or may come to hold, beyond what was
// it can cost: the payer's own money, which it does not have until it is refunded.
func (s PayerState) Locked() uint256.Int { return u256.SaturatingSub(s.committed(), s.Cost()) }

// Unsigned returns what the channel holds, or may come to hold, beyond what was
// signed for. No day counts what the chain alone says was settled, so that this is
// locked in Caps.PerDay: whoever lies about it makes no room there.
func (s PayerState) Unsigned() uint256.Int { return u256.SaturatingSub(s.committed(), s.Signed) }

// Caps bound what a payer's key puts at stake, in base units: a deposit counts
// until it is refunded, a voucher for ever. They are not limits until they are
// set: the zero value refuses every deposit and payment. Use MaxAmount for "no
// cap". Each token is counted by itself.
type Caps struct {
	PerChannel uint256.Int // deposited in or signed for on one channel
	PerPayee   uint256.Int // signed for to one payee, over all channels, for ever, and locked with it now
	PerDay     uint256.Int // signed for in one UTC day, to anyone, and locked now
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
	Wanted  uint256.Int // the total that the payment or deposit would have made
}

// Error names the cap, the limit and the amount.
func (e *CapError) Error() string {
	return fmt.Sprintf("channel %s: refused by a cap: it would make %s base units %s, the cap is %s: raise the cap, stop paying, or get back what lies in other channels",
		e.Channel, e.Wanted.Dec(), e.Cap, e.Limit.Dec())
}

// Budget is what was committed so far, beside one channel's own total.
type Budget struct {
	Payee uint256.Int // signed for to the channel's payee, over all channels
	Day   uint256.Int // signed for in the day asked for, to anyone
	// Locked sums over the other channels of the token: PayerState.Locked of those
	// with the payee, and PayerState.Unsigned of all, and adds what Unseen counts
	// today: own is of the channel itself. Only deposits ask for it.
	Locked func() (own, payee, all uint256.Int, err error)
}

// PayerStore keeps a payer's channels and budget. Every method that changes
// something returns when the change is on disk, or an error and nothing changed.
type PayerStore interface {
	// Create keeps a channel unless its id is already kept, and returns what is
	// kept then. allow sees the budget like change in Update, and only where the
	// channel is new; nothing is kept if it returns an error.
	Create(ctx context.Context, s PayerState, day string, allow func(Budget) error) (PayerState, error)
	// Update changes one channel: it runs change on the current state and what
	// was signed away to its payee and in day (YYYY-MM-DD), alone on all of them,
	// and keeps the state unless change returns an error. The payee's budget follows
	// its Cost in the same transaction, and the day's, unless that is empty, what more
	// was Signed. change may run more than once.
	Update(ctx context.Context, id common.Hash, day string, change func(*PayerState, Budget) error) (PayerState, error)
	// Budget returns a channel, zero but for its id if it is not kept, and what
	// Update would show for it.
	Budget(ctx context.Context, t Terms, day string) (PayerState, Budget, error)
	// Unseen keeps what Payer.Unseen counts in a day, once for each nonce.
	Unseen(ctx context.Context, t Terms, nonce common.Hash, amount uint256.Int, day string) error
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
	if err := p.checkTerms(t); err != nil {
		return err
	}
	id := t.ID()
	if err := checkAmount(deposit); err != nil {
		return fmt.Errorf("channel %s: deposit: %w", id, err)
	}
	s := PayerState{ID: id, Terms: t, Deposit: deposit, Authorized: deposit, Status: Pending}
	_, err := p.Store.Create(ctx, s, p.day(), func(spent Budget) error {
		return p.Caps.fund(PayerState{ID: id}, s, spent)
	})
	return err
}

// Adopt keeps a channel that the chain shows and this store does not know, as
// after the loss of a database, or where somebody else deposited first. It asks
// no cap: nothing is signed by it, and what was claimed was signed before. One
// whose vouchers another key signs is kept to be closed, and not paid. It is
// idempotent.
func (p *Payer) Adopt(ctx context.Context, t Terms, v ChainView) (PayerState, error) {
	id := t.ID()
	if err := errors.Join(p.Domain.Holds(t), v.validate(id)); err != nil {
		return PayerState{}, err
	}
	s := PayerState{ID: id, Terms: t, Status: Pending}
	if _, err := p.Store.Create(ctx, s, "", func(Budget) error { return nil }); err != nil {
		return PayerState{}, err
	}
	return p.Observe(ctx, id, v)
}

func (p *Payer) checkTerms(t Terms) error {
	if err := p.Domain.Holds(t); err != nil {
		return err
	}
	if t.Signer() != p.Signer.Address() {
		return fmt.Errorf("channel %s: %w: its vouchers are for %s to sign, the key is of %s",
			t.ID(), ErrTerms, t.Signer(), p.Signer.Address())
	}
	return nil
}

// Fund records that a channel's deposit is about to be deposit in all. It comes
// before the top-up is signed, like Open, so that a voucher may go with it. A
// channel that we Closed gets no more: ErrClosing, until Reopen.
//
// A deposit in all that is lower than before says that what was authorized
// cannot arrive any more; zero for a pending channel, that it was never funded.
// One that may still arrive is part of deposit, or the caps are passed.
func (p *Payer) Fund(ctx context.Context, id common.Hash, deposit uint256.Int) error {
	if err := checkAmount(deposit); err != nil {
		return fmt.Errorf("channel %s: deposit: %w", id, err)
	}
	_, err := p.update(ctx, id, func(s *PayerState, spent Budget) error {
		if s.Status == Finalized {
			return fmt.Errorf("channel %s: %w: open another", id, ErrFinalized)
		}
		if s.Closed && deposit.Gt(&s.Deposit) && deposit.Gt(&s.Authorized) {
			return fmt.Errorf("channel %s: %w: we closed it, and it gets no more: get its deposit back, or reopen it", id, ErrClosing)
		}
		before := *s
		s.Deposit, s.Authorized = deposit, deposit
		return p.Caps.fund(before, *s, spent)
	})
	return err
}

// Unseen has an authorization that was given away, and that ended at until without
// the chain showing it, count in all caps as what is locked does until that UTC day
// is over: who alone tells what the chain shows could deny a deposit that came, and
// have another one signed in its place each time.
func (p *Payer) Unseen(ctx context.Context, t Terms, nonce common.Hash, amount uint256.Int, until time.Time) error {
	return p.Store.Unseen(ctx, t, nonce, amount, until.UTC().Format(time.DateOnly))
}

// Room returns the most that a channel may hold in all, whether it is kept or
// not, and which cap (CapChannel, CapPayee or CapDay) sets it. It can be less
// than what the channel holds.
func (p *Payer) Room(ctx context.Context, t Terms) (most uint256.Int, cap string, err error) {
	s, spent, err := p.Store.Budget(ctx, t, p.day())
	if err != nil {
		return most, "", err
	}
	all, err := p.Caps.beside(s, spent)
	if err != nil {
		return most, "", err
	}
	for i, c := range all {
		if room := c.room(); i == 0 || room.Lt(&most) {
			most, cap = room, c.name
		}
	}
	return most, cap, nil
}

// Observe records what the chain says of a channel; the newest word counts. A
// channel that we Closed stays closed to payments.
func (p *Payer) Observe(ctx context.Context, id common.Hash, v ChainView) (PayerState, error) {
	if err := v.validate(id); err != nil {
		return PayerState{}, err
	}
	return p.Store.Update(ctx, id, "", func(s *PayerState, _ Budget) error {
		s.observe(v)
		return nil
	})
}

// Recall records a voucher of ours that somebody shows and this store does not
// know, as after the loss of a database. It was signed before, on a day that is
// not known: no cap is asked and no day counts it, the payee's total does.
func (p *Payer) Recall(ctx context.Context, v Voucher) (PayerState, error) {
	return p.Store.Update(ctx, v.ChannelID, "", func(s *PayerState, _ Budget) error {
		if err := p.Domain.Verify(v, s.Terms.Signer()); err != nil {
			return err
		}
		if v.Cumulative.Gt(&s.Signed) {
			s.Signed, s.Signature = v.Cumulative, v.Signature
		}
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

// Reopen takes back a Close of ours, whose request must not have been handed out:
// whoever has one can send it. A close that the chain has stays until Observe
// sees it cancelled.
func (p *Payer) Reopen(ctx context.Context, id common.Hash) (PayerState, error) {
	return p.update(ctx, id, func(s *PayerState, _ Budget) error {
		s.Closed = false
		if s.Status == Closing && s.CloseRequestedAt == 0 {
			s.Status = Open
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
	if err := p.checkTerms(s.Terms); err != nil {
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
	return p.Caps.allow(s, cumulative, spent)
}

// capped is a cap, what counts in it already, and how much of the channel that it
// is asked for does: what it can cost, or of a day what was signed.
type capped struct {
	name                   string
	limit, before, counted uint256.Int
}

// hold refuses what would bring the sum over the limit, with so much of the channel
// in it. MaxAmount is none. What counts already needs no room again.
func (c capped) hold(id common.Hash, total uint256.Int) error {
	growth := u256.SaturatingSub(total, c.counted)
	if growth.IsZero() {
		return nil
	}
	var wanted uint256.Int
	_, overflow := wanted.AddOverflow(&c.before, &growth)
	if c.limit == MaxAmount() || (!overflow && !wanted.Gt(&c.limit)) {
		return nil
	}
	return &CapError{id, c.name, c.limit, wanted}
}

// room returns how much of the channel there may be in all.
func (c capped) room() uint256.Int {
	most := c.limit
	if c.limit != MaxAmount() {
		most = u256.SaturatingSub(c.limit, c.before)
	}
	return *most.Add(&most, &c.counted)
}

// allow holds a payment that brings a channel to total to the caps.
func (c Caps) allow(s PayerState, total uint256.Int, spent Budget) error {
	for _, cap := range c.of(s, s.Cost(), spent.Payee, spent.Day) {
		if err := cap.hold(s.ID, total); err != nil {
			return err
		}
	}
	return nil
}

// beside are the caps, with what counts in each beside what a channel has locked.
func (c Caps) beside(s PayerState, spent Budget) ([]capped, error) {
	own, payee, all, err := spent.Locked()
	if err != nil {
		return nil, err
	}
	cost := s.Cost()
	own.Add(&own, &cost)
	payee.Add(&payee, &spent.Payee) // no overflow: amounts have 96 bits
	all.Add(&all, &spent.Day)
	return c.of(s, own, payee, all), nil
}

// of are the caps as they stand for a channel, with what counts in each.
func (c Caps) of(s PayerState, own, payee, day uint256.Int) []capped {
	cost := s.Cost()
	return []capped{{CapChannel, c.PerChannel, own, cost}, {CapPayee, c.PerPayee, payee, cost}, {CapDay, c.PerDay, day, s.Signed}}
}

// fund holds a deposit to the caps. What was at stake already needs no room again.
func (c Caps) fund(before, after PayerState, spent Budget) error {
	was, is := before.committed(), after.committed()
	if !is.Gt(&was) {
		return nil
	}
	all, err := c.beside(before, spent)
	if err != nil {
		return err
	}
	for _, cap := range all {
		if err := cap.hold(after.ID, is); err != nil {
			return err
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
	return p.Store.Update(ctx, id, p.day(), change)
}

// day is the current one in UTC, as the budget counts it.
func (p *Payer) day() string {
	now := time.Now
	if p.Now != nil {
		now = p.Now
	}
	return now().UTC().Format(time.DateOnly)
}

// State returns a channel, or ErrUnknown.
func (p *Payer) State(ctx context.Context, id common.Hash) (PayerState, error) {
	return p.Store.Load(ctx, id)
}

// Channels returns the channels of the given statuses, or all, in order of id.
func (p *Payer) Channels(ctx context.Context, statuses ...Status) ([]PayerState, error) {
	return p.Store.List(ctx, statuses...)
}
