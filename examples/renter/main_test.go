package main

import (
	"context"
	"encoding/hex"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestRenterPaysEachPeriod runs the example for three periods on anvil: after each a higher voucher is on the renter's disk, and
// at the end the payee has on the chain what the newest one says, and the renter the rest. The period is a second and not a
// minute.
func TestRenterPaysEachPeriod(t *testing.T) {
	c := chaintest.Anvil(t)
	const purse = 10_000_000
	provider, err := provider.New(t.Context(), provider.Config{
		RPC: c.URL, Escrow: c.Escrow, Token: c.Token, Key: channel.NewKey(c.Keys[0]), Database: filepath.Join(t.TempDir(), "provider.db"),
		PricePerGPUHour: "3.60", Deposits: provider.Deposits{Min: "1"}, Source: sim.New(1, sim.Options{}), Metering: provider.Metering{RecordEvery: 200 * time.Millisecond,
			Tick: 50 * time.Millisecond}, Chain: provider.Chain{Poll: 100 * time.Millisecond}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer provider.Close()
	go provider.Run(context.WithoutCancel(t.Context()))
	server := httptest.NewServer(provider)
	defer server.Close()
	me := crypto.PubkeyToAddress(c.Keys[1].PublicKey)
	c.Mint(t, me, purse)
	database := filepath.Join(t.TempDir(), "renter.db")
	t.Setenv("GPUPAY_KEY", hex.EncodeToString(crypto.FromECDSA(c.Keys[1])))
	t.Setenv("GPUPAY_RPC", c.URL)
	t.Setenv("GPUPAY_TOKEN", c.Token.Hex())
	t.Setenv("GPUPAY_DB", database)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, server.URL, time.Second) }()
	var paid uint256.Int
	for periods, deadline := 0, time.Now().Add(2*time.Minute); periods < 3; time.Sleep(20 * time.Millisecond) {
		if rentals, err := renter.RentalsFile(t.Context(), database); err == nil && len(rentals) == 1 && rentals[0].Paid.Gt(&paid) {
			paid, periods = rentals[0].Paid, periods+1
		}
		select {
		case err := <-ended:
			t.Fatalf("it ended after %d periods: %v", periods, err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d vouchers are on disk", periods)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	rentals, err := renter.RentalsFile(t.Context(), database)
	if err != nil || len(rentals) != 1 || rentals[0].Closed == nil {
		t.Fatalf("%+v, %v", rentals, err)
	}
	closing := rentals[0].Closed
	payee := uint256.NewInt(c.Tokens(t, crypto.PubkeyToAddress(c.Keys[0].PublicKey)))
	if rentals[0].Paid != closing.Signed || closing.Signed.Lt(&paid) || *payee != closing.Signed || closing.Settled != closing.Signed {
		t.Errorf("on disk are vouchers for %s, signed was %s, settled %s, the payee has %s", rentals[0].Paid.Dec(), closing.Signed.Dec(), closing.Settled.Dec(), payee.Dec())
	}
	if left := c.Tokens(t, me); left != purse-payee.Uint64() || c.Tokens(t, c.Escrow) != 0 {
		t.Errorf("the renter has %d of %d, the escrow %d, the payee %s", left, purse, c.Tokens(t, c.Escrow), payee.Dec())
	}
}
