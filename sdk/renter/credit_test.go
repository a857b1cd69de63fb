package renter_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/verify"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestCreditIsOneForAllRentals: a renter with three rentals at one payee was away for less than the offer's credit. The payee
// bills that time on each; it is paid once, whether the records come together or in turn to one process after the other.
func TestCreditIsOneForAllRentals(t *testing.T) {
	const leases, away = 3, 9 * time.Second // of a credit of 10 s
	m := testrig.NewMarket(t)
	for name, together := range map[string]bool{"together": true, "in turn": false} {
		t.Run(name, func(t *testing.T) {
			v := testrig.NewHostile(t, m, nil)
			var mu sync.Mutex
			attached := make(map[common.Hash]bool)
			v.Script = func(p *testrig.Stream) {
				mu.Lock()
				again := attached[p.Lease.ChannelID]
				attached[p.Lease.ChannelID] = true
				mu.Unlock()
				if again {
					p.Usage(p.Next(away))
				}
			}
			config := renterrig.Config(t, m, m.Payer)
			clock := sim.NewClock()
			config.Clock, config.Patience, config.Caps.PerDay = clock, time.Minute, wallet.Unlimited
			r := renterrig.Open(t, config)
			var ids []common.Hash
			for range leases {
				l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, l.ID())
			}
			clock.Advance(away)
			var paid uint64
			var caught int
			for some := range slices.Chunk(ids, map[bool]int{true: leases, false: 1}[together]) {
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				r = renterrig.Open(t, config)
				sum, disputes := paidOrCaught(t, r, some)
				paid, caught = paid+sum, caught+disputes
			}
			if want := uint64(away/time.Second) * testrig.HostilePrice; paid != want || caught != leases-1 {
				t.Errorf("%d paid and %d caught, want %d and %d", paid, caught, want, leases-1)
			}
		})
	}
}

// paidOrCaught runs rentals until each has paid or its payee was caught at the credit.
func paidOrCaught(t *testing.T, r *renter.Client, ids []common.Hash) (paid uint64, caught int) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var all []*renter.Rental
	var done []<-chan error
	for _, id := range ids {
		l, err := r.Resume(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		all, done = append(all, l), append(done, renterrig.Background(ctx, l))
	}
	testrig.Eventually(t, "each record to be paid or refused", func() bool {
		return !slices.ContainsFunc(all, func(l *renter.Rental) bool {
			s := l.Snapshot()
			return s.Paid.IsZero() && s.Phase != renter.PhaseDisputed
		})
	})
	stop()
	for i, l := range all {
		var d *wallet.Dispute
		if err := <-done[i]; errors.As(err, &d) && !errors.Is(err, verify.ErrCredit) {
			t.Errorf("%v, want ErrCredit", err)
		}
		s := l.Snapshot()
		if s.Phase == renter.PhaseDisputed { // a Run that is stopped at that moment says so instead
			caught++
		}
		paid += s.Paid.Uint64()
	}
	return paid, caught
}

// TestHonestWithSeveralLeases: a provider that holds a payer to one credit on all of its channels is never caught at it, however
// its renter's rentals come and go, each by itself, and its process with them, at last with a database from a backup.
func TestHonestWithSeveralLeases(t *testing.T) {
	const leases = 3
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) {
		c.Terms.Credit, c.Metering.MaxGap, c.Source = time.Second, 200*time.Millisecond, testclock.GPUs(leases)
	})
	config := renterrig.Config(t, m, m.Payer)
	config.Caps.PerDay = wallet.Unlimited
	r := renterrig.Open(t, config)
	var ids []common.Hash
	for range leases {
		l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond, Prepay: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, l.ID())
	}
	var backup testrig.Files
	for round := range 4 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		switch round {
		case 1:
			backup = testrig.CopyFiles(t, config.Database)
		case 3:
			backup.Restore(t)
		}
		time.Sleep(time.Duration(rand.IntN(900)) * time.Millisecond)
		r = renterrig.Open(t, config)
		var runs sync.WaitGroup
		for _, id := range ids {
			l, err := r.Resume(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			runs.Go(func() {
				for range 2 {
					time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
					ctx, stop := context.WithTimeout(t.Context(), time.Duration(100+rand.IntN(500))*time.Millisecond)
					var d *wallet.Dispute
					if err := l.Run(ctx); errors.As(err, &d) {
						t.Errorf("an honest provider is caught: %v", err)
					}
					stop()
				}
			})
		}
		runs.Wait()
	}
}
