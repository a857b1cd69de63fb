package sdk

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"sync/atomic"
	"testing"

	"github.com/gpupay/gpupay/internal/chaintest"
)

// TestRestoredDeskServesNothingTwice: a provider goes on from yesterday's database,
// and its watcher has not looked at the chain yet. What was claimed since is served
// to nobody again: neither to who reads the voucher from the chain, nor to the payer
// that sends it once more. Before the chain was read nothing is served at all; then
// the client is told what was claimed, believes it and is served.
func TestRestoredDeskServesNothingTwice(t *testing.T) {
	t.Parallel()
	net := chaintest.Anvil(t)
	net.PlaceBatchSettlement(t)
	target, err := url.Parse(net.URL)
	if err != nil {
		t.Fatal(err)
	}
	var down atomic.Bool
	forward := httputil.NewSingleHostReverseProxy(target)
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if down.Load() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		forward.ServeHTTP(w, req)
	}))
	defer endpoint.Close()
	r := payRigOn(t, net, func(c *ProviderConfig) { c.RPC = endpoint.URL })
	b := r.buyer("/tick")
	b.open(100_000)
	b.idle()
	r.shut()
	yesterday, err := os.ReadFile(r.config.Database)
	if err != nil {
		t.Fatal(err)
	}
	before := b.charged
	r.start()
	b.provider = r.provider
	today := b.payment(b.next())
	b.take(b.pay(today))
	b.idle()
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	claimed := b.on().View.Settled
	r.shut()
	for _, rest := range []string{"-wal", "-shm"} {
		_ = os.Remove(r.config.Database + rest)
	}
	if err := os.WriteFile(r.config.Database, yesterday, 0o600); err != nil {
		t.Fatal(err)
	}

	p, err := NewProvider(t.Context(), r.config) // and nobody runs it yet
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	site := httptest.NewServer(p)
	defer site.Close()
	r.provider, r.server = p, site
	defer func() { r.server = nil }()
	b.charged = before
	down.Store(true)
	if resp := b.pay(today); resp.StatusCode < 500 || p.running(b.terms.ID()) != nil {
		t.Fatalf("before the chain was read: %s", resp.Status)
	}
	down.Store(false)
	b.corrected(b.pay(today))
	if b.charged != claimed.Uint64() || p.running(b.terms.ID()) != nil {
		t.Errorf("told %d, claimed was %s", b.charged, claimed.Dec())
	}
	if next := b.again(); next.ChargedAmount.IsZero() || b.kept().Settled != claimed {
		t.Errorf("after it: %+v", next.SettleResponse)
	}
}
