package sdk

import (
	"encoding/json"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
)

// TestX402Bundle: what a provider exports of a channel of x402, with metered requests
// worth less than a base unit, a tick, a claim and a refund, holds together alone and
// with the chain. A lease that is left out, a claim of more than was metered, another
// claim than the chain's and another authorizer are found.
func TestX402Bundle(t *testing.T) {
	r, b := meteredRig(t, MeteredRoute{MaxTime: 30 * time.Second}, func(http.ResponseWriter, *http.Request) { testclock.Sleep(7 * time.Millisecond) },
		func(c *ProviderConfig) {
			c.PricePerGPUHour = "0.20"
			c.X402.Slack, c.X402.Window = time.Second, 300*time.Millisecond
		})
	b.take(b.pay(b.depositing(b.next(), 50_000)))
	for range 12 {
		b.take(b.pay(b.payment(b.next())))
	}
	ticks := *b
	ticks.path = "/tick"
	ticks.again()
	ticks.refund(0)
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept, err := r.provider.Export(t.Context(), b.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	document, err := json.Marshal(kept)
	if err != nil {
		t.Fatal(err)
	}
	read := func() *audit.Bundle {
		copied, err := audit.Parse(document)
		if err != nil {
			t.Fatal(err)
		}
		return copied
	}
	if err := audit.Failures(audit.Verify(t.Context(), read(), r.chain.Backend)); err != nil {
		t.Fatalf("an honest one: %v", err)
	}
	if kept.X402 == nil || len(kept.Leases) < 14 || kept.Settled.IsZero() || len(kept.Transactions) < 2 {
		t.Errorf("it has %d leases, %s claimed, %d transactions", len(kept.Leases), kept.Settled.Dec(), len(kept.Transactions))
	}
	for name, c := range map[string]struct {
		chain bool // is needed to find it
		forge func(*audit.Bundle)
	}{
		"the last lease left out": {false, func(b *audit.Bundle) { b.Leases = b.Leases[:len(b.Leases)-1] }},
		"requests left out":       {false, func(b *audit.Bundle) { b.Leases = slices.Delete(b.Leases, 0, 10) }},
		"more claimed":            {false, func(b *audit.Bundle) { b.Settled.AddUint64(&b.Settled.Int, 3) }},
		"less claimed":            {true, func(b *audit.Bundle) { b.Settled.SubUint64(&b.Settled.Int, 3) }},
		"another authorizer":      {false, func(b *audit.Bundle) { b.X402.ReceiverAuthorizer[3] ^= 1 }},
		"no x402":                 {false, func(b *audit.Bundle) { b.X402 = nil }},
		"its refund left out":     {true, func(b *audit.Bundle) { b.Transactions = b.Transactions[:len(b.Transactions)-1] }},
	} {
		forged := read()
		c.forge(forged)
		var backend chain.Backend
		if c.chain {
			backend = r.chain.Backend
		}
		if audit.Failures(audit.Verify(t.Context(), forged, backend)) == nil {
			t.Errorf("%s: not found", name)
		}
	}
}
