// Package renterrig opens renters on a market's chain, for tests outside of the renter's package: those inside it cannot import
// this one.
package renterrig

import (
	"context"
	"crypto/ecdsa"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// Config is of a renter that looks often and waits for nobody.
func Config(t testing.TB, m *rig.Market, key *ecdsa.PrivateKey) renter.Config {
	t.Helper()
	return renter.Config{
		Chain: wallet.Chain{Backend: m.Backend, Poll: 50 * time.Millisecond}, Token: m.Token, Key: channel.NewKey(key),
		Database:  filepath.Join(t.TempDir(), "renter.db"),
		Caps:      wallet.Caps{PricePerGPUHour: "4.00", PerLease: "10", PerDay: "20", PerPayee: wallet.Unlimited},
		Tolerance: 300 * time.Millisecond, Patience: 2 * time.Second,
		Log: slog.New(slog.DiscardHandler),
	}
}

// Open opens a renter until the test ends.
func Open(t testing.TB, config renter.Config) *renter.Client {
	t.Helper()
	r, err := renter.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// Background runs the rental and returns what Run said.
func Background(ctx context.Context, l *renter.Rental) <-chan error {
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	return done
}
