package doctor_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/doctor"
)

// A host with a simulated GPU, before its provider starts on a chain in this process. Its payout is its own address.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	chain, err := devchain.Start(ctx, devchain.Options{})
	must(err)
	defer chain.Close()

	key := channel.NewKey(chain.Keys[0])
	findings := doctor.Check(ctx, doctor.Config{
		RPC: chain.URL, Escrow: chain.Escrow, Token: chain.Token, Payee: key.Address(), Payout: key.Address(),
		Database: filepath.Join(dir, "provider.db"), Open: func() (metering.Source, error) { return sim.New(1, sim.Options{}), nil },
		Prices: map[string]string{"": "2.50"},
	})
	for _, f := range findings {
		fmt.Println(f.Part, f.OK())
	}
	fmt.Println("all well:", doctor.Well(findings))
	// Output:
	// endpoint true
	// clock true
	// escrow true
	// token true
	// coin true
	// payout false
	// database true
	// gpus true
	// all well: false
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
