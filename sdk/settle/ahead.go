package settle

import (
	"context"
	"errors"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// errUnknownYet is one of two endpoints that has not read a block yet in which something was settled.
var errUnknownYet = errors.New("an endpoint does not know yet")

// knownSoon is how often a settlement is read anew until both endpoints know it. One that does not by then may have stopped following
// the chain.
const knownSoon = 3

// ahead is what a settlement of ours fetched and only one of two endpoints knows: the other has stopped following the chain. To
// settle that again would cost gas and revert. The books do not have it, since the one could make it up; the outbox keeps the
// transaction until both know it, and what it would send after it has to wait for its nonce anyway.
type ahead struct {
	settled uint256.Int // as the endpoint says that is further; 0: it counts no more
	told    uint256.Int // the same when the outbox was last asked
	block   uint64      // of the settlement
	known   uint64      // the newest block of the other endpoint then
}

// over reports whether the endpoint that is behind has the settlement's block, or has come so far without it that it does not stand
// still: then what the other says may be made up.
func (a ahead) over(known uint64) bool {
	return known >= a.block || known > a.known+chain.FarBehind
}

// count is a state with what was fetched.
func (a ahead) count(state channel.State) channel.State {
	if settled := a.settled; settled.Gt(&state.Settled) {
		if settled.Gt(&state.Deposit) {
			settled = state.Deposit
		}
		state.Settled = settled
	}
	return state
}

// fetched is what of a channel is settled ahead of the endpoint that is behind. It counts until it is over, or
// the endpoint that is further takes it back.
func (s *Settler) fetched(ctx context.Context, id common.Hash, v chain.Confirmed) (ahead, error) {
	s.init()
	s.mu.Lock()
	a := s.ahead[id]
	s.mu.Unlock()
	if told := v.Newer.Settled; v.Disputed && told.Gt(&v.Latest.Settled) {
		if !told.Eq(&a.told) {
			block, err := s.settledIn(ctx, id)
			if err != nil {
				return ahead{}, err
			}
			if block != a.block {
				a.known = v.Known
			}
			a.told, a.block = told, block
		}
		a.settled = told
	} else {
		a = ahead{}
	}
	if a.over(v.Known) {
		a.settled.Clear()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ahead[id] = a; a == (ahead{}) {
		delete(s.ahead, id)
	}
	return a, nil
}

// settledIn is the block of the newest settlement of a channel that the outbox sees mined; 0 if there is none.
func (s *Settler) settledIn(ctx context.Context, id common.Hash) (block uint64, err error) {
	sent, err := s.Sender.Find(ctx, id, chain.Settle, chain.SettleBatch, chain.Claim)
	for _, tx := range sent {
		if tx.Succeeded && tx.Call.To == s.Contract.Address() {
			block = max(block, tx.Block)
		}
	}
	return block, err
}

// unsettled lists the channels of which there is something to fetch. What is ahead of an endpoint is read anew.
func (s *Settler) unsettled(ctx context.Context) ([]channel.State, error) {
	s.mu.Lock()
	var ids []common.Hash
	for id := range s.ahead {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	now, err := s.observe(ctx, ids, 0)
	if err != nil {
		return nil, err
	}
	states, err := s.Payee.Unsettled(ctx)
	var left []channel.State
	for _, state := range states {
		if read, ahead := now[state.ID]; ahead && read.Settled.Gt(&state.Settled) {
			state.Settled = read.Settled
		}
		if amount := state.Unsettled(); !amount.IsZero() {
			left = append(left, state)
		}
	}
	return left, err
}
