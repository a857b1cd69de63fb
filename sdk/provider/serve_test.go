package provider

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
func serveProvider(t *testing.T, m *testrig.Market, change func(*Config)) *httptest.Server {
	t.Helper()
	config := Config{
		Chain: Chain{Backend: m.Backend, Poll: 50 * time.Millisecond}, Escrow: m.Escrow, Token: m.Token, Key: channel.NewKey(m.Payee),
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "3.60", Deposits: Deposits{Min: "0.01"},
		Source: testclock.GPUs(4), Metering: Metering{Clock: testclock.Process(), Tick: 50 * time.Millisecond, RecordEvery: 100 * time.Millisecond, MaxGap: time.Second}, Terms: Terms{Credit: 2 * time.Second},

		Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&config)
	}
	p, err := New(t.Context(), config)
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
