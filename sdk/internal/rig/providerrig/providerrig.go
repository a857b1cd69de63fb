// Package providerrig runs real providers on a market's chain, for tests inside the packages of clients: those may import the
// provider. Tests inside the provider's package cannot import this one.
package providerrig

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/settle"
)

// Rig is a provider that runs behind an HTTP server, and can be stopped and started again.
type Rig struct {
	*rig.Market
	Config   provider.Config // of the next Start
	Provider *provider.Server
	Server   *httptest.Server // nil while it is stopped

	t    testing.TB
	stop context.CancelFunc
	ran  chan error
}

// New starts a provider of leases on four simulated GPUs, at 1000 base units a GPU-second and fast enough to watch. It is
// stopped when the test ends.
func New(t testing.TB, m *rig.Market, change ...func(*provider.Config)) *Rig {
	t.Helper()
	return start(t, m, provider.Config{
		Chain: provider.Chain{Backend: m.Backend, Poll: 50 * time.Millisecond}, Escrow: m.Escrow, Token: m.Token, Key: channel.NewKey(m.Payee),
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "3.60", Deposits: provider.Deposits{Min: "0.01"},
		Source: testclock.GPUs(4), Metering: provider.Metering{Clock: testclock.Process(), Tick: 50 * time.Millisecond, RecordEvery: 100 * time.Millisecond, MaxGap: time.Second}, Terms: provider.Terms{Credit: 2 * time.Second},

		Log: slog.New(slog.DiscardHandler),
	}, change)
}

// The times of NewX402, at whose price a window costs 300 base units a GPU.
const (
	Window = 300 * time.Millisecond
	Slack  = 200 * time.Millisecond
)

// NewX402 starts a provider that takes x402, on a market that rig.NewX402Market made.
func NewX402(t testing.TB, m *rig.Market, change ...func(*provider.Config)) *Rig {
	t.Helper()
	return start(t, m, provider.Config{
		RPC: m.URL, Escrow: m.Escrow, Token: m.Token, Key: channel.NewKey(m.Payee), X402: &provider.X402{Window: Window, Slack: Slack},
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "3.60", Deposits: provider.Deposits{Min: "0.01", Timeout: time.Minute},
		Source: testclock.GPUs(2), Metering: provider.Metering{Clock: testclock.Process(), Tick: 20 * time.Millisecond, RecordEvery: 50 * time.Millisecond, MaxGap: 10 * time.Second}, Terms: provider.Terms{Credit: 2 * time.Second, SuspendTimeout: time.Minute},
		Chain: provider.Chain{Poll: 50 * time.Millisecond, MinGrace: time.Minute, ClockTolerance: 24 * time.Hour},

		Settlement: settle.Policy{Interval: time.Hour, LeastRow: *uint256.NewInt(1), Dust: *uint256.NewInt(1)},
		Log:        rig.Warnings(t),
	}, change)
}

func start(t testing.TB, m *rig.Market, config provider.Config, change []func(*provider.Config)) *Rig {
	t.Helper()
	for _, c := range change {
		if c != nil {
			c(&config)
		}
	}
	r := &Rig{Market: m, Config: config, t: t}
	r.Start()
	t.Cleanup(r.Stop)
	return r
}

// Start starts a provider with Config.
func (r *Rig) Start() {
	r.t.Helper()
	p, err := provider.New(r.t.Context(), r.Config)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.Provider, r.stop, r.ran = p, stop, make(chan error, 1)
	go func() { r.ran <- p.Run(ctx) }()
	r.Server = rig.Serve(p)
}

// Stop stops the provider as a signal would, without draining. It may be stopped already.
func (r *Rig) Stop() {
	if r.Server == nil {
		return
	}
	rig.HangUp(r.Server)
	r.Server.Close()
	r.Server = nil
	r.stop()
	if err := <-r.ran; err != nil {
		r.t.Errorf("Run: %v", err)
	}
	if err := r.Provider.Close(); err != nil {
		r.t.Errorf("Close: %v", err)
	}
}

// Restart stops the provider and starts it with Config.
func (r *Rig) Restart() {
	r.t.Helper()
	r.Stop()
	r.Start()
}

// Books is what the provider's database says of a channel, also while the provider runs.
func (r *Rig) Books(id common.Hash) channel.State {
	r.t.Helper()
	db, err := store.OpenToRead(r.t.Context(), r.Config.Database)
	if err != nil {
		r.t.Fatal(err)
	}
	defer db.Close()
	s, err := db.Payee().Load(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// LeaseState is what the provider's database says of a channel's newest lease, also while the provider runs: empty if it has none.
func (r *Rig) LeaseState(id common.Hash) (state string) {
	r.t.Helper()
	db, err := store.OpenToRead(r.t.Context(), r.Config.Database)
	if err != nil {
		r.t.Fatal(err)
	}
	defer db.Close()
	err = db.View().GetContext(r.t.Context(), &state, db.View().Rebind(`SELECT state FROM leases WHERE channel = ? ORDER BY started_at DESC LIMIT 1`), id.Hex())
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		r.t.Fatal(err)
	}
	return state
}
