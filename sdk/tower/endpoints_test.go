package tower_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/tilltest"
	"github.com/gpupay/gpupay/sdk/tower"
)

// beside starts the tower anew on two endpoints of which one misbehaves, the first or the second.
func (l *lookout) beside(bad *badrpc.Endpoint, first bool) {
	l.T.Helper()
	l.stop()
	l.config.Chain.Backend, l.config.RPC = nil, l.URL+","+bad.URL
	if first {
		l.config.RPC = bad.URL + "," + l.URL
	}
	l.up()
}

// One of a watchtower's two endpoints, the first or the second, has stopped following the chain, or says that no time passes:
// what is vouchered is settled all the same, before its payer can withdraw.
func TestTowerSettlesBesideAnEndpointThatStandsStill(t *testing.T) {
	t.Parallel()
	for name, ill := range map[string]func(*lookout, *badrpc.Endpoint){
		"stuck": func(l *lookout, bad *badrpc.Endpoint) { bad.Stick(l.Head(l.T)) },
		"stops the clock": func(l *lookout, bad *badrpc.Endpoint) {
			head, err := l.Backend.HeaderByNumber(l.T.Context(), nil)
			if err != nil {
				l.T.Fatal(err)
			}
			bad.On("eth_getBlockByNumber", badrpc.With("timestamp", fmt.Sprintf("0x%x", head.Time)))
		},
	} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, first %t", name, first), func(t *testing.T) {
				t.Parallel()
				l := newLookout(t, func(c *tower.Config) { c.Patience = 5 * time.Minute })
				bad := badrpc.New(t, l.URL)
				l.beside(bad, first)
				terms := l.Open(1, 1000)
				if got := l.voucher(l.sign(l.Payer, terms, 700)); got != "accepted" {
					t.Fatal(got)
				}
				ill(l, bad)
				l.RequestClose(terms)
				l.AdvanceTime(t, chaintest.Grace-time.Minute)
				l.Mine(t, 5)
				l.Eventually("it is settled", func() bool { v := l.view(terms); return tilltest.Is(v.Settled, 700) })
			})
		}
	}
}

// One of two endpoints says that it is much later, or that no time passes: a close request that its payer signed is kept until
// its deadline has passed by both, and the withdrawal waits for neither.
func TestTowerKeepsARequestBesideAnEndpointThatLiesAboutTheTime(t *testing.T) {
	t.Parallel()
	for name, timestamp := range map[string]func(now uint64) uint64{
		"later":   func(now uint64) uint64 { return now + 1<<30 },
		"stopped": func(now uint64) uint64 { return now },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLookout(t, nil)
			bad := badrpc.New(t, l.URL)
			l.beside(bad, true)
			terms := l.Open(1, 1000)
			head, err := l.Backend.HeaderByNumber(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			bad.On("eth_getBlockByNumber", badrpc.With("timestamp", fmt.Sprintf("0x%x", timestamp(head.Time))))
			relay := &tower.Client{URL: l.server.URL, Log: slog.New(slog.DiscardHandler)}
			if err := relay.RequestClose(t.Context(), l.request(l.Payer, terms, 0, head.Time+3600)); err != nil {
				t.Fatal(err)
			}
			l.Eventually("it is closing", func() bool { return l.view(terms).CloseRequestedAt != 0 })
			l.AdvanceTime(t, chaintest.Grace+time.Minute)
			l.Eventually("the payer has its deposit back", func() bool { return l.view(terms).Finalized })
		})
	}
}
