package renter_test

import (
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/audit"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestManyShortLeasesAreNotFree: at a price of one base unit for half a second, as
// with a token of two decimals, leases of less than that are charged for their time
// together; both sides' bundles hold together, and agree.
func TestManyShortLeasesAreNotFree(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.PricePerGPUHour = "0.0072" })
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var used uint256.Int
	for leases := 0; leases < 5 || used.Lt(uint256.NewInt(3)); leases++ {
		time.Sleep(250 * time.Millisecond) // GPU time
		if _, err := l.Lease().Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		records, err := r.Records(t.Context(), l.ID())
		if err != nil {
			t.Fatal(err)
		}
		var nanos uint64
		for _, rec := range records {
			if rec.Final {
				nanos += rec.Nanos
			}
		}
		if used, err = l.Lease().Price.Charge(nanos); err != nil {
			t.Fatal(err)
		}
		if l.Lease().Row.OwedBefore != used {
			t.Fatalf("%d leases used %d ns, which is %s base units; %s are charged", leases+1, nanos, used.Dec(), l.Lease().Row.OwedBefore.Dec())
		}
	}
	if _, err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	payers, err := r.Export(t.Context(), l.ID())
	if err != nil {
		t.Fatal(err)
	}
	payees, err := server.Config.Handler.(*provider.Server).Export(t.Context(), l.ID())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []*audit.Bundle{payers, payees} {
		if err := audit.Failures(audit.Verify(t.Context(), b, m.Backend)); err != nil {
			t.Errorf("kept by the %s: %v", b.Keeper, err)
		}
	}
	if err := audit.Failures(audit.Compare(payers, payees).Checks); err != nil {
		t.Error(err)
	}
}
