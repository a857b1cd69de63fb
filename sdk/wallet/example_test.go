package wallet_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// A wallet is opened on a chain of this process, with a cap on everything that may be put at stake.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "wallet")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	c, err := devchain.Start(ctx, devchain.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	w, err := wallet.Open(ctx, wallet.Config{
		Key: channel.NewKey(c.Keys[1]), Chain: wallet.Chain{Backend: c.Backend}, Token: c.Token, Database: filepath.Join(dir, "renter.db"),
		Caps: wallet.Caps{PricePerGPUHour: "3.00", PerLease: "20.00", PerDay: "50.00", PerPayee: wallet.Unlimited},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Close()
	fmt.Println("a lease may cost", w.Format(w.Caps.PerChannel))
	// Output:
	// a lease may cost 20.00 TUSD
}
