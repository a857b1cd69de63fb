package chaintest

import (
	"testing"

	"github.com/gpupay/gpupay/bindings/batchsettlement/standin"
	"github.com/gpupay/gpupay/channel"
)

// PlaceBatchSettlement puts the stand-ins for x402's contracts at the addresses of the real ones.
func (c *Chain) PlaceBatchSettlement(t testing.TB) {
	t.Helper()
	c.RPC(t, nil, "anvil_setCode", channel.BatchSettlementEscrow, standin.BatchSettlement)
	c.RPC(t, nil, "anvil_setCode", channel.BatchSettlementCollector, standin.ERC3009DepositCollector)
}
