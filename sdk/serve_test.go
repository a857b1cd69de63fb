package sdk

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
)

// serveProvider runs a real provider on simulated GPUs, fast enough to watch.
func serveProvider(t *testing.T, m *testrig.Market, change func(*ProviderConfig)) *httptest.Server {
	t.Helper()
	config := ProviderConfig{
		Backend: m.Backend, Escrow: m.Escrow, Token: m.Token, Key: channel.NewKey(m.Payee),
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "3.60", MinDeposit: "0.01",
		Source: testclock.GPUs(4), Clock: testclock.Process(), Credit: 2 * time.Second,
		Tick: 50 * time.Millisecond, RecordEvery: 100 * time.Millisecond, MaxGap: time.Second, Poll: 50 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&config)
	}
	p, err := NewProvider(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.Run(ctx) }()
	server := testrig.Serve(p)
	t.Cleanup(func() {
		testrig.HangUp(server)
		server.Close()
		cancel()
		<-done
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}
