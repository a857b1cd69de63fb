package settle_test

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
	k.Restart(backend)
	terms := k.Open(1, 1000)
	k.Register(terms)
	k.Accept(terms, 500)
	state := k.State(terms)
	backend.before = func() { k.Send(k.Others, k.Contract.SettleCall(terms, state.Accepted, state.Signature)) }
	if err := k.Settler.Settle(t.Context(), terms.ID()); err != nil {
		t.Errorf("it is reported as a failure: %v", err)
	}
	k.Balance(500)
	if now := k.State(terms); !is(now.Settled, 500) {
		t.Errorf("settled %s", now.Settled.Dec())
	}
}

// A channel is topped up and closed before anybody has looked: the books end with what the contract says.
func TestToppedUpAndClosedUnseen(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Accept(terms, 300)
	k.TopUp(terms, 500, 1)
	before := k.State(terms)
	k.Send(k.Sender, k.Contract.CloseCall(terms, before.Accepted, before.Signature)) // and the program stops here
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.Check()
	want, err := k.Contract.View(t.Context(), terms.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := k.State(terms); s.Deposit != want.Deposit || s.Settled != want.Settled {
		t.Errorf("the books say %s of %s, the contract says %s of %s", s.Settled.Dec(), s.Deposit.Dec(), want.Settled.Dec(), want.Deposit.Dec())
	}
}
