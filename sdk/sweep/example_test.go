package sweep_test

import (
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/sweep"
)

// What is settled is moved once an hour to an address whose key is elsewhere, and ten tokens stay; provider.Config.Payout takes it. The
// token's own address would keep what it is sent.
func Example() {
	token, escrow, payee := common.HexToAddress("0x22"), common.HexToAddress("0x11"), common.HexToAddress("0x33")
	policy := sweep.Policy{To: common.HexToAddress("0xc01d"), Reserve: "10.00"}
	fmt.Println(policy.Check(token, escrow, payee))
	policy.To = token
	fmt.Println(policy.Check(token, escrow, payee))
	// Output:
	// <nil>
	// tokens would be lost there, or are no safer: 0x0000000000000000000000000000000000000022 is the token: name another address
}
