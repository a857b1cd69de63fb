package renter_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestRenterPrune: the records of a rental whose end is final are deleted after its bundle is kept. Those of one that runs, or whose
// end is not final, that is young, in which the provider was caught or whose bundle could not be kept are not. What was signed and
// what its GPUs were billed for stays.
func TestRenterPrune(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Terms.Credit = time.Minute }) // of all leases together, which nobody pays when they are not run
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	rent := func() *renter.Rental {
		l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.02", PayEvery: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := renterrig.Background(ctx, l)
		testrig.Eventually(t, "two records", func() bool { return l.Snapshot().Sequence >= 2 })
		stop()
		<-done
		return l
	}
	final, caught, young := rent(), rent(), rent()
	for _, l := range []*renter.Rental{final, caught, young} {
		if _, err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	runs := rent()
	for _, l := range []*renter.Rental{final, caught} {
		if err := l.Lease().Enter(t.Context(), rental.PhaseFinished); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Wallet().Keep(t.Context(), wallet.Evidence{Channel: caught.Lease().ID, URL: server.URL, Reason: "a test", At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	full, later := errors.New("the disk is full"), time.Now().Add(time.Hour)
	var kept []*audit.Bundle
	keep := func(b *audit.Bundle) error { kept = append(kept, b); return nil }
	if n, err := r.Prune(t.Context(), time.Now().Add(-time.Hour), keep); n != 0 || err != nil {
		t.Errorf("%d young ones are pruned, %v", n, err)
	}
	if n, err := r.Prune(t.Context(), later, func(*audit.Bundle) error { return full }); n != 0 || !errors.Is(err, full) {
		t.Errorf("%d are pruned that are not kept, %v", n, err)
	}
	before, err := r.Store().Load(t.Context(), final.Lease().ID)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.Prune(t.Context(), later, keep); n != 1 || err != nil {
		t.Errorf("%d are pruned, want 1, %v", n, err)
	}
	if len(kept) != 1 || kept[0].Channel != final.Lease().ID || len(kept[0].Leases) != 1 || len(kept[0].Leases[0].Records) < 2 {
		t.Errorf("kept: %+v", kept)
	} else if err := audit.Failures(audit.Verify(t.Context(), kept[0], m.Backend)); err != nil {
		t.Errorf("what is kept: %v", err)
	}
	for id, gone := range map[common.Hash]bool{final.Lease().ID: true, caught.Lease().ID: false, young.Lease().ID: false, runs.Lease().ID: false} {
		if records, err := r.Store().Records(t.Context(), id); err != nil || (len(records) == 0) != gone {
			t.Errorf("channel %s: %d records are left, %v", id, len(records), err)
		}
	}
	after, err := r.Store().Load(t.Context(), final.Lease().ID)
	if err != nil || len(after.Spans) != len(before.Spans) || after.Checker.Sequence != before.Checker.Sequence {
		t.Errorf("the rental itself: %+v, %v", after, err)
	}
	if n, err := r.Prune(t.Context(), later, keep); n != 0 || err != nil {
		t.Errorf("%d are pruned again, %v", n, err)
	}
}
