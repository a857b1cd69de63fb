package provider

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"sync/atomic"
	"testing"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/x402"
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
	r := payRigOn(t, net, func(c *Config) { c.RPC = endpoint.URL })
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

	p, err := New(t.Context(), r.config) // and nobody runs it yet
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
	if resp := b.pay(today); resp.StatusCode < 500 || p.leases.Running(b.terms.ID()) != nil {
		t.Fatalf("before the chain was read: %s", resp.Status)
	}
	down.Store(false)
	b.corrected(b.pay(today))
	if b.charged != claimed.Uint64() || p.leases.Running(b.terms.ID()) != nil {
		t.Errorf("told %d, claimed was %s", b.charged, claimed.Dec())
	}
	if next := b.again(); next.ChargedAmount.IsZero() || b.kept().Settled != claimed {
		t.Errorf("after it: %+v", next.SettleResponse)
	}
}

// backup copies the provider's database while it stands still; restore puts it back.
func (r *payRig) backup() (restore func()) {
	r.Helper()
	r.shut()
	yesterday, err := os.ReadFile(r.config.Database)
	if err != nil {
		r.Fatal(err)
	}
	r.start()
	return func() {
		r.Helper()
		r.shut()
		for _, rest := range []string{"-wal", "-shm"} {
			_ = os.Remove(r.config.Database + rest)
		}
		if err := os.WriteFile(r.config.Database, yesterday, 0o600); err != nil {
			r.Fatal(err)
		}
		r.start()
	}
}

// forgets has the provider forget what a buyer used beyond its newest voucher of then,
// and returns what the buyer was charged.
func (b *buyer) forgets(backedUp func()) (charged uint64) {
	b.Helper()
	restore := b.backup()
	if backedUp != nil {
		backedUp()
	}
	for known := b.kept().Accepted; b.charged <= known.Uint64(); {
		b.again()
	}
	b.idle()
	restore()
	return b.charged
}

// TestRestoredDeskChargesWhatItForgot: a provider goes on from yesterday's database, and nothing was claimed since. What
// its payer was charged since is charged, as its next voucher says, but for a few base units; once, whatever is sent again;
// and claimed. It is so for a request, for a refund, with a lease that the old books take up again, and for a channel
// that they do not know.
func TestRestoredDeskChargesWhatItForgot(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name             string
		refund           bool
		running, unknown bool
	}{
		{name: "a request"}, {name: "a refund", refund: true}, {name: "a lease of the old books", running: true}, {name: "an unknown channel", unknown: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newPayRig(t)
			b := r.buyer("/tick")
			deposits := func() { b.open(100_000) }
			if !c.unknown {
				deposits()
				deposits = nil
			}
			if !c.running && !c.unknown {
				b.idle()
			}
			charged := b.forgets(deposits)
			next := func() *x402.PaymentPayload {
				if c.refund {
					return b.refunding(0)
				}
				return b.payment(b.next())
			}
			asked := next()
			b.corrected(b.pay(asked))
			if b.charged > charged || b.charged+64 < charged {
				t.Fatalf("told %d, charged were %d", b.charged, charged)
			}
			told, kept := b.charged, b.kept()
			if kept.Spent.Uint64() >= told {
				t.Errorf("%s were charged before the payer signed for it", kept.Spent.Dec())
			}
			again := next()
			b.take(b.pay(again))
			if c.refund {
				if on := b.on().View; on.Settled.Uint64() != told-1 || on.Deposit != on.Settled { // the last base unit is never claimed
					t.Errorf("told %d, the chain has %+v", told, on)
				}
				return
			}
			b.idle()
			spent := b.kept().Spent
			for _, old := range []*x402.PaymentPayload{asked, again, asked} {
				b.fresh().corrected(b.pay(old))
			}
			if kept := b.kept(); kept.Spent != spent || kept.Spent.Uint64() < told {
				t.Errorf("charged %s, and %s after three that were sent again", spent.Dec(), kept.Spent.Dec())
			}
			if err := r.provider.Settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			if settled, used := b.on().View.Settled, b.used(); settled != used || settled.Uint64() < told {
				t.Errorf("%s claimed, used is %s", settled.Dec(), used.Dec())
			}
		})
	}
}

// TestRestoredDeskIsToldByThePayer: on yesterday's database, whoever reads a voucher from the chain has nothing charged,
// served or refunded by it, however often and for whatever it is sent; the payer is served after it, on its own base.
func TestRestoredDeskIsToldByThePayer(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick?gpus=2")
	b.open(100_000)
	b.idle()
	var public *x402.PaymentPayload
	charged := b.forgets(func() {
		for known := b.kept().Accepted; b.charged <= known.Uint64(); {
			b.again()
		}
		b.idle()
		accepted := b.kept().Accepted
		public = b.payment(accepted.Uint64())
		if err := r.provider.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	thief := *b
	for _, path := range []string{"/tick?gpus=2", "/tick", "/tick"} {
		thief.path = path
		theft := *public
		theft.Accepted = x402.Requirements(thief.accept())
		thief.refused(thief.pay(&theft))
		theft.Payload.Type = x402.TypeRefund
		thief.refused(thief.pay(&theft))
	}
	claimed := b.on().View.Settled
	if kept := b.kept(); kept.Spent != claimed || r.provider.leases.Running(b.terms.ID()) != nil || b.holds() != 100_000 {
		t.Errorf("a public voucher had %s charged, claimed was %s", kept.Spent.Dec(), claimed.Dec())
	}
	b.again()
	if b.charged < charged {
		t.Errorf("charged %d, before it was %d", b.charged, charged)
	}
}

// TestX402RenterOfARestoredProvider: our own renter pays on at a provider that forgot what it was charged.
func TestX402RenterOfARestoredProvider(t *testing.T) {
	r := newPayRig(t)
	n := newTickRenter(t, r)
	n.tick()
	id := n.only().ID
	restore := r.backup()
	n.open()
	known, err := x402Of(r.provider).Book.State(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for charged := n.only().Charged; !charged.Gt(&known.Accepted); charged = n.only().Charged {
		n.tick()
	}
	charged := n.only().Charged
	restore()
	n.open()
	n.tick()
	kept, err := x402Of(r.provider).Book.State(t.Context(), id)
	if err != nil || kept.Spent.Lt(&charged) {
		t.Errorf("charged %s, before it forgot that it was %s: %v", kept.Spent.Dec(), charged.Dec(), err)
	}
	n.agrees()
}
