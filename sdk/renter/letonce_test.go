package renter_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering/verify"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestOneGPULetAtOnce: records of several leases of one renter, which bill one GPU for one second, come at one instant: one of
// them is paid, and who sent the others is caught.
func TestOneGPULetAtOnce(t *testing.T) {
	const leases = 4
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	var ready sync.WaitGroup
	ready.Add(leases)
	v.Script = func(p *testrig.Stream) {
		rec := p.Real(p.Next(time.Second))
		ready.Done()
		ready.Wait()
		p.Usage(rec)
	}
	config := renterrig.Config(t, m, m.Payer)
	config.Patience, config.Tolerance, config.Caps.PerDay = time.Minute, time.Minute, wallet.Unlimited
	r := renterrig.Open(t, config)
	var all []*renter.Rental
	var done []<-chan error
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for range leases {
		l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.5", PayEvery: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		all, done = append(all, l), append(done, renterrig.Background(ctx, l))
	}
	var paid, caught int
	testrig.Eventually(t, "each record to be paid or refused", func() bool {
		paid, caught = 0, 0
		for _, l := range all {
			switch s := l.Snapshot(); {
			case s.Phase == renter.PhaseDisputed:
				caught++
			case s.Paid.Uint64() >= testrig.HostilePrice:
				paid++
			}
		}
		return paid+caught == leases
	})
	stop()
	for i := range done {
		var d *wallet.Dispute
		if err := <-done[i]; errors.As(err, &d) && !errors.Is(err, wallet.ErrLetTwice) {
			t.Errorf("lease %d: %v", i, err)
		}
	}
	if paid != 1 {
		t.Errorf("one GPU was paid in %d leases for one second", paid)
	}
}

// TestRecordThatIsNotKeptIsNotBooked: the disk refuses a record: nobody else is held to what it billed. It is kept once the
// disk takes it.
func TestRecordThatIsNotKeptIsNotBooked(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(p *testrig.Stream) { p.Usage(p.Real(p.Next(time.Second))) }
	config := renterrig.Config(t, m, m.Payer)
	config.Patience, config.Tolerance = time.Minute, time.Minute
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.5", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	exec := func(query string) {
		t.Helper()
		if err := r.Wallet().DB.Update(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(query); return err }); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TRIGGER refused BEFORE INSERT ON rental_records BEGIN SELECT RAISE(ABORT, 'no record is taken'); END`)
	if err := l.Run(t.Context()); err == nil {
		t.Fatal("a record was taken that could not be written")
	}
	if spans := r.Wallet().Billed.Spans(l.Terms().Payee, l.ID()); len(spans) != 0 {
		t.Errorf("booked: %+v", spans)
	}
	exec(`DROP TRIGGER refused`)
	ctx, stop := context.WithCancel(t.Context())
	done := renterrig.Background(ctx, l)
	testrig.Eventually(t, "the record", func() bool { s := l.Snapshot(); return s.Paid.Uint64() >= testrig.HostilePrice })
	stop()
	<-done
	if spans := r.Wallet().Billed.Spans(l.Terms().Payee, l.ID()); len(spans) != 1 {
		t.Errorf("booked: %+v", spans)
	}
}

// TestNoRealOfferHasSimulatedGPUs: an offer that names no devices and is of no simulated ones has none: a GPU that is called
// simulated is not looked for in other leases, and could be let in all of them.
func TestNoRealOfferHasSimulatedGPUs(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, func(o *wire.Offer) { o.Simulated = false })
	v.Script = func(p *testrig.Stream) { p.Usage(p.Next(time.Second)) }
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.5"})
	if err != nil {
		t.Fatal(err)
	}
	var d *wallet.Dispute
	if err := l.Run(t.Context()); !errors.As(err, &d) || !errors.Is(err, verify.ErrDevices) {
		t.Errorf("%v, want a dispute for ErrDevices", err)
	}
	if paid := l.Snapshot().Paid; !paid.IsZero() {
		t.Errorf("%s paid", paid.Dec())
	}
}
