package provider

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/x402scheme"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

// TestX402Bundle: what a provider exports of a channel of x402, with metered requests
// worth less than a base unit, a tick, a claim and a refund, holds together alone and
// with the chain. A lease that is left out, a claim of more than was metered, another
// claim than the chain's and another authorizer are found.
func TestX402Bundle(t *testing.T) {
	r, b := meteredRig(t, Route{MaxTime: 30 * time.Second}, func(http.ResponseWriter, *http.Request) { testclock.Sleep(7 * time.Millisecond) },
		func(c *Config) {
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

// TestX402PayersBundle: what a renter keeps of its ticks, of several leases and with records that it was never shown, holds
// together alone, with the chain and beside the provider's, read by whichever program. What it changes, invents or repeats is
// found, and so is what the provider's lacks.
func TestX402PayersBundle(t *testing.T) {
	n := newTickRenter(t, newPayRig(t))
	for range 3 { // what is metered after a tick, and stated when the lease is suspended, no tick shows
		n.tick()
		n.usesUp()
	}
	n.tick()
	if err := x402Of(n.provider).EndNewest(t.Context(), &x402scheme.Request{PaidRequest: x402server.PaidRequest{ID: n.only().ID}}, "the test wants another"); err != nil {
		t.Fatal(err)
	}
	n.tick()
	if _, err := n.rental.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	ours, err := x402client.Export(t.Context(), n.wallet, n.rental.Channel())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := n.provider.Export(t.Context(), n.rental.Channel())
	if err != nil {
		t.Fatal(err)
	}
	document, err := json.Marshal(ours)
	if err != nil || strings.Contains(string(document), `"access"`) {
		t.Errorf("%v, or it has an access document", err)
	}
	last := ours.Leases[0].Records[len(ours.Leases[0].Records)-1]
	if len(ours.Leases) != 2 || len(ours.Vouchers) != 1 || ours.X402 == nil || last.Sequence <= uint64(len(ours.Leases[0].Records)) {
		t.Errorf("%d leases, %d vouchers, record %d of the first is its newest of %d", len(ours.Leases), len(ours.Vouchers), last.Sequence, len(ours.Leases[0].Records))
	}
	filed, err := x402client.ExportFile(t.Context(), n.database, ours.Leases[1].ID)
	if err != nil || len(filed.Leases) != 2 {
		t.Fatalf("of a lease, beside the program: %+v, %v", filed, err)
	}
	read := func() *audit.Bundle {
		b, err := audit.Parse(document)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if err := errors.Join(audit.Failures(audit.Verify(t.Context(), read(), n.chain.Backend)), audit.Failures(audit.Verify(t.Context(), filed, nil)),
		audit.Failures(audit.Compare(read(), theirs).Checks), audit.Failures(audit.Compare(theirs, read()).Checks)); err != nil {
		t.Errorf("an honest one: %v", err)
	}
	for name, forge := range map[string]func(*audit.Bundle){
		"a record that is changed":    func(b *audit.Bundle) { b.Leases[0].Records[0].Nanos-- },
		"a record that is repeated":   func(b *audit.Bundle) { b.Leases[1].Records = append(b.Leases[1].Records, b.Leases[1].Records[0]) },
		"leases in another order":     func(b *audit.Bundle) { slices.Reverse(b.Leases) },
		"more claimed than signed":    func(b *audit.Bundle) { b.Settled.AddUint64(&b.Vouchers[0].Cumulative.Int, 1) },
		"a voucher that is changed":   func(b *audit.Bundle) { b.Vouchers[0].Cumulative.AddUint64(&b.Vouchers[0].Cumulative.Int, 1) },
		"a lease without its offer":   func(b *audit.Bundle) { b.Leases[0].Offer = json.RawMessage("null") },
		"another device of its own":   func(b *audit.Bundle) { b.Leases[0].Devices[0] = "SIM-GPU-7" },
		"it begins with more owed":    func(b *audit.Bundle) { b.Leases[1].OwedBefore.AddUint64(&b.Leases[1].OwedBefore.Int, 1) },
		"a payee's, that has holes":   func(b *audit.Bundle) { b.Keeper = audit.KeptByPayee },
		"the channel is our escrow's": func(b *audit.Bundle) { b.X402 = nil },
	} {
		forged := read()
		forge(forged)
		if audit.Failures(audit.Verify(t.Context(), forged, nil)) == nil {
			t.Errorf("%s: not found", name)
		}
	}
	for name, forge := range map[string]func(*audit.Bundle){
		"a lease that it lacks":  func(b *audit.Bundle) { b.Leases = b.Leases[:1] },
		"a record that it lacks": func(b *audit.Bundle) { b.Leases[0].Records = b.Leases[0].Records[:len(b.Leases[0].Records)-1] },
	} {
		forged := *theirs
		forged.Leases = slices.Clone(theirs.Leases)
		for last.Sequence < uint64(len(forged.Leases[0].Records)) { // up to the newest that the renter was shown
			forged.Leases[0].Records = forged.Leases[0].Records[:len(forged.Leases[0].Records)-1]
		}
		forge(&forged)
		if audit.Failures(audit.Compare(read(), &forged).Checks) == nil {
			t.Errorf("the provider's, %s: not found", name)
		}
	}
}
