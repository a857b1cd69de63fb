package settle_test

import (
	"encoding/json"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

// frozen has calls of a contract answered as the first time, at whatever block.
func frozen() badrpc.Fault {
	var mu sync.Mutex
	first := make(map[string]json.RawMessage)
	return func(x *badrpc.Exchange) {
		mu.Lock()
		defer mu.Unlock()
		var params []json.RawMessage
		if json.Unmarshal(x.Params, &params) != nil || len(params) == 0 || x.Result == nil {
			return
		}
		if old, found := first[string(params[0])]; found {
			x.Result = old
			return
		}
		first[string(params[0])] = x.Result
	}
}

func nonceOf(t *testing.T, k *till) uint64 {
	t.Helper()
	n, err := k.Backend.NonceAt(t.Context(), k.Key.Address(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Of two endpoints one lies about receipts, or denies what was settled: a batch takes one transaction, nothing waits for the
// liar, and nothing is settled a second time.
func TestOneEndpointLiesAboutASettlement(t *testing.T) {
	for name, lie := range map[string]func(*badrpc.Endpoint){
		"the receipt": func(b *badrpc.Endpoint) { b.On("eth_getTransactionReceipt", badrpc.With("status", "0x0")) },
		"the channel": func(b *badrpc.Endpoint) { b.On("eth_call", frozen()) },
	} {
		for _, liar := range []int{0, 1} {
			t.Run(name, func(t *testing.T) {
				k := newTill(t)
				pair := []*badrpc.Endpoint{badrpc.New(t, k.URL), badrpc.New(t, k.URL)}
				backend, err := chain.Connect(t.Context(), pair[0].URL+","+pair[1].URL, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				k.Restart(backend)
				var all []channel.Terms
				for salt := range byte(8) {
					terms := k.Open(salt, 1000)
					k.Accept(terms, 400)
					all = append(all, terms)
				}
				k.Settler.Policy.MaxAge = time.Millisecond
				lie(pair[liar])
				before, began := nonceOf(t, k), time.Now()
				if err := k.Settler.Settle(t.Context()); err != nil {
					t.Error(err)
				}
				for range 3 {
					if err := k.Settler.Once(t.Context()); err != nil {
						t.Error(err)
					}
				}
				if d := time.Since(began); d > 30*time.Second {
					t.Errorf("the liar held it up for %s", d)
				}
				if n := nonceOf(t, k) - before; n != 1 {
					t.Errorf("%d transactions", n)
				}
				for _, terms := range all {
					if v, err := k.Contract.View(t.Context(), terms.ID(), nil); liar == 1 && (err != nil || !is(v.Settled, 400)) {
						t.Errorf("settled %s, %v", v.Settled.Dec(), err)
					}
				}
			})
		}
	}
}
