package localchain_test

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/chain/localchain"
)

// A token is deployed on a local chain, and a renter has 1,000 of it. On a chain where money may be real it is refused.
func Example() {
	ctx := context.Background()
	local, err := devchain.Start(ctx, devchain.Options{BlockTime: 50 * time.Millisecond})
	must(err)
	defer local.Close()
	renter := channel.NewKey(local.Keys[1]).Address()
	address, err := localchain.DeployToken(ctx, local.Backend, channel.NewKey(local.Keys[0]), []common.Address{renter})
	must(err)

	token, err := chain.NewToken(ctx, local.Backend, address)
	must(err)
	balance, err := token.Balance(ctx, renter)
	must(err)
	fmt.Println(token.Symbol, "of the renter, base units:", balance.Dec())
	// Output:
	// TUSD of the renter, base units: 1000000000
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
