package provider

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings/batchsettlement"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
)

// incomeIs answers questions for what was claimed for a payee, and for what of it was paid out.
func incomeIs(claimed, paid uint64) badrpc.Fault {
	question := hexutil.Encode(batchsettlement.NewBatchSettlement().PackReceivers(common.Address{}, common.Address{})[:4])
	return badrpc.About(strings.TrimPrefix(question, "0x"), badrpc.Says(hexutil.Encode(append(uint256.NewInt(claimed).PaddedBytes(32), uint256.NewInt(paid).PaddedBytes(32)...))))
}

// payoutRig is a provider of x402 on these endpoints, which fetches what it is told to.
func payoutRig(t *testing.T, net *chaintest.Chain, urls string) *payRig {
	return payRigOn(t, net, func(c *Config) {
		c.RPC = urls
		c.Settlement = settle.Policy{Interval: time.Hour, LeastRow: *uint256.NewInt(1), Dust: *uint256.NewInt(1)}
	})
}

// earn has a renter use and pay for something, on a channel that is returned.
func (r *payRig) earn() *buyer {
	b := r.buyer("/tick")
	b.open(20_000)
	b.again()
	b.idle()
	return b
}

// claimed is what was claimed on channels.
func claimed(buyers ...*buyer) (sum uint64) {
	for _, b := range buyers {
		on := b.on().View
		sum += on.Settled.Uint64()
	}
	return sum
}

func (r *payRig) payouts() int {
	r.Helper()
	all, err := r.provider.sender.Recent(r.Context(), time.Now().Add(-time.Hour), chain.Payout)
	if err != nil {
		r.Fatal(err)
	}
	return len(all)
}

// Of two endpoints, the first or the second, one alone keeps no income in x402's contract by denying it, and one that makes
// income up has a claim paid out once.
func TestPayoutsBesideAnEndpoint(t *testing.T) {
	for name, ill := range map[string]func(*payRig, *badrpc.Endpoint){
		"denies":  func(_ *payRig, bad *badrpc.Endpoint) { bad.On("eth_call", incomeIs(0, 0)) },
		"invents": func(_ *payRig, bad *badrpc.Endpoint) { bad.On("eth_call", incomeIs(1<<40, 0)) },
	} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, first %t", name, first), func(t *testing.T) {
				net := chaintest.Anvil(t)
				net.PlaceBatchSettlement(t)
				bad := badrpc.New(t, net.URL)
				urls := net.URL + "," + bad.URL
				if first {
					urls = bad.URL + "," + net.URL
				}
				r := payoutRig(t, net, urls)
				b := r.earn()
				ill(r, bad)
				for range 3 {
					if err := r.provider.Settle(t.Context()); err != nil {
						t.Log(err)
					}
				}
				eventually(t, "it is paid out", func() bool { got := net.Tokens(t, r.config.Key.Address()); return got > 0 && got == claimed(b) })
				if n := r.payouts(); n != 1 {
					t.Errorf("%d payouts of one claim", n)
				}
			})
		}
	}
}

// The only endpoint is a balancer, one of whose nodes is a block behind: what was claimed is paid out when Settle says that
// all is settled, and no payout runs out of the gas that the node behind has estimated.
func TestPayoutBehindABalancer(t *testing.T) {
	net := chaintest.Anvil(t)
	net.PlaceBatchSettlement(t)
	bad := badrpc.New(t, net.URL)
	r := payoutRig(t, net, bad.URL)
	var all []*buyer
	for n := range 2 {
		all = append(all, r.earn())
		bad.Balance(1, "eth_estimateGas")
		net.Mine(t, 1) // who is behind knows the deposit
		eventually(t, "it is settled", func() bool {
			err := r.provider.Settle(t.Context())
			if err != nil {
				t.Log(err)
				net.Mine(t, 1)
			}
			return err == nil
		})
		bad.Balance(0)
		if got, earned := net.Tokens(t, r.config.Key.Address()), claimed(all...); got == 0 || got != earned {
			t.Fatalf("%d of %d are paid out after %d settlements that said that they were done", got, earned, n+1)
		}
	}
	sent, err := r.provider.sender.Recent(t.Context(), time.Now().Add(-time.Hour), chain.Payout)
	if err != nil {
		t.Fatal(err)
	}
	for _, tx := range sent {
		if tx.State != chain.Pending && !tx.Succeeded {
			t.Errorf("payout %s reverted", tx.Hash)
		}
	}
}
