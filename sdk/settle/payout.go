package settle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
)

// A purse is what one transaction can pay into: one payee, one token.
type purse struct{ payee, token common.Address }

func purseOf(s channel.State) purse { return purse{s.Terms.Payee, s.Terms.Token} }

// payouts are the purses for which the contract may hold what was settled already: all at the start, since a crash may
// have come between a settlement and its payout, then those whose payout failed, and all again each hour, since a
// watchtower or anybody else settles too.
type payouts struct {
	payee    *channel.Payee
	contract chain.Contract
	sender   *chain.Sender
	now      func() time.Time

	mu      sync.Mutex              // guards what is below
	paying  map[purse]chan struct{} // closed when the payout of the purse that is under way is over: it has one at a time
	slots   chan struct{}           // holds one for each payout at work
	loaded  time.Time
	waiting map[purse]bool
	claimed map[purse]bool        // of which something was set aside, as far as is known, since the last payout
	moved   map[purse]uint64      // the block of the last settlement or payout: what an endpoint says as of an older one is out of date
	own     map[purse]bool        // expected once, looked into whichever channels are known
	held    map[purse]uint256.Int // what the contract held at the last look, where it held something
}

// Held is what was settled and waits in the contract, in base units of all tokens together: the token refused to pay it
// out, or fetching it is not worth the gas yet. It is as of this settler's last look, an hour ago at most while it runs.
func (s *Settler) Held() (total uint256.Int) {
	s.payouts.mu.Lock()
	defer s.payouts.mu.Unlock()
	for _, amount := range s.payouts.held {
		total.Add(&total, &amount)
	}
	return total
}

// hold notes what waits for a purse.
func (o *payouts) hold(p purse, amount uint256.Int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held == nil {
		o.held = make(map[purse]uint256.Int)
	}
	if o.held[p] = amount; amount.IsZero() {
		delete(o.held, p)
	}
}

// recallEvery is how often all purses are looked into.
const recallEvery = time.Hour

// Expect has it looked into with the next settlement what a contract set aside for a channel's payee: somebody else than
// this settler had it do so.
func (s *Settler) Expect(t channel.Terms) {
	s.payouts.mu.Lock()
	defer s.payouts.mu.Unlock()
	s.payouts.expect(purse{t.Payee, t.Token})
	if s.payouts.own == nil {
		s.payouts.own = make(map[purse]bool)
	}
	s.payouts.own[purse{t.Payee, t.Token}] = true
}

// expect does the same for channels that a transaction is about of which nobody here waits for the end: what it set aside
// is looked for at the next pass.
func (s *Settler) expect(ctx context.Context, ids []common.Hash) {
	for _, id := range ids {
		if state, err := s.Payee.State(context.WithoutCancel(ctx), id); err == nil {
			s.Expect(state.Terms)
		}
	}
}

// Recall has all purses looked into with the next settlement, as at the start: another process may have had a part of one
// set aside.
func (s *Settler) Recall() {
	s.payouts.mu.Lock()
	defer s.payouts.mu.Unlock()
	s.payouts.loaded = time.Time{}
}

// atOnce is how many purses of one payee are paid out at a time.
const atOnce = 16

// startPayouts fetches what a payout that failed, or never came, left behind, and waits for none: what is set aside is safe, and
// vouchers are settled meanwhile.
func (s *Settler) startPayouts(ctx context.Context) error {
	waiting, err := s.payouts.purses(ctx)
	for _, p := range waiting {
		s.work.Go(func() { s.payBeside(ctx, p) })
	}
	return err
}

// payBeside pays a purse out that waits for it, unless that is under way.
func (s *Settler) payBeside(ctx context.Context, p purse) {
	leave, _ := s.payouts.enter(p)
	if leave == nil {
		return
	}
	defer leave()
	if !s.payouts.waits(p) {
		return
	}
	if err := s.payouts.fetch(ctx, p, s.worth); err != nil && ctx.Err() == nil {
		s.log().Warn("a payout waits", "err", err)
	}
}

// enter has the caller alone pay a purse out until it leaves. nil: somebody does, until over is closed.
func (o *payouts) enter(p purse) (leave func(), over <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if under := o.paying[p]; under != nil {
		return nil, under
	}
	if o.paying == nil {
		o.paying = make(map[purse]chan struct{})
	}
	done := make(chan struct{})
	o.paying[p] = done
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.paying, p)
		close(done)
	}, done
}

// payWaiting is startPayouts that waits for all of them, those that are under way included.
func (o *payouts) payWaiting(ctx context.Context, worth worthwhile) error {
	waiting, err := o.purses(ctx)
	o.mu.Lock()
	for p := range o.paying {
		if !o.waiting[p] {
			waiting = append(waiting, p)
		}
	}
	o.mu.Unlock()
	errs := make([]error, len(waiting))
	var work sync.WaitGroup
	for i, p := range waiting {
		work.Go(func() { errs[i] = o.pay(ctx, p, worth) })
	}
	work.Wait()
	return errors.Join(append(errs, err)...)
}

func (o *payouts) purses(ctx context.Context) ([]purse, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.loaded.IsZero() || o.now().Sub(o.loaded).Abs() >= recallEvery {
		states, err := o.payee.Channels(ctx)
		if err != nil {
			return nil, err
		}
		for _, state := range states {
			o.recall(purseOf(state))
		}
		for p := range o.own {
			o.recall(p)
		}
		o.loaded = o.now()
	}
	var waiting []purse
	for p := range o.waiting {
		waiting = append(waiting, p)
	}
	return waiting, nil
}

// pay is fetch for a purse that somebody else may be paying out: it waits for that one.
func (o *payouts) pay(ctx context.Context, p purse, worth worthwhile) error {
	for {
		leave, over := o.enter(p)
		if leave != nil {
			defer leave()
			return o.fetch(ctx, p, worth)
		}
		select {
		case <-over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waits reports whether a purse is to be looked into.
func (o *payouts) waits(p purse) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.waiting[p]
}

// fetch has the contract pay out what it set aside for a purse that the caller has entered, if settling does not pay at once. The
// contract is asked each time, so that a payout that somebody else made, or a re-org undid, is no matter. The purse is taken off
// the list before: what is set aside while this payout is under way puts it there again.
func (o *payouts) fetch(ctx context.Context, p purse, worth worthwhile) error {
	select {
	case o.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-o.slots }()
	o.mu.Lock()
	claimed, moved := o.claimed[p], o.moved[p]
	delete(o.waiting, p)
	delete(o.claimed, p)
	o.mu.Unlock()
	done, err := o.payout(ctx, p, worth, claimed, moved)
	if done && err == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wait(p)
	if claimed && !errors.Is(err, outcome.ErrUnseen) { // its transaction is spent: one endpoint's word is not enough for another
		o.expect(p)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("what was settled for %s in token %s is not paid out yet: %w", p.payee, p.token, err)
}

// wait has a purse looked into at the next pass. The lock is held.
func (o *payouts) wait(p purse) {
	if o.waiting == nil {
		o.waiting = make(map[purse]bool)
	}
	o.waiting[p] = true
}

// expect is wait for a purse of which something was set aside: then one of two endpoints is enough to have it paid out. The
// lock is held.
func (o *payouts) expect(p purse) {
	o.wait(p)
	if o.claimed == nil {
		o.claimed = make(map[purse]bool)
	}
	o.claimed[p] = true
}

// recall is expect at the start, when nothing is known of a purse, and wait later. The lock is held.
func (o *payouts) recall(p purse) {
	if _, known := o.moved[p]; known {
		o.wait(p)
		return
	}
	o.expect(p)
}

// at notes that something was moved into a purse or out of it at a block. The lock is held.
func (o *payouts) at(p purse, block uint64) {
	if o.moved == nil {
		o.moved = make(map[purse]uint64)
	}
	o.moved[p] = max(o.moved[p], block)
}

// settledAt notes of the purses of channels that they were settled at a block.
func (o *payouts) settledAt(ctx context.Context, ids []common.Hash, block uint64) {
	for _, id := range ids {
		if state, err := o.payee.State(ctx, id); err == nil {
			o.mu.Lock()
			o.at(purseOf(state), block)
			o.mu.Unlock()
		}
	}
}

// payout reports whether nothing of a purse has to be looked into any more. What two endpoints say waits is paid out; what one
// alone says, once for each time that something was set aside: it costs gas, and the other may only be behind. Where they do
// not agree, or have not read what was moved last, it is not done.
func (o *payouts) payout(ctx context.Context, p purse, worth worthwhile, claimed bool, moved uint64) (done bool, err error) {
	call, due, err := o.contract.PayoutCall(ctx, p.payee, p.token)
	if err != nil {
		return false, err
	}
	o.hold(p, due.Int)
	sure := due.Sure
	if due.Known < moved {
		sure.Clear()
	}
	if !worth(ctx, sure) && !(claimed && worth(ctx, due.Int)) {
		if due.Newest < moved && claimed {
			return false, fmt.Errorf("%w: it says what waits at block %d, and it was settled at %d", errLagging, due.Newest, moved)
		}
		return due.Known >= moved && due.Sure.Eq(&due.Int), nil
	}
	id, err := o.sender.Submit(ctx, call)
	var refused *chain.Revert
	if errors.As(err, &refused) && o.paidMeanwhile(ctx, p, 0) {
		return true, nil
	}
	var result *chain.Result
	if err == nil {
		result, err = outcome.Wait(ctx, o.sender, id, 1, func(ctx context.Context) bool { return o.paidMeanwhile(ctx, p, max(moved, due.Newest)) })
	}
	var reverted *chain.Reverted
	if errors.As(err, &reverted) && o.paidMeanwhile(ctx, p, 0) {
		return true, nil
	}
	if errors.Is(err, outcome.ErrUnseen) && o.paidMeanwhile(ctx, p, max(moved, due.Newest)) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s base units wait in contract %s: %w", due.Dec(), call.To, err)
	}
	o.hold(p, uint256.Int{})
	o.mu.Lock()
	defer o.mu.Unlock()
	o.at(p, result.Receipt.BlockNumber.Uint64())
	return true, nil
}

// worthwhile reports whether a payout of so many base units brings enough for its gas.
type worthwhile func(ctx context.Context, amount uint256.Int) bool

// whatever pays out all that there is: a provider that is drained leaves nothing behind.
func whatever(_ context.Context, amount uint256.Int) bool { return !amount.IsZero() }

// worth is worthwhile by the policy. What is Dust, or not worth it, waits for more: nothing that was set aside is ever lost.
func (s *Settler) worth(ctx context.Context, amount uint256.Int) bool {
	if amount.IsZero() || amount.Lt(&s.Policy.Dust) {
		return false
	}
	if s.Policy.MaxFeeShare == 0 {
		return true
	}
	cost := s.cost(ctx)
	return cost.known() && s.Policy.within(&cost.Batch, &amount)
}

// paidMeanwhile reports whether nothing waits for a purse any more, by the word of two endpoints that know a block: somebody else may
// have been faster, or a payout's receipt does not come.
func (o *payouts) paidMeanwhile(ctx context.Context, p purse, since uint64) bool {
	_, due, err := o.contract.PayoutCall(ctx, p.payee, p.token)
	if err != nil || due.Known < since {
		return false
	}
	o.hold(p, due.Int)
	return due.IsZero()
}
