package renter_test

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// deaf loses the answer to the first open.
type deaf struct{ lost atomic.Bool }

func (d *deaf) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(req)
	c, none := wire.ParseCredential(req.Header)
	if err != nil || none != nil || c.Payload.Action != wire.ActionOpen || d.lost.Swap(true) {
		return resp, err
	}
	return nil, errors.Join(errors.New("the answer got lost"), resp.Body.Close())
}

// TestLeaseBeganUnderTheOfferBefore: a renter is cut off while its lease begins,
// before or after it hears of it, and the provider is started again and has a
// new offer. The lease is under the old one, which was asked for: that is no
// lie.
func TestLeaseBeganUnderTheOfferBefore(t *testing.T) {
	for name, cut := range map[string]func(t *testing.T, config *renter.Config, rent func(*renter.Client) (*renter.Rental, error)){
		"the answer got lost": func(t *testing.T, config *renter.Config, rent func(*renter.Client) (*renter.Rental, error)) {
			config.HTTP = &http.Client{Transport: &deaf{}}
			r := renterrig.Open(t, *config)
			if _, err := rent(r); err == nil {
				t.Fatal("the answer was not lost")
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		},
		"killed when the lease was on disk": func(t *testing.T, config *renter.Config, rent func(*renter.Client) (*renter.Rental, error)) {
			r := renterrig.Open(t, *config)
			l, err := rent(r)
			if err != nil {
				t.Fatal(err)
			}
			l.Lease().Detach()
			row := l.Lease().Row
			row.Phase = rental.PhaseOpening // the last thing that is written
			if err := errors.Join(r.Store().Save(t.Context(), row), r.Close()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { resumeUnderNewOffer(t, cut) })
	}
}

func resumeUnderNewOffer(t *testing.T, cut func(*testing.T, *renter.Config, func(*renter.Client) (*renter.Rental, error))) {
	m := testrig.NewMarket(t)
	server, restart := restartable(t, m)
	config := renterrig.Config(t, m, m.Newcomer(t))
	cut(t, &config, func(r *renter.Client) (*renter.Rental, error) {
		return r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
	})
	restart()
	r, l := resume(t, config)
	l.Lease().Detach()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r, l = resume(t, config) // from what the first one left on disk
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "a paid record", func() bool { s := l.Snapshot(); return s.Sequence >= 3 && !s.Paid.IsZero() })
	closing, err := l.Close(t.Context())
	if err != nil || closing.Settled != closing.Owed || closing.Owed.IsZero() {
		t.Errorf("%+v, %v", closing, err)
	}
	<-done
	if kept, err := r.Evidence(t.Context(), closing.Channel); err != nil || len(kept) != 0 {
		t.Errorf("an honest provider is accused: %v, %v", kept, err)
	}
}

func resume(t *testing.T, config renter.Config) (*renter.Client, *renter.Rental) {
	t.Helper()
	r := renterrig.Open(t, config)
	left, err := r.Rentals(t.Context())
	if err != nil || len(left) != 1 {
		t.Fatalf("%d rentals, %v", len(left), err)
	}
	l, err := r.Resume(t.Context(), left[0].Channel)
	if err != nil {
		t.Fatal(err)
	}
	return r, l
}

// restartable is a provider that can be started again, with another offer.
func restartable(t *testing.T, m *testrig.Market) (server *httptest.Server, restart func()) {
	t.Helper()
	config := provider.Config{
		Chain: provider.Chain{Backend: m.Backend, Poll: 50 * time.Millisecond}, Escrow: m.Escrow, Token: m.Token, Key: channel.NewKey(m.Payee),
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "3.60", Deposits: provider.Deposits{Min: "0.01"},
		Source: testclock.GPUs(1), Metering: provider.Metering{Clock: testclock.Process(), Tick: 50 * time.Millisecond, RecordEvery: 100 * time.Millisecond, MaxGap: time.Second}, Terms: provider.Terms{Credit: 2 * time.Second},

		Log: slog.New(slog.DiscardHandler),
	}
	var now atomic.Pointer[provider.Server]
	start := func() {
		p, err := provider.New(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		go p.Run(t.Context())
		now.Store(p)
	}
	start()
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { now.Load().ServeHTTP(w, r) }))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		if err := now.Load().Close(); err != nil {
			t.Error(err)
		}
	})
	return server, func() {
		old := now.Load().Offer().Hash
		server.CloseClientConnections()
		if err := now.Load().Close(); err != nil {
			t.Fatal(err)
		}
		config.Terms.OfferTTL = 48 * time.Hour
		if start(); now.Load().Offer().Hash == old {
			t.Fatal("the offer is the same")
		}
	}
}
