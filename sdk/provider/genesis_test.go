package provider_test

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/tower"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// A chain that was started anew has the id, the contracts' addresses and the accounts of the one before. Each program refuses a
// database from that, names it, and goes on with it where the chain is the same.
func TestChainStartedAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	quiet := slog.New(slog.DiscardHandler)
	type closer interface{ Close() error }
	programs := map[string]func(*devchain.Chain) (closer, error){
		"provider.db": func(c *devchain.Chain) (closer, error) {
			return provider.New(t.Context(), provider.Config{Chain: provider.Chain{Backend: c.Backend, ClockTolerance: time.Hour}, Escrow: c.Escrow, Token: c.Token, Key: channel.NewKey(c.Keys[0]),
				Database: filepath.Join(dir, "provider.db"), PricePerGPUHour: "36.00", Source: sim.New(1, sim.Options{}), Log: quiet})
		},
		"renter.db": func(c *devchain.Chain) (closer, error) {
			return renter.New(t.Context(), renter.Config{Chain: wallet.Chain{Backend: c.Backend}, Token: c.Token, Key: channel.NewKey(c.Keys[1]),
				Database: filepath.Join(dir, "renter.db"), Log: quiet, Caps: wallet.Caps{PricePerGPUHour: "40.00", PerLease: "1", PerDay: "1", PerPayee: "1"}})
		},
		"tower.db": func(c *devchain.Chain) (closer, error) {
			return tower.New(t.Context(), tower.Config{Chain: tower.Chain{Backend: c.Backend}, Escrow: c.Escrow, Key: channel.NewKey(c.Keys[2]),
				Database: filepath.Join(dir, "tower.db"), Tokens: map[common.Address]string{c.Token: "0.01"}, Log: quiet})
		},
	}
	var chains []*devchain.Chain
	for range 2 {
		c, err := devchain.Start(t.Context(), devchain.Options{Manual: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		chains = append(chains, c)
	}
	if chains[0].Escrow != chains[1].Escrow || chains[0].Token != chains[1].Token {
		t.Fatal("the chains differ in their addresses already")
	}
	for file, start := range programs {
		for i, c := range []*devchain.Chain{chains[0], chains[1], chains[0]} {
			program, err := start(c)
			if err == nil {
				err = errors.Join(program.Close())
			}
			if i == 0 && file == "renter.db" {
				useOnce(t, filepath.Join(dir, file))
			}
			switch other := c == chains[1]; {
			case !other && err != nil:
				t.Errorf("%s, start %d, on the chain that it is from: %v", file, i, err)
			case other && (!errors.Is(err, chain.ErrChainID) || !strings.Contains(err.Error(), filepath.Join(dir, file)) || !strings.Contains(err.Error(), "--db") || strings.Contains(err.Error(), "\n")):
				t.Errorf("%s on a chain that was started anew: %v", file, err)
			}
		}
	}
}

// useOnce gives a renter's database an x402 channel, so that it has something of its chain.
func useOnce(t *testing.T, path string) {
	t.Helper()
	db, err := sqlx.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), `INSERT INTO x402_slates (channel, url, document, updated_at) VALUES ('0x01', 'https://gpus.example', '{}', 1)`); err != nil {
		t.Fatal(err)
	}
}

// TestFailedFirstRentBindsNoDatabase: a renter whose first rental failed before anything was signed rents on another chain with
// the same database, such as on a test chain that was started anew.
func TestFailedFirstRentBindsNoDatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "renter.db")
	for n := range 2 {
		c, err := devchain.Start(t.Context(), devchain.Options{Manual: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		client, err := renter.New(t.Context(), renter.Config{Chain: wallet.Chain{Backend: c.Backend}, Token: c.Token, Key: channel.NewKey(c.Keys[1]), Database: path,
			Log: slog.New(slog.DiscardHandler), Caps: wallet.Caps{PricePerGPUHour: "40.00", PerLease: "1", PerDay: "1", PerPayee: "1"}})
		if err != nil {
			t.Fatalf("on chain %d: %v", n+1, err)
		}
		if _, err := client.Rent(t.Context(), "http://127.0.0.1:1", renter.Options{}); err == nil {
			t.Error("it rents of nobody")
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
