package renter_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// later is a renter's clock that a test moves on by hand, over the real one.
type later struct {
	metering.Clock
	by atomic.Int64 // ns
}

func (l *later) Now() metering.Instant {
	now, by := l.Clock.Now(), l.by.Load()
	now.Boot, now.Mono, now.Wall = now.Boot+by, now.Mono+by, now.Wall+by
	return now
}

// TestAbsenceIsBounded: a renter's clock allows a quarter of an hour, and the
// signed offer allows the credit. What a provider bills over that is refused and
// kept, whichever way the renter was away.
func TestAbsenceIsBounded(t *testing.T) {
	m := testrig.NewMarket(t)
	const credit, lateReading = 10, 3 // seconds, of the hostile provider's offer
	for _, test := range []struct {
		name   string
		billed time.Duration
		want   error
	}{
		{"the credit and a late reading", (credit + lateReading) * time.Second, nil},
		{"more than the credit", (credit + lateReading + 1) * time.Second, verify.ErrCredit},
		{"all the time", 900 * time.Second, verify.ErrCredit},
	} {
		t.Run("stream/"+test.name, func(t *testing.T) {
			v := testrig.NewHostile(t, m, nil)
			v.Script = func(p *testrig.Stream) { p.Usage(p.Next(test.billed)) }
			r, l := absentee(t, m, v)
			checkAway(t, r, l, l.Run(t.Context()), test.want)
		})
		t.Run("release/"+test.name, func(t *testing.T) {
			v := testrig.NewHostile(t, m, nil)
			streamed := make(chan *testrig.Stream, 8)
			v.Script = func(p *testrig.Stream) { streamed <- p }
			r, l := absentee(t, m, v)
			p := <-streamed
			v.Mu.Lock()
			v.Final = func() metering.SignedRecord {
				return p.Resign(p.Next(test.billed), func(r *metering.SignedRecord) { r.Final = true })
			}
			v.Mu.Unlock()
			_, err := l.Close(t.Context()) // this provider does not close
			checkAway(t, r, l, err, test.want)
		})
	}
}

// absentee is a renter that was away for a quarter of an hour.
func absentee(t *testing.T, m *testrig.Market, v *testrig.Hostile) (*renter.Client, *renter.Rental) {
	t.Helper()
	return absenteeOf(t, renterrig.Config(t, m, m.Payer), v)
}

func absenteeOf(t *testing.T, config renter.Config, v *testrig.Hostile) (*renter.Client, *renter.Rental) {
	t.Helper()
	config.Patience, config.Caps.PerDay = 600*time.Millisecond, wallet.Unlimited
	clock := &later{Clock: metering.System}
	config.Clock = clock
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 60 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	clock.by.Store(int64(15 * time.Minute))
	return r, l
}

func checkAway(t *testing.T, r *renter.Client, l *renter.Rental, err, want error) {
	t.Helper()
	var dispute *wallet.Dispute
	if errors.As(err, &dispute) != (want != nil) || (want != nil && !errors.Is(err, want)) {
		t.Fatalf("%v, want a dispute for %v", err, want)
	}
	if kept, err := r.Evidence(t.Context(), l.ID()); err != nil || want != nil && len(kept) != 1 {
		t.Errorf("%d pieces of evidence, %v", len(kept), err)
	}
	if paid := l.Snapshot().Paid; want != nil && !paid.IsZero() {
		t.Errorf("%s paid for what was refused", paid.Dec())
	}
}

// TestAbsenceIsNoBank: time that a provider did not serve, while its renter was
// away or by its own records of nothing, is not billed in many records that are
// each within the credit: all that is signed for is.
func TestAbsenceIsNoBank(t *testing.T) {
	m := testrig.NewMarket(t)
	for _, rest := range []struct {
		name string
		of   func(*testrig.Stream, *later)
	}{
		{"away", func(_ *testrig.Stream, clock *later) { clock.by.Store(int64(15 * time.Minute)) }},
		{"banked", func(p *testrig.Stream, clock *later) {
			for range 15 {
				p.Usage(p.Next(0))
				time.Sleep(20 * time.Millisecond)
				clock.by.Add(int64(time.Minute))
			}
		}},
	} {
		t.Run(rest.name, func(t *testing.T) {
			v := testrig.NewHostile(t, m, nil)
			config := renterrig.Config(t, m, m.Payer)
			clock := &later{Clock: metering.System}
			config.Clock, config.Caps.PerDay = clock, wallet.Unlimited
			v.Script = func(p *testrig.Stream) {
				rest.of(p, clock)
				for range 68 {
					p.Usage(p.Next(13 * time.Second))
					time.Sleep(20 * time.Millisecond)
				}
			}
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 60 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Run(t.Context()); !errors.Is(err, verify.ErrCredit) {
				t.Errorf("Run: %v", err)
			}
			if kept, err := r.Evidence(t.Context(), l.ID()); err != nil || len(kept) != 1 {
				t.Errorf("%d pieces of evidence, %v", len(kept), err)
			}
			if paid := l.Snapshot().Paid; paid.Uint64() != 13*testrig.HostilePrice {
				t.Errorf("%s signed for, the credit and a late reading are %d", paid.Dec(), 13*testrig.HostilePrice)
			}
		})
	}
}

// TestHonestWhileAway: a real provider that suspends at its credit is never
// caught, however often and long its renter stays away.
func TestHonestWhileAway(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) {
		c.Terms.Credit, c.Metering.MaxGap, c.Source = time.Second, 200*time.Millisecond, testclock.GPUs(2)
	})
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{GPUs: 2, Deposit: "1", PayEvery: 50 * time.Millisecond, Prepay: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		time.Sleep(time.Duration(rand.IntN(900)) * time.Millisecond)
		there, cancel := context.WithTimeout(t.Context(), time.Duration(100+rand.IntN(400))*time.Millisecond)
		if err := l.Run(there); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Run: %v", err)
		}
		cancel()
	}
	c, err := l.Close(t.Context())
	if err != nil || c.Settled.Lt(&c.Owed) { // what was paid ahead stays paid
		t.Fatalf("%+v, %v", c, err)
	}
	if kept, err := l.Evidence(t.Context()); err != nil || len(kept) != 0 {
		t.Errorf("an honest provider is accused: %v, %v", kept, err)
	}
}

// slowStart holds back the answer to an open.
type slowStart struct{ by time.Duration }

func (s slowStart) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(req)
	if c, none := wire.ParseCredential(req.Header); none == nil && c.Payload.Action == wire.ActionOpen {
		time.Sleep(s.by)
	}
	return resp, err
}

// TestStallAtTheBeginning: the lease runs while its first byte is on its way
// for longer than the tolerance. That is no lie of the provider.
func TestStallAtTheBeginning(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	config := renterrig.Config(t, m, m.Payer)
	config.HTTP = &http.Client{Transport: slowStart{by: 3 * config.Tolerance}}
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "paid records", func() bool { s := l.Snapshot(); return s.Sequence > 5 && !s.Paid.IsZero() || len(done) > 0 })
	c, err := l.Close(t.Context())
	if err != nil || c.Settled != c.Owed {
		t.Errorf("%+v, %v", c, err)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
