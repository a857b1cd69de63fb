package sdk

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestX402PayersBundle: what a renter keeps of its ticks, of several leases and with records that it was never shown, holds
// together alone, with the chain and beside the provider's, read by whichever program. What it changes, invents or repeats is
// found, and so is what the provider's lacks.
func TestX402PayersBundle(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	for range 3 { // what is metered after a tick, and stated when the lease is suspended, no tick shows
		n.tick()
		n.usesUp()
	}
	n.tick()
	if err := release(n); err != nil {
		t.Fatal(err)
	}
	n.tick()
	if _, err := n.rental.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	ours, err := ExportX402(t.Context(), n.renter.Wallet(), n.rental.Channel())
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
	filed, err := ExportX402File(t.Context(), n.database, ours.Leases[1].ID)
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

// TestX402RenterPrune: the records of a channel that holds no money are deleted after its bundle is kept. Those of one that
// does, by the chain or until lately, from which a tick is under way, whose server was caught or whose bundle could not be kept
// are not, and the channel is used on.
func TestX402RenterPrune(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	r, later, full := n.renter, time.Now().Add(time.Hour), errors.New("the disk is full")
	var kept []*audit.Bundle
	keep := func(b *audit.Bundle) error { kept = append(kept, b); return nil }
	prunes := func(what string, before time.Time, archive func(*audit.Bundle) error, want int) {
		t.Helper()
		had, err := n.x.Records(t.Context(), n.rental.Channel())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := PruneX402(t.Context(), r.Wallet(), before, archive); got != want || err != nil && !errors.Is(err, full) {
			t.Errorf("%s: %d are pruned, want %d, %v", what, got, want, err)
		}
		if left, err := n.x.Records(t.Context(), n.rental.Channel()); err != nil || want == 0 && len(left) != len(had) || want == 1 && len(left) != 0 {
			t.Errorf("%s: %d records of %d are left, %v", what, len(left), len(had), err)
		}
	}
	empty := func() {
		t.Helper()
		if _, err := n.rental.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	prunes("it holds money", later, keep, 0)
	empty()
	prunes("it was used lately", time.Now().Add(-time.Hour), keep, 0)
	prunes("its bundle is not kept", later, func(*audit.Bundle) error { return full }, 0)
	n.dust(1)
	prunes("money came that this renter has not seen", later, keep, 0)
	empty()
	id := n.rental.Channel()
	s := n.slate()
	s.Tick = &pendingTick{URL: "http://provider/tick"}
	if err := n.x.slates().save(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	prunes("a tick is under way", later, keep, 0)
	s.Tick = nil
	if err := n.x.slates().save(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if len(kept) != 0 {
		t.Errorf("%d bundles are kept of what is not pruned", len(kept))
	}
	prunes("empty", later, keep, 1)
	if len(kept) != 1 || kept[0].Channel != id || len(kept[0].Leases) != 1 || len(kept[0].Leases[0].Records) != 1 {
		t.Fatalf("kept: %+v", kept)
	}
	n.tick()
	empty()
	prunes("used on, and empty again", later, keep, 1)
	var backend chain.Backend = n.chain.Backend
	if joined := audit.Join(kept); len(joined) != 1 || len(joined[0].Leases) != 2 || audit.Failures(audit.Verify(t.Context(), joined[0], backend)) != nil {
		t.Errorf("what is kept: %d, %v", len(joined), audit.Failures(audit.Verify(t.Context(), joined[0], backend)))
	}
	n.tick()
	empty()
	if err := r.w.Keep(t.Context(), wallet.Evidence{Channel: id, URL: n.server.URL, Reason: "a test", At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	prunes("its server was caught", later, keep, 0)
}
