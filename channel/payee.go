package channel

import (
	"context"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/internal/u256"
)

// Store keeps a payee's channels. Every method that changes something returns
// when the change is on disk, or an error and nothing changed.
type Store interface {
	// Create keeps a channel unless its id is already kept, and returns what is
	// kept then.
	Create(ctx context.Context, s State) (State, error)
	// Update changes one channel: it runs change on the current state, alone on
	// that channel, and keeps the result unless change returns an error. Terms
	// and ID are not kept: they never change. What it keeps of the signature is a
	// copy. It is ErrUnknown for an unknown id. change may run more than once, and
	// must not keep the state.
	Update(ctx context.Context, id common.Hash, change func(*State) error) (State, error)
	// Terms returns the terms of one channel, or ErrUnknown. They never change: a
	// store need not ask a server for them twice.
	Terms(ctx context.Context, id common.Hash) (Terms, error)
	// Load returns one channel, or ErrUnknown.
	Load(ctx context.Context, id common.Hash) (State, error)
	// List returns the channels of the given statuses, or all, in order of id.
	List(ctx context.Context, statuses ...Status) ([]State, error)
	// Unsettled returns the channels that are not finalized and have a voucher
	// over what was settled, in order of id.
	Unsettled(ctx context.Context) ([]State, error)
}

// ContractVerifier asks a contract account whether a signature is its own
// (ERC-1271). It returns false, not an error, for an account without code.
type ContractVerifier interface {
	IsValidSignature(ctx context.Context, account common.Address, digest common.Hash, signature []byte) (bool, error)
}

// maxContractSignature bounds what a contract account's signature costs to keep
// and to send on-chain.
const maxContractSignature = 4096

// Payee takes vouchers for the channels of one escrow. It is safe for
// concurrent use; copy it to use other settings on the same store.
type Payee struct {
	Store  Store
	Domain Domain
	// MinDelta is the least by which a voucher must grow: it keeps a payer from
	// making us check and store a signature for each base unit. One that pays
	// exactly what is charged may grow by less, so that no debt is too small to be
	// paid. Zero means one.
	MinDelta uint256.Int
	// Contracts verifies contract accounts' signatures. Without it they are
	// refused. A contract can disown later what it signed, and its vouchers
	// cannot be settled in a batch.
	Contracts ContractVerifier
}

// Outcome is what became of a voucher.
type Outcome uint8

const (
	Accepted Outcome = iota + 1 // it is the newest now, and on disk
	Replayed                    // it equals the newest, and is covered; nothing changed
	Stale                       // it is lower than the newest, and covered; nothing changed
)

var outcomeNames = [...]string{"unknown", "accepted", "replayed", "stale"}

// String returns the outcome in one word.
func (o Outcome) String() string {
	if int(o) >= len(outcomeNames) {
		return outcomeNames[0]
	}
	return outcomeNames[o]
}

// Receipt answers a voucher that was rightly signed.
type Receipt struct {
	Outcome Outcome
	State   State // after it
}

// Register keeps a channel that was read from the chain and confirmed. It is
// idempotent: of a known channel it observes the view, and what was accepted and
// charged stays. That the terms pay us, in a token we want, is for the caller to
// check first.
func (p *Payee) Register(ctx context.Context, t Terms, v ChainView) (State, error) {
	if err := p.Domain.Holds(t); err != nil {
		return State{}, err
	}
	id := t.ID()
	if err := v.validate(id); err != nil {
		return State{}, err
	}
	fresh := State{ID: id, Terms: t}
	fresh.observe(v)
	kept, err := p.Store.Create(ctx, fresh)
	if err != nil {
		return State{}, err
	}
	if view(kept) == v {
		return kept, nil
	}
	return p.Observe(ctx, id, v)
}

func view(s State) ChainView {
	return ChainView{Deposit: s.Deposit, Settled: s.Settled,
		CloseRequestedAt: s.CloseRequestedAt, Finalized: s.Status == Finalized}
}

// Observe records what the chain says of a channel. The newest word counts, also
// where it is lower: that is a re-org. But a finalized channel stays as it is:
// a word that says otherwise is an old one, of a node that is behind or an
// answer that was long under way, and nothing may be served for it. See Reopen.
func (p *Payee) Observe(ctx context.Context, id common.Hash, v ChainView) (State, error) {
	if err := v.validate(id); err != nil {
		return State{}, err
	}
	return p.Store.Update(ctx, id, func(s *State) error {
		if s.Status != Finalized || v.Finalized {
			s.observe(v)
		}
		return nil
	})
}

// Reopen is Observe after a re-org was seen: it undoes a close, too. What is open
// after it is Closing: the close that a block had is in an outbox and comes again,
// as it was signed, and a voucher that is taken until then it would not fetch.
func (p *Payee) Reopen(ctx context.Context, id common.Hash, v ChainView) (State, error) {
	if err := v.validate(id); err != nil {
		return State{}, err
	}
	return p.Store.Update(ctx, id, func(s *State) error {
		undone := s.Status == Finalized
		if s.observe(v); undone && s.Status == Open {
			s.Status = Closing
		}
		return nil
	})
}

// Revive is Observe where the chain has denied a close for longer than any re-org takes: the close was never there, and nothing
// will bring it. The channel is as the chain says.
func (p *Payee) Revive(ctx context.Context, id common.Hash, v ChainView) (State, error) {
	if err := v.validate(id); err != nil {
		return State{}, err
	}
	return p.Store.Update(ctx, id, func(s *State) error { s.observe(v); return nil })
}

// Last is the payee of a close's voucher: none comes after it that could grow by
// more, so that it may grow by less than MinDelta.
func (p *Payee) Last() *Payee {
	last := *p
	last.MinDelta.Clear()
	return &last
}

// Accept takes a voucher. With a nil error its signature is the channel
// signer's, and the receipt says whether it is new; a new one is on disk.
//
// The errors are ErrAmount (zero, or over 96 bits), ErrUnknown, ErrSignature
// (ErrSigner), ErrFinalized, ErrClosing, ErrExceedsDeposit, ErrDelta, and those
// of the store.
func (p *Payee) Accept(ctx context.Context, v Voucher) (Receipt, error) {
	if v.Cumulative.IsZero() {
		return Receipt{}, fmt.Errorf("channel %s: %w: a voucher for zero pays nothing", v.ChannelID, ErrAmount)
	}
	if err := checkAmount(v.Cumulative); err != nil {
		return Receipt{}, fmt.Errorf("channel %s: %w", v.ChannelID, err)
	}
	terms, err := p.Store.Terms(ctx, v.ChannelID)
	if err != nil {
		return Receipt{}, err
	}
	if err := p.Domain.Holds(terms); err != nil { // a store shared with another escrow's payee
		return Receipt{}, err
	}
	if err := p.verify(ctx, terms.Signer(), v); err != nil {
		return Receipt{}, err
	}
	fault.Point(fault.VoucherVerified)
	t := &taking{payee: p, voucher: v}
	s, err := p.Store.Update(ctx, v.ChannelID, t.change)
	if err != nil {
		return Receipt{}, err
	}
	fault.Point(fault.VoucherAccepted)
	return Receipt{t.outcome, s}, nil
}

// taking is a voucher on its way into the store.
type taking struct {
	payee   *Payee
	voucher Voucher
	outcome Outcome
}

// change judges where nobody else can change the channel.
func (t *taking) change(s *State) (err error) {
	t.outcome, err = t.payee.judge(s, &t.voucher)
	if t.outcome == Accepted {
		s.catchUp(s.Settled) // before it looks paid for: a voucher at or under what is settled buys nothing
		s.Accepted, s.Signature = t.voucher.Cumulative, t.voucher.Signature
	}
	return err
}

// Check verifies a voucher's signature against a known channel and changes
// nothing. Unlike Accept it takes an amount of zero: the draft's initial
// voucher, which shows that who opens a channel can pay from it.
func (p *Payee) Check(ctx context.Context, v Voucher) (State, error) {
	if err := checkAmount(v.Cumulative); err != nil {
		return State{}, fmt.Errorf("channel %s: %w", v.ChannelID, err)
	}
	s, err := p.Store.Load(ctx, v.ChannelID)
	if err != nil {
		return State{}, err
	}
	if err := p.Domain.Holds(s.Terms); err != nil {
		return State{}, err
	}
	return s, p.verify(ctx, s.Terms.Signer(), v)
}

// Verify reports whether v is signed for the channel of these terms, which need
// not be known yet: a gasless open is verified before it is sent.
func (p *Payee) Verify(ctx context.Context, t Terms, v Voucher) error {
	if err := p.Domain.Holds(t); err != nil {
		return err
	}
	if id := t.ID(); id != v.ChannelID {
		return fmt.Errorf("%w: they are of channel %s, the voucher is of channel %s", ErrTerms, id, v.ChannelID)
	}
	return p.verify(ctx, t.Signer(), v)
}

// Judge says what Accept would make of a voucher on a channel in state s, which
// need not be kept yet, and changes nothing. Whoever is about to move money for a
// voucher asks it first, with the state that the money will bring about.
func (p *Payee) Judge(ctx context.Context, s State, v Voucher) (Outcome, error) {
	if err := checkAmount(v.Cumulative); err != nil {
		return 0, fmt.Errorf("channel %s: %w", v.ChannelID, err)
	}
	if err := p.Verify(ctx, s.Terms, v); err != nil {
		return 0, err
	}
	return p.judge(&s, &v)
}

// verify goes by the contract's rule: a key first, then the contract account if
// there is one to ask.
func (p *Payee) verify(ctx context.Context, signer common.Address, v Voucher) error {
	err := p.Domain.Verify(v, signer)
	if err == nil || p.Contracts == nil || len(v.Signature) > maxContractSignature || checkAmount(v.Cumulative) != nil {
		return err
	}
	digest := p.Domain.Digest(v.ChannelID, &v.Cumulative)
	valid, failure := p.Contracts.IsValidSignature(ctx, signer, digest, v.Signature)
	if failure != nil {
		return fmt.Errorf("channel %s: asking contract account %s for its signature: %w", v.ChannelID, signer, failure)
	}
	if !valid {
		return err
	}
	return nil
}

// judge says what a rightly signed voucher is worth to a channel in state s. It
// is pure: the store may run it again.
func (p *Payee) judge(s *State, v *Voucher) (Outcome, error) {
	if err := live(s.ID, s.Terms, s.Status); err != nil {
		return 0, err
	}
	if v.Cumulative.Gt(&s.Deposit) { // also one that was accepted before a refund or a re-org lowered the deposit
		return 0, fmt.Errorf("channel %s: %w: voucher for %s, deposit %s: top up first",
			s.ID, ErrExceedsDeposit, v.Cumulative.Dec(), s.Deposit.Dec())
	}
	switch v.Cumulative.Cmp(&s.Accepted) {
	case 0:
		return Replayed, nil
	case -1:
		return Stale, nil
	}
	if delta := u256.SaturatingSub(v.Cumulative, s.Accepted); delta.Lt(&p.MinDelta) && v.Cumulative != s.Spent {
		return 0, fmt.Errorf("channel %s: %w: voucher for %s after %s, minimum %s",
			s.ID, ErrDelta, v.Cumulative.Dec(), s.Accepted.Dec(), p.MinDelta.Dec())
	}
	return Accepted, nil
}

// Charge records that service worth spent base units in all was given on a
// channel. It comes before the service: what a crash forgets is never owed.
// A repeated charge is harmless; a lower one is ErrLower. It may exceed what was
// accepted: how much credit to give is the caller's to decide.
func (p *Payee) Charge(ctx context.Context, id common.Hash, spent uint256.Int) (State, error) {
	return p.Store.Update(ctx, id, func(s *State) error { return s.Charge(spent) })
}

// CatchUp charges what the chain has settled of a channel where that is more than
// any voucher that these books know, as after a restore from a backup: whatever it
// paid for was served. It never lowers a charge, and a re-org that undoes the
// settlement undoes no charge: what was served is owed again then.
func (p *Payee) CatchUp(ctx context.Context, id common.Hash, settled uint256.Int) (State, error) {
	if err := checkAmount(settled); err != nil {
		return State{}, fmt.Errorf("channel %s: settled: %w", id, err)
	}
	return p.Store.Update(ctx, id, func(s *State) error { s.catchUp(settled); return nil })
}

// Charge raises Spent in memory. It is for stores; a payee calls Payee.Charge.
func (s *State) Charge(spent uint256.Int) error {
	if err := checkAmount(spent); err != nil {
		return fmt.Errorf("channel %s: charge: %w", s.ID, err)
	}
	if spent.Lt(&s.Spent) {
		return fmt.Errorf("channel %s: charge: %w: %s, charged %s already", s.ID, ErrLower, spent.Dec(), s.Spent.Dec())
	}
	s.Spent = spent
	return nil
}

// Close has no voucher count on a channel any more that was not accepted by then,
// at no process that shares the store: it is about to be closed at what is accepted
// in the state that it returns. An open channel is Closing from here on, whatever
// is observed, until it is Finalized or Keep is called.
func (p *Payee) Close(ctx context.Context, id common.Hash) (State, error) {
	return p.Store.Update(ctx, id, func(s *State) error {
		if s.Status == Open {
			s.Status = Closing
		}
		return nil
	})
}

// Keep undoes Close: nothing came of it.
func (p *Payee) Keep(ctx context.Context, id common.Hash) (State, error) {
	return p.Store.Update(ctx, id, func(s *State) error {
		if s.Status == Closing && !s.CloseRequested() {
			s.Status = Open
		}
		return nil
	})
}

// State returns a channel, or ErrUnknown.
func (p *Payee) State(ctx context.Context, id common.Hash) (State, error) {
	return p.Store.Load(ctx, id)
}

// Unsettled returns the channels of this escrow that have a voucher worth
// settling, in order of id.
func (p *Payee) Unsettled(ctx context.Context) ([]State, error) {
	states, err := p.Store.Unsettled(ctx)
	return p.own(states), err
}

// Channels returns the channels of this escrow, of the given statuses or all, in
// order of id.
func (p *Payee) Channels(ctx context.Context, statuses ...Status) ([]State, error) {
	states, err := p.Store.List(ctx, statuses...)
	return p.own(states), err
}

// own drops the channels of other escrows that share the store.
func (p *Payee) own(states []State) []State {
	return slices.DeleteFunc(states, func(s State) bool { return p.Domain.Holds(s.Terms) != nil })
}
