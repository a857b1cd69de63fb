package renter_test

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/providerrig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestLastVoucherIsUnderAStep: beside a provider with a MinVoucherDelta the last seconds of a lease are paid to the base unit, however
// little they are: what stays unpaid is the payer's debt, and some of them leave it no credit.
func TestLastVoucherIsUnderAStep(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Terms.MinVoucherDelta = "0.0005" }) // half a second's price
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	for range 3 {
		l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		done := renterrig.Background(t.Context(), l)
		testrig.Eventually(t, "a voucher", func() bool { s := l.Snapshot(); return !s.Paid.IsZero() })
		time.Sleep(150 * time.Millisecond) // less than a step more
		c, err := l.Close(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		<-done
		if c.Owed != c.Settled || c.Owed.IsZero() {
			t.Errorf("%s were owed, %s paid", c.Owed.Dec(), c.Settled.Dec())
		}
	}
}

// TestAskedForLessThanAStep: eight leases of one payer, whose credit is used up before any of them owes a step, go on: each pays what
// it is asked for.
func TestAskedForLessThanAStep(t *testing.T) {
	const leases, credit = 8, 40_000
	m := testrig.NewMarket(t)
	var log testrig.Log
	p := providerrig.New(t, m, func(c *provider.Config) {
		c.Source, c.Terms.Credit, c.Terms.MinVoucherDelta = testclock.GPUs(leases), 40*time.Second, "0.01" // a quarter of it
		c.Metering.RecordEvery = time.Second
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	all, failed := make([]*renter.Rental, leases), make([]error, leases)
	var begun sync.WaitGroup
	for i := range leases {
		begun.Go(func() {
			if all[i], failed[i] = r.Rent(t.Context(), p.Server.URL, renter.Options{Deposit: "1", PayEvery: time.Hour}); failed[i] == nil {
				renterrig.Background(t.Context(), all[i])
			}
		})
	}
	begun.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	testrig.Eventually(t, "the credit from all, and more", func() bool {
		var paid uint64
		for _, l := range all {
			s := l.Snapshot()
			paid += s.Paid.Uint64()
			if p.Provider.Service(l.ID()) == wire.StateSuspended {
				t.Fatalf("lease %s is suspended: it owes %s and has paid %s", l.ID(), s.Owed.Dec(), s.Paid.Dec())
			}
		}
		return paid > credit+credit/4
	})
	if said := log.String(); strings.Contains(said, "lease suspended") {
		t.Error("a lease was suspended whose renter paid when it was asked:\n", said)
	}
}
