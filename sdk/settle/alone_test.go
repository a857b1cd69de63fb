package settle_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

// oracle says what data costs on a rollup.
const oracle = "0x420000000000000000000000000000000000000F"

// more adds to a number that the node says.
func more(n hexutil.Uint64) badrpc.Fault {
	return func(x *badrpc.Exchange) {
		var said hexutil.Uint64
		if json.Unmarshal(x.Result, &said) == nil {
			badrpc.Says(said + n)(x)
		}
	}
}

// A lie is what an endpoint says falsely of what a transaction is sent by.
type lie struct {
	name string
	tell func(*badrpc.Endpoint)
	only bool // whether an only endpoint that lies so keeps nothing from being settled
}

const counts, blocks, tips, estimates = "eth_getTransactionCount", "eth_getBlockByNumber", "eth_maxPriorityFeePerGas", "eth_estimateGas"

var lies = []lie{
	{"pending nonce 5 more", func(b *badrpc.Endpoint) { b.On(counts, badrpc.About("pending", more(5))) }, true},
	{"pending nonce huge", func(b *badrpc.Endpoint) { b.On(counts, badrpc.About("pending", more(1<<20))) }, false},
	{"nonces 5 more", func(b *badrpc.Endpoint) { b.On(counts, more(5)) }, false},
	{"nonces huge", func(b *badrpc.Endpoint) { b.On(counts, badrpc.Says("0xfffffff")) }, false},
	{"nonces zero", func(b *badrpc.Endpoint) { b.On(counts, badrpc.Says("0x0")) }, true},
	{"estimate low", func(b *badrpc.Endpoint) { b.On(estimates, badrpc.Says("0x1")) }, true},
	{"estimate high", func(b *badrpc.Endpoint) { b.On(estimates, badrpc.Says("0xfffffff")) }, false},
	{"gas limit one", func(b *badrpc.Endpoint) { b.On(blocks, badrpc.With("gasLimit", "0x1")) }, false},
	{"base fee and tip zero", func(b *badrpc.Endpoint) {
		b.On(blocks, badrpc.With("baseFeePerGas", "0x0"))
		b.On(tips, badrpc.Says("0x0"))
	}, false},
	{"base fee and tip huge", func(b *badrpc.Endpoint) {
		b.On(blocks, badrpc.With("baseFeePerGas", "0xffffffffffffffff"))
		b.On(tips, badrpc.Says("0xffffffffffffffff"))
	}, false},
	{"no base fee", func(b *badrpc.Endpoint) { b.On(blocks, badrpc.Without("baseFeePerGas")) }, false},
	{"data dear", func(b *badrpc.Endpoint) {
		b.On("eth_call", badrpc.About(oracle, badrpc.Says("0x"+strings.Repeat("0", 40)+strings.Repeat("f", 24))))
	}, false},
	{"head ahead", func(b *badrpc.Endpoint) {
		b.On(blocks, badrpc.About("latest", badrpc.With("number", "0xffffff")))
		b.On("eth_blockNumber", badrpc.Says("0xffffff"))
	}, false},
	{"head behind", func(b *badrpc.Endpoint) {
		b.On(blocks, badrpc.About("latest", badrpc.With("number", "0x1")))
		b.On("eth_blockNumber", badrpc.Says("0x1"))
	}, false},
	{"no coin", func(b *badrpc.Endpoint) { b.On("eth_getBalance", badrpc.Says("0x0")) }, false},
}

// Whatever one of two endpoints says, first or second, of nonces, gas, fees and coin, what is urgent is settled, in one transaction
// and by a purse that pays for no more than the chain asks. An only endpoint that lies is bounded by what such a call takes.
func TestNoEndpointAloneHoldsUpASettlement(t *testing.T) {
	t.Parallel()
	for liar, place := range []string{"first", "second", "only"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			k := newTill(t)
			k.Chain.RPC(t, nil, "anvil_setCode", oracle, "0x60206000f3") // 32 bytes of zero, whatever it is asked
			k.Chain.RPC(t, nil, "anvil_setBalance", k.Key.Address(), hexutil.Uint64(20_000_000_000_000_000))
			ends := []*badrpc.Endpoint{badrpc.New(t, k.URL), badrpc.New(t, k.URL)}
			urls := ends[0].URL + "," + ends[1].URL
			if place == "only" {
				urls, liar = ends[0].URL, 0
			}
			backend, err := chain.Connect(t.Context(), urls, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			k.Restart(backend)
			for salt, l := range lies {
				if place == "only" && !l.only {
					continue
				}
				k.settlesBeside(t, byte(salt), l, ends[liar], place == "only")
			}
		})
	}
}

func (k *till) settlesBeside(t *testing.T, salt byte, l lie, liar *badrpc.Endpoint, only bool) {
	t.Helper()
	terms := k.Open(salt, 1000)
	k.Accept(terms, 900)
	if !only {
		k.Sender.Stuck = time.Minute
	} else {
		k.Sender.Stuck = 300 * time.Millisecond
	}
	k.Chain.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", hexutil.Uint64(20_000_000_000))
	k.Chain.Mine(t, 1)
	l.tell(liar)
	defer liar.Heal()
	before, had, began := nonceOf(t, k), k.Tokens(t, k.Key.Address()), time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- k.Settler.Settle(ctx) }()
	for k.Tokens(t, k.Key.Address()) == had && ctx.Err() == nil {
		time.Sleep(poll)
	}
	took := time.Since(began).Round(time.Millisecond)
	cancel() // it may go on to look for what the liar says of what was settled
	err := <-done
	if got := k.Tokens(t, k.Key.Address()) - had; got != 900 {
		t.Errorf("%s: settled %d of 900 after %s: %v", l.name, got, took, err)
	}
	most := uint64(1)
	if only {
		most = 6
	}
	if n := nonceOf(t, k) - before; n > most {
		t.Errorf("%s: %d transactions", l.name, n)
	}
	t.Logf("%s: %s", l.name, took)
}
