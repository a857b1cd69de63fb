package provider

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
)

// TestDatabaseIsOfOneProvider: a gateway with another key, chain, escrow or token is refused in one line, and changes
// nothing; one with the next key comes when no other lives, and the old one does not come back. A database from before
// the rule opens, and is whose who comes first.
func TestDatabaseIsOfOneProvider(t *testing.T) {
	address := pgtest.URL(t)
	a := newRig(t, func(c *Config) {
		c.Database, c.Takeover, c.Log = address, 5*time.Second, slog.New(slog.DiscardHandler)
	})
	join := func(change func(*Config)) error {
		config := a.config
		change(&config)
		p, err := New(t.Context(), config)
		if err == nil {
			p.leases.Finish()
			_ = p.shutFiles()
		}
		return err
	}
	refused := func(says string, change func(*Config)) {
		t.Helper()
		err := join(change)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v; want a line with %q", err, says)
		}
	}
	next := channel.NewKey(a.chain.Keys[1])
	other, err := chain.Deploy(t.Context(), a.chain.Backend, next, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	rotated := func(c *Config) { c.Key, c.PastKeys = next, []channel.Signer{a.config.Key} }
	refused("with the key", func(c *Config) { c.Key = next })
	refused("stop all of them", rotated)
	refused("with the escrow", func(c *Config) { c.Escrow = other })
	mine := cluster.Identity{Chain: a.provider.escrow.ChainID(), Escrow: a.config.Escrow.Hex(), Token: a.config.Token.Hex(), Payee: a.config.Key.Address().Hex(), Meter: a.config.Key.Address().Hex()}
	for says, change := range map[string]func(*cluster.Identity){
		"on chain":       func(i *cluster.Identity) { i.Chain++ },
		"with the token": func(i *cluster.Identity) { i.Token = common.Address{1}.Hex() },
		"metering key":   func(i *cluster.Identity) { i.Meter = common.Address{1}.Hex() },
	} {
		its := mine
		change(&its)
		if err := (cluster.Members{DB: a.provider.db}).Identify(t.Context(), its, func(string) bool { return true }); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want a line with %q", err, says)
		}
	}
	if err := join(func(*Config) {}); err != nil {
		t.Errorf("a second gateway of the same provider: %v", err)
	}
	a.shut()
	refused("with the key", func(c *Config) { c.Key = next })
	waitFor(t, func() bool { return join(rotated) == nil }) // when no gateway lives
	refused("with the key", func(*Config) {})
}
