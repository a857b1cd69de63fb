package channel_test

import (
	"context"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// stillStore has one channel and costs nothing.
type stillStore struct {
	channel.Store
	state *channel.State
}

func (s stillStore) Terms(context.Context, common.Hash) (channel.Terms, error) {
	return s.state.Terms, nil
}

func (s stillStore) Update(_ context.Context, _ common.Hash, change func(*channel.State) error) (channel.State, error) {
	err := change(s.state)
	return *s.state, err
}

// TestAPaymentWithoutAStoreMakesFewObjects: what a payee itself adds to what its
// store does.
func TestAPaymentWithoutAStoreMakesFewObjects(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector drops pooled items at random")
	}
	p, id := newPayee(t)
	s, err := p.State(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	p.Store = stillStore{p.Store, &s}
	v := sign(t, testDomain, payerKey, id, units(5))
	objects := testing.AllocsPerRun(500, func() {
		if r, err := p.Accept(t.Context(), v); err != nil || r.Outcome != channel.Accepted {
			t.Fatal(r.Outcome, err)
		}
		s.Accepted.Clear()
	})
	if objects > 3 {
		t.Errorf("%v objects a payment, want at most 3: the key that is recovered, the change and its function", objects)
	}
}
