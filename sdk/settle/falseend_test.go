package settle_test

import (
	"context"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
	once "github.com/gpupay/gpupay/sdk/internal/outcome"
)

// An endingContract says for a while that every channel is over.
type endingContract struct {
	chain.Contract
	over bool
}

func (c *endingContract) Confirmed(ctx context.Context, ids []common.Hash, confirmations uint64) ([]chain.Confirmed, uint64, error) {
	views, at, err := c.Contract.Confirmed(ctx, ids, confirmations)
	for i := range views {
		views[i].View.Finalized, views[i].Latest.Finalized = c.over, c.over
	}
	return views, at, err
}

// TestEndThatTheChainDenies: an end that looks have said and Finality blocks of looks deny is undone, though no event tells of it. The
// channel is open again, but for one whose close is in the outbox: that comes again, and fetches what it was signed for alone.
func TestEndThatTheChainDenies(t *testing.T) {
	for name, c := range map[string]struct {
		forget, closing bool // the watcher has no outbox; a close is in it, which no endpoint has taken
		want            channel.Status
	}{
		"nothing is in the outbox": {want: channel.Open},
		"it knows no outbox":       {forget: true, want: channel.Open},
		"its close is on its way":  {closing: true, want: channel.Closing},
	} {
		t.Run(name, func(t *testing.T) {
			k := newTill(t)
			bad := badrpc.New(t, k.URL)
			k.on(t, bad.URL)
			terms := k.Open(1, 1000)
			ending := &endingContract{Contract: k.Watcher.Contract}
			k.Watcher.Contract, k.Watcher.Finality = ending, 5
			if c.forget {
				k.Watcher.Store = nil
			}
			k.Mine(t, 5)
			k.Check()
			if c.closing {
				bad.Instead("eth_sendRawTransaction", badrpc.Status(503))
				ctx, cancel := context.WithCancel(t.Context())
				sent := make(chan error, 1)
				go func() { sent <- once.SendOnce(ctx, k.Sender, k.Contract.CloseCall(terms, uint256.Int{}, nil), 1) }()
				k.Eventually("the close is in the outbox", func() bool {
					flying, err := k.Sender.InFlight(t.Context())
					return err == nil && len(flying) == 1
				})
				cancel()
				<-sent
			}
			ending.over = true
			k.Watcher.Doubt(terms.ID())
			for range 2 {
				k.Mine(t, 1)
				k.Check()
			}
			if s := k.State(terms); s.Status != channel.Finalized {
				t.Fatalf("it is %s, though the chain says that it is over", s.Status)
			}
			ending.over = false
			for range 4 {
				k.Mine(t, 1)
				k.Check()
			}
			if s := k.State(terms); s.Status != channel.Finalized {
				t.Errorf("it is %s after looks at 4 blocks", s.Status)
			}
			for range 4 {
				k.Mine(t, 1)
				k.Check()
			}
			if s := k.State(terms); s.Status != c.want {
				t.Errorf("it is %s, want %s", s.Status, c.want)
			}
		})
	}
}
