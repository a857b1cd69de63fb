package chaintest

import (
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/bindings/batchsettlement/standin"
)

// Where x402's contracts are on every chain that has them; stock clients know no other.
var (
	BatchSettlement         = common.HexToAddress("0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003")
	ERC3009DepositCollector = common.HexToAddress("0x4020806089470a89826cB9fB1f4059150b550004")
)

// PlaceBatchSettlement puts the stand-ins for x402's contracts at the addresses of the real ones.
func (c *Chain) PlaceBatchSettlement(t testing.TB) {
	t.Helper()
	c.RPC(t, nil, "anvil_setCode", BatchSettlement, standin.BatchSettlement)
	c.RPC(t, nil, "anvil_setCode", ERC3009DepositCollector, standin.ERC3009DepositCollector)
}
