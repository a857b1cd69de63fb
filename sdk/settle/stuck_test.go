package settle_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
)

// beside starts a till anew on two endpoints of which one can misbehave, the first or the second.
func (k *till) beside(t *testing.T, first bool) *badrpc.Endpoint {
	t.Helper()
	bad := badrpc.New(t, k.URL)
	urls := k.URL + "," + bad.URL
	if first {
		urls = bad.URL + "," + k.URL
	}
	k.on(t, urls)
	return bad
}

// on starts a till anew on endpoints.
func (k *till) on(t *testing.T, urls string) {
	t.Helper()
	backend, err := chain.Connect(t.Context(), urls, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	k.Restart(backend)
}

// One of two endpoints, the first or the second, has stopped following the chain, or claims to be far ahead, where nothing
// happens: a close request is heard at the next look all the same, and at most some seconds later where they are far apart.
func TestCloseRequestBesideAnEndpointThatStandsStill(t *testing.T) {
	for name, ill := range map[string]func(*till, *badrpc.Endpoint){
		"stuck":      func(k *till, bad *badrpc.Endpoint) { bad.Stick(k.Head(k.T)); k.Mine(k.T, 1) },
		"long stuck": func(k *till, bad *badrpc.Endpoint) { bad.Stick(k.Head(k.T)); k.Mine(k.T, 100) },
		"far ahead": func(_ *till, bad *badrpc.Endpoint) {
			bad.On("eth_blockNumber", badrpc.Says("0xffffff"))
			bad.On("eth_getBlockByNumber", badrpc.About("latest", badrpc.Aged), badrpc.About("latest", badrpc.With("number", "0xffffff")))
			bad.On("eth_getLogs", badrpc.Says([]string{}))
			bad.On("eth_call", frozen())
		},
	} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, first %t", name, first), func(t *testing.T) {
				k := newTill(t)
				bad := k.beside(t, first)
				now := time.Now()
				k.Watcher.Now = func() time.Time { return now }
				terms := k.Open(1, 1000)
				k.Mine(t, 3)
				k.Check()
				ill(k, bad)
				k.Check()
				k.RequestClose(terms)
				k.Check()
				now = now.Add(10 * time.Second)
				k.Mine(t, 1)
				k.Check()
				if s := k.State(terms); s.Status != channel.Closing {
					t.Errorf("it is %s", s.Status)
				}
			})
		}
	}
}

// The endpoint that is further leaves a close request out, and the other does not have its block yet: it is heard once that has.
func TestCloseRequestThatTheFurtherEndpointHides(t *testing.T) {
	k := newTill(t)
	liar, late := badrpc.New(t, k.URL), badrpc.New(t, k.URL)
	k.on(t, liar.URL+","+late.URL)
	terms := k.Open(1, 1000)
	k.Mine(t, 3)
	k.Check()
	liar.On("eth_getLogs", badrpc.Says([]string{}))
	late.Stick(k.Head(t))
	k.RequestClose(terms)
	k.Check()
	if s := k.State(terms); s.Status != channel.Open {
		t.Fatalf("nobody says that it is %s", s.Status)
	}
	late.Stick(0)
	k.Check()
	if s := k.State(terms); s.Status != channel.Closing {
		t.Errorf("it is %s", s.Status)
	}
}

// One of two endpoints, the first or the second, has stopped following the chain: what was settled is settled once, also after a
// restart, what is vouchered since is settled besides, and the books say so once it follows again.
func TestSettledOnceBesideAnEndpointThatStandsStill(t *testing.T) {
	for blocks, orders := range map[int][]bool{1: {false}, 100: {true, false}} {
		for _, first := range orders {
			t.Run(fmt.Sprintf("%d blocks, first %t", blocks, first), func(t *testing.T) {
				k := newTill(t)
				bad := badrpc.New(t, k.URL)
				urls := k.URL + "," + bad.URL
				if first {
					urls = bad.URL + "," + k.URL
				}
				k.on(t, urls)
				now := time.Now()
				all := []channel.Terms{k.Open(1, 1000), k.Open(2, 1000)}
				bad.Stick(k.Head(t))
				k.Mine(t, blocks)
				pay := func(cumulative, want uint64) {
					t.Helper()
					for _, terms := range all {
						k.Accept(terms, cumulative)
					}
					k.Settler.Policy.MaxAge = time.Minute
					k.Settler.Now = func() time.Time { return now }
					for range 3 {
						now = now.Add(time.Hour)
						if err := k.Settler.Once(t.Context()); err != nil {
							t.Fatal(err)
						}
						if n := nonceOf(t, k); n > want {
							t.Fatalf("%d transactions for %d settlements", n, want)
						}
						k.Mine(t, 1)
					}
					if err := k.Settler.Settle(t.Context()); err != nil {
						t.Fatal(err)
					}
					if n := nonceOf(t, k); n != want {
						t.Fatalf("%d transactions for %d settlements", n, want)
					}
				}
				pay(400, 1)
				k.Settler = &settle.Settler{Payee: k.Payee, Contract: k.Contract, Sender: k.Sender} // knows what is on disk
				pay(400, 1)
				pay(700, 2)
				k.Balance(1400)
				bad.Stick(0)
				if err := k.Settler.Settle(t.Context()); err != nil {
					t.Error(err)
				}
				for _, terms := range all {
					if s := k.State(terms); !is(s.Settled, 700) {
						t.Errorf("settled %s in the books", s.Settled.Dec())
					}
				}
			})
		}
	}
}
