package settle_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
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
