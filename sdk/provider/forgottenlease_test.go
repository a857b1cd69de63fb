package provider

import (
	"context"
	"testing"
	"time"

	leasing "github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestForgottenLeaseIsGivenBack: a lease of which nothing was paid yet is all that a restored renter has forgotten. It cannot tell
// that from one that nobody asked for, gives it back, pays nothing of it, and closes. Its provider loses less than its credit.
func TestForgottenLeaseIsGivenBack(t *testing.T) {
	p := newPairWith(t, renter.Options{Deposit: "0.3", PayEvery: time.Hour}, generousCredit)
	p.goOn(3)
	id := p.rental.ID()
	if err := p.provider.leases.Running(id).End(t.Context(), leasing.Stop{Reason: "a test ends it"}); err != nil {
		t.Fatal(err)
	}
	if err := p.rental.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := p.copy()
	first := p.rental.Snapshot()
	if err := p.rental.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.goOn(5)
	if s := p.rental.Snapshot(); s.Paid != first.Paid || s.Lease == first.Lease {
		t.Fatalf("nothing was to be paid of another lease: %+v", s)
	}
	p.down()
	old.renter.Restore(t)
	p.up()
	rental, err := p.renter.Resume(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := rental.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	if s := rental.Snapshot(); s.Lease != first.Lease || s.Paid != first.Paid || s.Reason == "" || p.provider.leases.Running(id) != nil {
		t.Errorf("%+v: before the other lease began %+v", s, first)
	}
	closed, err := rental.Close(ctx)
	if err != nil || closed.Settled != first.Paid {
		t.Errorf("closed: %+v, %v: %s was signed for", closed, err, first.Paid.Dec())
	}
	if kept, err := p.renter.Evidence(ctx, id); err != nil || len(kept) != 0 {
		t.Errorf("the renter accuses an honest provider: %v, %v", reasons(kept), err)
	}
}

// TestForgottenLeaseNeedsItsVoucher: a restored renter has caught up with the lease that its voucher was for, which prepays more
// than was used. A lease that is named later is one that nobody asked for, and is given back.
func TestForgottenLeaseNeedsItsVoucher(t *testing.T) {
	p := oldRenter(t, renter.Options{Deposit: "0.3", PayEvery: 50 * time.Millisecond, Prepay: 100 * time.Second})
	p.goOn(3)
	old := p.copy()
	p.goOn(5)
	p.down()
	old.renter.Restore(t)
	p.resume()
	p.goOn(8)
	id, lease := p.rental.ID(), p.rental.Snapshot().Lease
	if err := p.provider.leases.Running(id).End(t.Context(), leasing.Stop{Reason: "a test ends it"}); err != nil {
		t.Fatal(err)
	}
	if err := p.renter.Close(); err != nil {
		t.Fatal(err)
	}
	changeRental(t, p.database, id, "$.secret", "") // its provider begins another lease for who has none
	p.anew(nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.rental.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	if s := p.rental.Snapshot(); s.Lease != lease || p.provider.leases.Running(id) != nil {
		t.Errorf("it goes on with lease %s, and asked for %s", s.Lease, lease)
	}
}
