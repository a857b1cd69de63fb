package provider

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/audit"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestX402PriceChange: a lease that runs under another price than the offer's ends with the record that answers the next
// tick. What it metered is charged, the lease after it begins where it ended, and neither side takes the other for a cheat.
func TestX402PriceChange(t *testing.T) {
	t.Parallel()
	for name, price := range map[string]string{"rises": "7.20", "falls": "0.36"} {
		t.Run(name, func(t *testing.T) {
			r := newPayRig(t, func(c *Config) { c.X402.Window, c.X402.Slack = time.Second, 3*time.Second })
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.provider.ServeHTTP(w, req) }))
			defer front.Close()
			own := r.server
			r.server = front
			n := newTickRenter(t, r)
			r.server = own
			first := n.tick()
			r.shut()
			r.config.PricePerGPUHour = price
			r.start()
			testrig.Eventually(t, "the lease goes on", func() bool { return r.provider.leases.Running(n.only().ID) != nil })
			last := n.tick()
			if last.Lease != first.Lease || !last.Record.Final {
				t.Errorf("the tick after the price changed is answered by record %d of lease %s, final %t; the lease that ran was %s",
					last.Record.Sequence, last.Lease, last.Record.Final, first.Lease)
			}
			next := n.tick()
			if next.Lease == first.Lease || next.Record.OwedBefore != last.Record.Owed {
				t.Errorf("the next lease begins at %s, the one before it ended at %s", next.Record.OwedBefore.Dec(), last.Record.Owed.Dec())
			}
			id := n.only().ID
			if l := r.provider.leases.Running(id); l != nil {
				r.provider.leases.EndSoon(l, "over")
				testrig.Eventually(t, "it ends", func() bool { return r.provider.leases.Running(id) == nil })
			}
			kept, err := r.provider.Export(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if err := audit.Failures(audit.Verify(t.Context(), kept, r.chain.Backend)); err != nil {
				t.Errorf("the provider's bundle: %v", err)
			}
			if evidence, err := n.wallet.Evidence(t.Context(), id); err != nil || len(evidence) > 0 {
				t.Errorf("evidence against an honest provider: %+v, %v", evidence, err)
			}
		})
	}
}

// TestX402TakenOut: a provider that takes x402 no more starts beside a lease of it, which ends.
func TestX402TakenOut(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(50_000)
	r.shut()
	config := r.config
	config.X402 = nil
	p, err := New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	row, ok, err := p.store.Leases.Newest(t.Context(), b.terms.ID())
	if err != nil || !ok || row.State != wire.StateEnded {
		t.Errorf("the lease is %s, %v", row.State, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	r.start()
}
