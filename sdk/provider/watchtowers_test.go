package provider

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/tower"
)

// A provider tells its watchtowers the newest voucher at once when its payer wants out, however seldom it tells them
// otherwise, and a watchtower that is down or refuses everything holds up neither service nor the others.
func TestTowersAreToldAtOnce(t *testing.T) {
	m := testrig.NewMarket(t)
	watch, err := tower.New(t.Context(), tower.Config{
		Chain: tower.Chain{Backend: m.Backend, Poll: 50 * time.Millisecond}, Escrow: m.Escrow, Key: channel.NewKey(m.Keys[5]), Database: filepath.Join(t.TempDir(), "tower.db"),
		Tokens: map[common.Address]string{m.Token: "0.000001"}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = watch.Close() })
	good := httptest.NewServer(watch)
	t.Cleanup(good.Close)
	var hung atomic.Int64
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hung.Add(1); <-release }))
	t.Cleanup(func() { close(release); slow.Close() })
	server := serveProvider(t, m, func(c *Config) {
		c.Watchtowers.URLs, c.Watchtowers.Every = []string{slow.URL, "http://127.0.0.1:1", good.URL}, time.Hour
	})
	l, err := renterrig.Open(t, renterrig.Config(t, m, m.Payer)).Rent(t.Context(), server.URL, renter.Options{GPUs: 1, Deposit: "1", PayEvery: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := renterrig.Background(ctx, l)
	testrig.Eventually(t, "payments", func() bool { s := l.Snapshot(); return s.Paid.Uint64() > 500 })
	stop()
	<-done
	if known, err := watch.Channels(t.Context()); err != nil || len(known) > 0 {
		t.Fatalf("the tower was told before its time: %v, %v", known, err)
	}
	paid := l.Snapshot().Paid
	request, err := l.SignLeave(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.Automine(t, false) // the provider's own settlement will not come through
	asked := make(chan error, 1)
	relay := m.Relayer(t)
	go func() { asked <- relay.RequestClose(t.Context(), request) }()
	testrig.Eventually(t, "the close request", func() bool {
		n, err := m.Backend.PendingNonceAt(t.Context(), relay.Sender.Address())
		return err == nil && n > 0
	})
	m.Mine(t, 1)
	began := time.Now()
	testrig.Eventually(t, "the tower to know", func() bool {
		known, err := watch.Channels(t.Context())
		return err == nil && len(known) == 1 && known[0].Accepted == paid
	})
	t.Logf("the watchtower had the voucher %s after the close request was mined", time.Since(began).Round(time.Millisecond))
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
	if hung.Load() == 0 {
		t.Error("the slow watchtower was not asked")
	}
	m.Automine(t, true)
	m.Mine(t, 1)
}
