package renting

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestAccessIsSaidAtOnce: how the GPUs are reached is printed when the lease begins, not with the next row of the table: they cost
// from then on.
func TestAccessIsSaidAtOnce(t *testing.T) {
	c, log, dir := chaintest.Anvil(t), slog.New(slog.DiscardHandler), t.TempDir()
	p, err := provider.New(t.Context(), provider.Config{
		RPC: c.URL, Escrow: c.Escrow, Token: c.Token, Key: channel.NewKey(c.Keys[0]), Database: filepath.Join(dir, "provider.db"),
		PricePerGPUHour: "3.60", Deposits: provider.Deposits{Min: "0.01"}, Source: sim.New(1, sim.Options{}), Chain: provider.Chain{Poll: 50 * time.Millisecond}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go p.Run(context.WithoutCancel(t.Context()))
	server := httptest.NewServer(p)
	defer server.Close()
	c.Mint(t, crypto.PubkeyToAddress(c.Keys[1].PublicKey), 10_000_000)
	r, err := renter.New(t.Context(), renter.Config{
		RPC: c.URL, Token: c.Token, Key: channel.NewKey(c.Keys[1]), Database: filepath.Join(dir, "renter.db"), Chain: wallet.Chain{Poll: 50 * time.Millisecond}, Log: log,
		Caps: wallet.Caps{PricePerGPUHour: "4", PerLease: "1", PerDay: "1", PerPayee: "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rental, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, in := io.Pipe()
	view := newTable(r, rental)
	view.out, view.live, view.every = in, false, time.Hour
	ended := make(chan struct{}, 2)
	go func() { _ = rental.Run(ctx); ended <- struct{}{} }()
	go func() { view.run(ctx); in.Close(); ended <- struct{}{} }()
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "access  {") {
	}
	if ctx.Err() != nil {
		t.Errorf("it is said at the end: %q", lines.Text())
	}
	cancel()
	go func() { _, _ = io.Copy(io.Discard, out) }() // what the end prints
	<-ended
	<-ended
}
