package sdk_test

import (
	"context"
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum"

	"github.com/gpupay/gpupay/sdk/chain"
)

// meddler does something on the chain just before our call is tried.
type meddler struct {
	chain.Backend
	once   sync.Once
	before func()
}

func (m *meddler) EstimateGas(ctx context.Context, call ethereum.CallMsg) (uint64, error) {
	m.once.Do(m.before)
	return m.Backend.EstimateGas(ctx, call)
}

// TestSettledWhileWeAsk: somebody settles between our look at the channel and
// our transaction. The contract refuses ours, and that is no failure: the money
// is here.
func TestSettledWhileWeAsk(t *testing.T) {
	k := newTill(t)
	backend := &meddler{Backend: k.Backend}
	k.restart(backend)
	terms := k.open(1, 1000)
	k.register(terms)
	k.accept(terms, 500)
	state := k.state(terms)
	backend.before = func() { k.send(k.others, k.escrow.SettleCall(terms, state.Accepted, state.Signature)) }
	if err := k.settler.Settle(t.Context(), terms.ID()); err != nil {
		t.Errorf("it is reported as a failure: %v", err)
	}
	k.balance(500)
	if now := k.state(terms); !is(now.Settled, 500) {
		t.Errorf("settled %s", now.Settled.Dec())
	}
}

// A channel is topped up and closed before anybody has looked: the books end with what the contract says.
func TestToppedUpAndClosedUnseen(t *testing.T) {
	k := newTill(t)
	terms := k.open(1, 1000)
	k.accept(terms, 300)
	k.topUp(terms, 500, 1)
	before := k.state(terms)
	k.send(k.sender, k.escrow.CloseCall(terms, before.Accepted, before.Signature)) // and the program stops here
	if err := k.settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.check()
	want, err := k.escrow.View(t.Context(), terms.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := k.state(terms); s.Deposit != want.Deposit || s.Settled != want.Settled {
		t.Errorf("the books say %s of %s, the contract says %s of %s", s.Settled.Dec(), s.Deposit.Dec(), want.Settled.Dec(), want.Deposit.Dec())
	}
}
