package x402client

import (
	"errors"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/ticks"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestX402RenterPrune: the records of a channel that holds no money are deleted after its bundle is kept. Those of one that
// does, by the chain or until lately, from which a tick is under way, whose server was caught or whose bundle could not be kept
// are not, and the channel is used on.
func TestX402RenterPrune(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	later, full := time.Now().Add(time.Hour), errors.New("the disk is full")
	var kept []*audit.Bundle
	keep := func(b *audit.Bundle) error { kept = append(kept, b); return nil }
	prunes := func(what string, before time.Time, archive func(*audit.Bundle) error, want int) {
		t.Helper()
		had, err := n.x.Records(t.Context(), n.rental.Channel())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Prune(t.Context(), n.wallet, before, archive); got != want || err != nil && !errors.Is(err, full) {
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
	s := n.account()
	s.Tick = &ticks.Pending{URL: "http://provider/tick"}
	if err := n.x.accounts().Save(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	prunes("a tick is under way", later, keep, 0)
	s.Tick = nil
	if err := n.x.accounts().Save(t.Context(), &s); err != nil {
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
	var backend chain.Backend = n.Backend
	if joined := audit.Join(kept); len(joined) != 1 || len(joined[0].Leases) != 2 || audit.Failures(audit.Verify(t.Context(), joined[0], backend)) != nil {
		t.Errorf("what is kept: %d, %v", len(joined), audit.Failures(audit.Verify(t.Context(), joined[0], backend)))
	}
	n.tick()
	empty()
	if err := n.wallet.Keep(t.Context(), wallet.Evidence{Channel: id, URL: n.Server.URL, Reason: "a test", At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	prunes("its server was caught", later, keep, 0)
}
