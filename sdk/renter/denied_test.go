package renter_test

import (
	"context"
	"math/big"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"

	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// stuckEndpoint is an endpoint that answers calls of contracts as of one block: of what was deposited since it shows nothing.
type stuckEndpoint struct {
	chain.Backend
	at atomic.Pointer[big.Int] // nil: it tells the truth
}

func (f *stuckEndpoint) CallContract(ctx context.Context, msg ethereum.CallMsg, block *big.Int) ([]byte, error) {
	if at := f.at.Load(); at != nil {
		block = at
	}
	return f.Backend.CallContract(ctx, msg, block)
}

func (f *stuckEndpoint) freeze(t *testing.T) {
	t.Helper()
	head, err := f.BlockNumber(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.at.Store(new(big.Int).SetUint64(head))
}

// spent is what has left the payer, base units.
func (d *drawer) spent() uint64 {
	balance, err := d.token.Balance(d.t.Context(), d.Market.PayerAddress())
	if err != nil {
		d.t.Fatal(err)
	}
	return testrig.Thousand - balance.Uint64()
}

func deniedCaps() map[string]wallet.Caps {
	return map[string]wallet.Caps{
		"PerLease": {PerLease: "1.2", PerDay: "100", PerPayee: "100"},
		"PerDay":   {PerLease: "100", PerDay: "1.2", PerPayee: "100"},
		"PerPayee": {PerLease: "100", PerDay: "100", PerPayee: "1.2"},
	}
}

// TestDeniedDepositsThatEndTogether: the deposit at the start and the top-up after it are both denied, and both have ended when the
// renter looks again. Each counts for the day.
func TestDeniedDepositsThatEndTogether(t *testing.T) {
	const cap = 1_200_000
	m := testrig.NewMarket(t)
	m.PassToMidnight(t)
	d := newDrawerOf(t, m, func(o *wire.Offer) { o.Expires += 1000 * 3600 })
	config := renterrig.Config(t, m, m.Payer)
	bad := &stuckEndpoint{Backend: m.Backend}
	config.Chain.Backend, config.Caps.PerDay, config.Chain.ClockTolerance, config.Now = bad, "1.2", 10_000*time.Hour, m.Now
	r := renterrig.Open(t, config)
	bad.freeze(t)
	l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.1", TopUp: "0.5", Gasless: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Lease().Detach()
	d.terms = l.Terms()
	for i := range 8 {
		l.Lease().Topped = time.Time{}
		_ = l.Lease().TopUp(t.Context())
		if i == 0 && len(d.payloads()) != 2 {
			t.Fatalf("%d authorizations, want the deposit's and the top-up's", len(d.payloads()))
		}
		for _, p := range d.payloads() {
			d.submit(p)
		}
		m.Pass(t, 2*wallet.AuthorizationTTL)
	}
	if today := d.spent(); today > cap || today < 1_000_000 {
		t.Errorf("%d were deposited in a day, the cap is %d", today, cap)
	}
}

// TestDeniedTopUpsCountForTheDay: the only endpoint shows no top-up that the provider sends, and each authorization ends as if
// unused. The caps hold for the day, also over a restart; the next day there is room again.
func TestDeniedTopUpsCountForTheDay(t *testing.T) {
	const cap = 1_200_000
	for name, caps := range deniedCaps() {
		t.Run(name, func(t *testing.T) {
			m := testrig.NewMarket(t)
			m.PassToMidnight(t)
			d := newDrawerOf(t, m, func(o *wire.Offer) { o.Expires += 1000 * 3600 })
			config := renterrig.Config(t, m, m.Payer)
			bad := &stuckEndpoint{Backend: m.Backend}
			caps.PricePerGPUHour = config.Caps.PricePerGPUHour
			config.Chain.Backend, config.Caps, config.Chain.ClockTolerance, config.Now = bad, caps, 10_000*time.Hour, m.Now
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", TopUp: "0.3", Gasless: true})
			if err != nil {
				t.Fatal(err)
			}
			d.terms = l.Terms()
			d.submit(d.payloads()[0])
			bad.freeze(t)
			round := func() {
				l.Lease().Topped = time.Time{}
				_ = l.Lease().TopUp(t.Context())
				for _, p := range d.payloads() {
					d.submit(p)
				}
				m.Pass(t, 2*wallet.AuthorizationTTL)
			}
			for i := range 8 {
				if i == 4 {
					l.Lease().Detach()
					if err := r.Close(); err != nil {
						t.Fatal(err)
					}
					r = renterrig.Open(t, config)
					if l, err = r.Rental(t.Context(), d.terms.ID()); err != nil {
						t.Fatal(err)
					}
				}
				round()
			}
			today := d.spent()
			if today > cap || today < 800_000 {
				t.Errorf("%d were deposited in a day, the cap is %d", today, cap)
			}
			m.PassToMidnight(t)
			for range 3 {
				round()
			}
			if got := d.spent(); got <= today || got > 2*cap {
				t.Errorf("%d were deposited by the next day, and %d by the day before", got, today)
			}
		})
	}
}

// TestDeniedOpensCountForTheDay: the same with a channel for each deposit.
func TestDeniedOpensCountForTheDay(t *testing.T) {
	const cap = 1_200_000
	for name, caps := range deniedCaps() {
		if name == "PerLease" {
			continue // each is another one
		}
		t.Run(name, func(t *testing.T) {
			m := testrig.NewMarket(t)
			m.PassToMidnight(t)
			d := newDrawerOf(t, m, func(o *wire.Offer) { o.Expires += 1000 * 3600 })
			d.RefuseOpen = true
			config := renterrig.Config(t, m, m.Payer)
			bad := &stuckEndpoint{Backend: m.Backend}
			caps.PricePerGPUHour = config.Caps.PricePerGPUHour
			config.Chain.Backend, config.Caps, config.Chain.ClockTolerance, config.Now = bad, caps, 10_000*time.Hour, m.Now
			r := renterrig.Open(t, config)
			bad.freeze(t)
			round := func() {
				_, _ = r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", Gasless: true})
				open, err := r.Rentals(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var left []*renter.Rental
				for _, state := range open {
					l, err := r.Rental(t.Context(), state.Channel)
					if err != nil {
						t.Fatal(err)
					}
					d.terms, left = l.Terms(), append(left, l)
					for _, p := range d.payloads() {
						d.submit(p)
					}
				}
				m.Pass(t, 2*wallet.AuthorizationTTL)
				for _, l := range left {
					if _, err := l.Leave(t.Context()); err != nil {
						t.Error(err)
					}
				}
			}
			for range 5 {
				round()
			}
			today := d.spent()
			if today != 1_000_000 {
				t.Errorf("%d were deposited in a day, the cap is %d", today, cap)
			}
			m.PassToMidnight(t)
			round()
			if got := d.spent(); got <= today || got > 2*cap {
				t.Errorf("%d were deposited by the next day, and %d by the day before", got, today)
			}
		})
	}
}
