package provider

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/settle"
)

// On a public chain a provider refuses an escrow, or a delay for x402's clients, that is over when the chain's clock makes
// one of the leaps that it may make. What it takes is for the operator to say.
func TestGraceFloor(t *testing.T) {
	m := testrig.NewMarket(t)
	connect := func(change func(*Config)) error {
		t.Helper()
		config := Config{
			Chain: Chain{Backend: m.Backend, ClockTolerance: 24 * time.Hour}, Escrow: m.Escrow, Token: m.Token, Key: channel.NewKey(m.Payee),
			Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "3.60", Deposits: Deposits{Min: "0.01"}, Source: testclock.GPUs(1), Metering: Metering{Clock: testclock.Process()},
		}
		change(&config)
		_, _, err := config.withDefaults().connect(t.Context())
		return err
	}
	ours := func(*Config) {}
	if err := connect(ours); err != nil {
		t.Errorf("ten minutes on a local chain: %v", err)
	}
	m.RPC(t, nil, "anvil_setChainId", 42161)
	if err := connect(ours); !errors.Is(err, chain.ErrGrace) {
		t.Errorf("ten minutes on Arbitrum: %v, want ErrGrace", err)
	}
	if err := connect(func(c *Config) { c.Chain.MinGrace = 10 * time.Minute }); err != nil {
		t.Errorf("ten minutes on Arbitrum, as the operator wants it: %v", err)
	}
	long, err := chain.Deploy(t.Context(), m.Backend, channel.NewKey(m.Payee), 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := connect(func(c *Config) { c.Escrow = long }); err != nil {
		t.Errorf("two hours on Arbitrum: %v", err)
	}
	short := func(c *Config) { c.Escrow, c.X402 = long, &X402{WithdrawDelay: time.Hour} }
	if err := connect(short); !errors.Is(err, chain.ErrGrace) {
		t.Errorf("an hour for x402's clients on Arbitrum: %v, want ErrGrace", err)
	}
	unsaid := func(c *Config) { c.Escrow, c.X402 = long, &X402{} }
	if err := connect(unsaid); err != nil {
		t.Errorf("x402 as it comes, on Arbitrum: %v", err)
	}
	if d := (X402{}).withDefaults(settle.Policy{MaxAge: time.Minute}, 2*time.Hour).WithdrawDelay; d != 2*time.Hour {
		t.Errorf("x402's clients wait %s where an escrow's wait two hours", d)
	}
}
