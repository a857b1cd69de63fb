package settle_test

import (
	"context"
	"testing"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// silent is an endpoint that returns no logs.
type silent struct{ chain.Backend }

func (silent) FilterLogs(context.Context, ethereum.FilterQuery) ([]types.Log, error) { return nil, nil }

// A close request is seen within three blocks on a channel that is served, though the endpoint returns no logs; channels of
// another contract are not read for it.
func TestSilentEndpointHidesNoCloseRequest(t *testing.T) {
	k := newTill(t)
	k.Restart(silent{k.Backend})
	served, other := k.Open(1, 1000), k.Terms(2)
	other.Escrow = common.Address{0xee}
	elsewhere := &channel.Payee{Store: k.Payee.Store, Domain: channel.EscrowDomain(other.ChainID, other.Escrow)}
	held := k.State(served)
	if _, err := elsewhere.Register(t.Context(), other, channel.ChainView{Deposit: held.Deposit}); err != nil {
		t.Fatal(err)
	}
	k.Watcher.Served = func(context.Context) ([]common.Hash, error) {
		return []common.Hash{served.ID(), other.ID()}, nil
	}
	k.Mine(t, 3)
	k.Check()
	k.RequestClose(served)
	for range 3 {
		k.Mine(t, 1)
		k.Check()
	}
	if s := k.State(served); s.Status != channel.Closing {
		t.Errorf("after three blocks it is %s", s.Status)
	}
	if s, err := elsewhere.State(t.Context(), other.ID()); err != nil || s.Deposit != held.Deposit {
		t.Errorf("another contract's channel was read: %+v, %v", s, err)
	}
}
