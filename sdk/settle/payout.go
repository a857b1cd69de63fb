package settle

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A purse is what one transaction can pay into: one payee, one token.
type purse struct{ payee, token common.Address }

func purseOf(s channel.State) purse { return purse{s.Terms.Payee, s.Terms.Token} }

// payouts are the purses for which the contract may hold what was settled already: all at the start, since a crash may
// have come between a settlement and its payout, then those whose payout failed.
type payouts struct {
	paying  sync.Mutex // one payout at a time
	mu      sync.Mutex
	loaded  bool
	waiting map[purse]bool
}

// Expect has it looked into with the next settlement what a contract set aside for a channel's payee: somebody else than
// this settler had it do so.
func (s *Settler) Expect(t channel.Terms) {
	s.payouts.mu.Lock()
	defer s.payouts.mu.Unlock()
	if s.payouts.waiting == nil {
		s.payouts.waiting = make(map[purse]bool)
	}
	s.payouts.waiting[purse{t.Payee, t.Token}] = true
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
	s.payouts.loaded = false
}

// payWaiting fetches what a payout that failed, or never came, left behind. Nothing is lost while it waits.
func (s *Settler) payWaiting(ctx context.Context) error {
	waiting, err := s.purses(ctx)
	for _, p := range waiting {
		err = errors.Join(err, s.pay(ctx, p))
	}
	return err
}

func (s *Settler) purses(ctx context.Context) ([]purse, error) {
	s.payouts.mu.Lock()
	defer s.payouts.mu.Unlock()
	if !s.payouts.loaded {
		states, err := s.Payee.Channels(ctx)
		if err != nil {
			return nil, err
		}
		if s.payouts.waiting == nil {
			s.payouts.waiting = make(map[purse]bool)
		}
		for _, state := range states {
			s.payouts.waiting[purseOf(state)] = true
		}
		s.payouts.loaded = true
	}
	var waiting []purse
	for p := range s.payouts.waiting {
		waiting = append(waiting, p)
	}
	return waiting, nil
}

// pay has the contract pay out what it set aside for a purse, if settling does not pay at once. The contract is asked
// each time, so that a payout that somebody else made, or a re-org undid, is no matter.
func (s *Settler) pay(ctx context.Context, p purse) error {
	s.payouts.paying.Lock()
	defer s.payouts.paying.Unlock()
	err := s.payout(ctx, p)
	s.payouts.mu.Lock()
	defer s.payouts.mu.Unlock()
	if err == nil {
		delete(s.payouts.waiting, p)
		return nil
	}
	if s.payouts.waiting == nil {
		s.payouts.waiting = make(map[purse]bool)
	}
	s.payouts.waiting[p] = true
	return fmt.Errorf("what was settled for %s in token %s is not paid out yet: %w", p.payee, p.token, err)
}

func (s *Settler) payout(ctx context.Context, p purse) error {
	call, due, err := s.Contract.PayoutCall(ctx, p.payee, p.token)
	if err != nil || !due {
		return err
	}
	id, err := s.Sender.Submit(ctx, call)
	var refused *chain.Revert
	if errors.As(err, &refused) { // the contract is asked again: somebody else may have been faster
		if _, still, again := s.Contract.PayoutCall(ctx, p.payee, p.token); again == nil && !still {
			return nil
		}
	}
	if err != nil {
		return err
	}
	_, err = s.Sender.Wait(ctx, id, 1)
	var reverted *chain.Reverted
	if errors.As(err, &reverted) {
		if _, still, again := s.Contract.PayoutCall(ctx, p.payee, p.token); again == nil && !still {
			return nil
		}
	}
	return err
}
