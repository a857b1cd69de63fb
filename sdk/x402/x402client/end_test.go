package x402client

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

// stallingFront passes all on to the provider of the rig but, while stalled says so of it, a request that is never answered.
func stallingFront(t *testing.T, to string, stalled func(*http.Request) bool) *httptest.Server {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	provider, stop := httputil.NewSingleHostReverseProxy(target), make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if stalled(q) {
			<-stop
			return
		}
		provider.ServeHTTP(w, q)
	}))
	t.Cleanup(func() { close(stop); front.Close() })
	return front
}

// TestX402RefundThatHangs: a provider that takes a request and never answers keeps no Close and no Refund waiting for longer than
// their limits, of a request or of the whole, and holds up no Leave behind them.
func TestX402RefundThatHangs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits  limits
		refunds bool // what is stalled: the request for a refund, or the one for the offer
	}{
		"the request for a refund":  {limits{offer: time.Minute, refund: time.Second, whole: time.Minute}, true},
		"the request for the offer": {limits{offer: time.Second, refund: time.Minute, whole: time.Minute}, false},
		"the whole":                 {limits{offer: time.Minute, refund: time.Minute, whole: time.Second}, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTenant(t, newPayRig(t, func(c *provider.Config) { c.X402.WithdrawDelay = 15 * time.Minute }))
			var stalls atomic.Bool
			front := stallingFront(t, n.Server.URL, func(q *http.Request) bool {
				return stalls.Load() && (q.Header.Get(x402.HeaderSignature) != "") == c.refunds
			})
			rental, err := n.x.Rent(t.Context(), front.URL, 1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := rental.Tick(t.Context()); err != nil {
				t.Fatal(err)
			}
			stalls.Store(true)
			n.x.limits = c.limits
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err = rental.Close(ctx)
			if ctx.Err() != nil || err == nil || !strings.Contains(err.Error(), "leave it") || !errors.Is(err, peer.ErrRefused) {
				t.Errorf("Close: %v", err)
			}
			short, end := context.WithTimeout(t.Context(), 20*time.Second)
			defer end()
			if _, err := n.x.Leave(short, rental.Channel()); !errors.Is(err, wallet.ErrNoGas) { // as far as it goes without coin
				t.Errorf("Leave after it: %v", err)
			}
		})
	}
}

// withdrawals are those of a channel that the renter began.
func (n *tenant) withdrawals(id common.Hash) int {
	n.Helper()
	sent, err := n.wallet.Sender.Find(n.Context(), id, chain.InitiateWithdraw)
	if err != nil {
		n.Fatal(err)
	}
	return len(sent)
}

// leaveUntil leaves the only channel and is cut off as soon as the chain shows something; false: it was over before that.
func (n *tenant) leaveUntil(id common.Hash, cut func(requestedAt uint64) bool) (refund Refund, over bool) {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		var err error
		refund, err = n.x.Leave(ctx, id)
		done <- err
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				n.Fatalf("leaving: %v", err)
			}
			return refund, true
		case <-time.After(5 * time.Millisecond):
		}
		if s, err := n.contract.State(n.Context(), id); err == nil && cut(s.View.CloseRequestedAt) {
			cancel()
			<-done
			return Refund{}, false
		}
	}
}

// leaver is a tenant with coin that paid a tick to a provider that is gone.
func leaver(t *testing.T, change func(*wallet.Config)) (*tenant, common.Hash) {
	t.Helper()
	n := newTenant(t, newPayRig(t, func(c *provider.Config) { c.X402.WithdrawDelay = 15 * time.Minute }))
	n.tick()
	if err := n.Provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n.change = change; change != nil {
		n.open()
	}
	n.Stop()
	n.RPC(t, nil, "anvil_setBalance", n.key.Address(), "0xde0b6b3a7640000")
	return n, n.only().ID
}

// TestX402LeaveCutOffAndDust: leaving that is cut off in its delay, and called again, by this process or by another one, makes no
// other withdrawal, whatever somebody deposits meanwhile.
func TestX402LeaveCutOffAndDust(t *testing.T) {
	n, id := leaver(t, nil)
	var seen uint64
	for cuts := range 4 {
		refund, over := n.leaveUntil(id, func(at uint64) bool {
			fresh := at > seen
			seen = max(seen, at)
			return fresh
		})
		if over {
			if got := n.withdrawals(id); got != 1 || cuts != 1 || refund.Amount.IsZero() || refund.Left.Uint64() != 1 {
				t.Errorf("%d withdrawals after %d cuts: %+v", got, cuts, refund)
			}
			if n.account().Withdrawal != nil {
				t.Error("a withdrawal that is over is still in the books")
			}
			return
		}
		n.useAlone(n.openWallet())
		n.dust(1)
		n.AdvanceTime(t, 15*time.Minute)
	}
	t.Errorf("%d withdrawals, and no end", n.withdrawals(id))
}

// TestX402LeaveCutOffAtItsEnd: nor does leaving that is cut off when its withdrawal was just mined.
func TestX402LeaveCutOffAtItsEnd(t *testing.T) {
	n, id := leaver(t, func(c *wallet.Config) { c.Chain.Confirmations = 2 }) // anvil mines a block where there is something to mine
	var begun bool
	if _, over := n.leaveUntil(id, func(at uint64) bool {
		if at != 0 && !begun {
			begun = true
			n.dust(1)
			n.AdvanceTime(t, 15*time.Minute)
		}
		return begun && at == 0
	}); over {
		t.Fatal("it was over before it was cut off")
	}
	n.useAlone(n.openWallet())
	n.dust(1)
	refund, over := n.leaveUntil(id, func(at uint64) bool { return at != 0 })
	if got := n.withdrawals(id); !over || got != 1 || refund.Left.IsZero() {
		t.Errorf("over %v after %d withdrawals: %+v", over, got, refund)
	}
}

// TestX402LeaveWithTooLittleCoin: coin that does not pay for a withdrawal is as good as none, and leaving goes on when some has come.
func TestX402LeaveWithTooLittleCoin(t *testing.T) {
	n, id := leaver(t, nil)
	n.RPC(t, nil, "anvil_setBalance", n.key.Address(), "0x1")
	if _, err := n.x.Leave(t.Context(), id); !errors.Is(err, wallet.ErrNoGas) || !strings.Contains(err.Error(), n.key.Address().Hex()) {
		t.Errorf("Leave: %v", err)
	}
	n.RPC(t, nil, "anvil_setBalance", n.key.Address(), "0xde0b6b3a7640000")
	var begun bool
	refund, over := n.leaveUntil(id, func(at uint64) bool {
		if at != 0 && !begun {
			begun = true
			n.AdvanceTime(t, 15*time.Minute)
		}
		return false
	})
	if got := n.withdrawals(id); !over || got != 1 || refund.Amount.IsZero() || !refund.Left.IsZero() {
		t.Errorf("over %v after %d withdrawals: %+v", over, got, refund)
	}
}
