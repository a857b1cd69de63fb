package provider

import (
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/bindings/batchsettlement/standin"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/settle"
)

// rigWithX402 is a rig on a chain that has x402's contracts, whose provider takes x402, too.
func rigWithX402(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	t.Parallel()
	net, err := devchain.Start(t.Context(), devchain.Options{BlockTime: 200 * time.Millisecond, Genesis: types.GenesisAlloc{
		channel.BatchSettlementEscrow:    {Code: common.FromHex(standin.BatchSettlement)},
		channel.BatchSettlementCollector: {Code: common.FromHex(standin.ERC3009DepositCollector)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { net.Close() })
	takes := func(c *Config) { c.X402 = &X402{} }
	return rigOn(t, net, func(r *rig) *channel.Key { return r.fund(t, 1_000_000) }, append([]func(*Config){takes}, change...)...)
}

// A provider that takes x402, too, settles by age what leases of its own protocol vouchered, though no client of x402 ever
// came.
func TestAgeSettlesWhereX402IsTaken(t *testing.T) {
	r := rigWithX402(t, func(c *Config) {
		c.Settlement = settle.Policy{Interval: 50 * time.Millisecond, MaxAge: time.Second}
	})
	tab := r.open(1, 100_000, "")
	tab.pay(5000)
	waitFor(t, func() bool { return r.balance(r.config.Key.Address()) >= 5000 })
}
