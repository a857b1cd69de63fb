package sdk

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
	"github.com/gpupay/gpupay/metering/sim"
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

// TestLeaseBeganUnderTheOfferBefore: the answer to an open is lost, and the
// provider is started again and has a new offer. The lease that began is under
// the old one, which was asked for: that is no lie.
func TestLeaseBeganUnderTheOfferBefore(t *testing.T) {
	m := newMarket(t)
	config := ProviderConfig{
		Backend: m.Backend, Escrow: m.Escrow, Token: m.Token, Key: channel.NewKey(m.payee),
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "3.60", MinDeposit: "0.01",
		Source: sim.New(1, sim.Options{}), Credit: 2 * time.Second,
		Tick: 50 * time.Millisecond, RecordEvery: 100 * time.Millisecond, MaxGap: time.Second, Poll: 50 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler),
	}
	provider := func() *Provider {
		p, err := NewProvider(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		go p.Run(t.Context())
		return p
	}
	var now atomic.Pointer[Provider]
	now.Store(provider())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { now.Load().ServeHTTP(w, r) }))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		if err := now.Load().Close(); err != nil {
			t.Error(err)
		}
	})
	rc := m.renterConfig(t, m.newcomer(t))
	rc.HTTP = &http.Client{Transport: &deaf{}}
	r := openRenter(t, rc)
	if _, err := r.Rent(t.Context(), server.URL, RentOptions{Deposit: "1", PayEvery: 100 * time.Millisecond}); err == nil {
		t.Fatal("the answer was not lost")
	}
	old := now.Load().Offer().Hash
	if err := now.Load().Close(); err != nil {
		t.Fatal(err)
	}
	config.OfferTTL = 48 * time.Hour
	now.Store(provider())
	if now.Load().Offer().Hash == old {
		t.Fatal("the offer is the same")
	}
	left, err := r.Rentals(t.Context())
	if err != nil || len(left) != 1 {
		t.Fatalf("%d rentals, %v", len(left), err)
	}
	l, err := r.Resume(t.Context(), left[0].Channel)
	if err != nil {
		t.Fatal(err)
	}
	done := background(t.Context(), l)
	eventually(t, "a paid record", func() bool { s := l.Snapshot(); return s.Sequence >= 3 && !s.Paid.IsZero() })
	closing, err := l.Close(t.Context())
	if err != nil || closing.Settled != closing.Owed || closing.Owed.IsZero() {
		t.Errorf("%+v, %v", closing, err)
	}
	<-done
	if kept, err := r.Evidence(t.Context(), closing.Channel); err != nil || len(kept) != 0 {
		t.Errorf("an honest provider is accused: %v, %v", kept, err)
	}
}
