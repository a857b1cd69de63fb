package renter_test

import (
	"context"
	"testing"
	"time"

	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/providerrig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestRenterFromBeforeItsTopUp: a renter whose database is from before it topped up, and from before more was used than its
// credit, tops up again and closes. Nobody is accused, what was used is paid and no more, and the rest of all deposits is back.
func TestRenterFromBeforeItsTopUp(t *testing.T) {
	m := testrig.NewMarket(t)
	p := providerrig.New(t, m, func(c *provider.Config) {
		c.Terms.Credit, c.Metering.MaxGap, c.Terms.SuspendTimeout = time.Second, 150*time.Millisecond, 20*time.Second
	})
	config := renterrig.Config(t, m, m.Payer)
	config.Patience = time.Minute
	r := renterrig.Open(t, config)
	before := m.Tokens(t, m.PayeeAddress())
	l, err := r.Rent(t.Context(), p.Server.URL, renter.Options{Deposit: "0.3", TopUp: "0.1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	until := func(what string, reached func(renter.State) bool) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		done := renterrig.Background(ctx, l)
		testrig.Eventually(t, what, func() bool { return reached(l.Snapshot()) || len(done) > 0 })
		stop()
		<-done
	}
	again := func(restore func()) {
		t.Helper()
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		restore()
		r = renterrig.Open(t, config)
		if l, err = r.Resume(t.Context(), l.ID()); err != nil {
			t.Fatal(err)
		}
	}
	until("records", func(s renter.State) bool { return s.Sequence >= 3 })
	var old testrig.Files
	again(func() { old = testrig.CopyFiles(t, config.Database) })
	s := l.Snapshot()
	used := s.Owed.Uint64() + 2*uint64((p.Config.Terms.Credit+p.Config.Metering.MaxGap)/time.Millisecond)
	until("use", func(s renter.State) bool { return s.Paid.Uint64() >= used })
	for _, deposit := range []uint64{400_000, 500_000} {
		l.Lease().Topped = time.Time{}
		if err := l.Lease().TopUp(t.Context()); err != nil || l.Lease().Row.Deposit.Uint64() != deposit {
			t.Fatalf("the deposit is %s, %v, want %d", l.Lease().Row.Deposit.Dec(), err, deposit)
		}
		if deposit == 400_000 {
			again(func() { old.Restore(t) })
		}
	}
	closed, err := l.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s := p.Books(l.ID()); closed.Settled != s.Spent || closed.Deposit.Uint64() != 500_000 {
		t.Errorf("closed %+v, the payee's books have %s used", closed, s.Spent.Dec())
	}
	checkClosing(t, m, closed, m.PayerAddress(), before)
	if kept, err := r.Evidence(t.Context(), l.ID()); err != nil || len(kept) != 0 {
		t.Errorf("the renter accuses an honest provider: %v, %v", kept, err)
	}
}
