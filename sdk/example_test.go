package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// One provider with a simulated GPU, one renter without native coin, on a chain in
// this process. The renter pays until its deposit is used up, and is refunded the rest.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	chain, err := devchain.Start(ctx, devchain.Options{})
	must(err)
	defer chain.Close()
	quiet := slog.New(slog.DiscardHandler)

	provider, err := provider.New(ctx, provider.Config{
		RPC: chain.URL, Escrow: chain.Escrow, Token: chain.Token, Key: channel.NewKey(chain.Keys[0]),
		Database: filepath.Join(dir, "provider.db"), PricePerGPUHour: "36.00", Deposits: provider.Deposits{Min: "0.02"}, Source: sim.New(1, sim.Options{}),
		Metering: provider.Metering{Tick: 100 * time.Millisecond, MaxGap: 300 * time.Millisecond, RecordEvery: 500 * time.Millisecond}, Chain: provider.Chain{Poll: 200 * time.Millisecond}, Log: quiet,
	})
	must(err)
	defer provider.Close()
	go provider.Run(ctx)
	server := httptest.NewServer(provider)
	defer server.Close()

	client, err := renter.New(ctx, renter.Config{
		RPC: chain.URL, Token: chain.Token, Key: channel.NewKey(chain.Keys[1]),
		Database: filepath.Join(dir, "renter.db"), Chain: wallet.Chain{Poll: 200 * time.Millisecond}, Log: quiet,
		Caps: wallet.Caps{PricePerGPUHour: "40.00", PerLease: "0.02", PerDay: "1.00", PerPayee: "1.00"},
	})
	must(err)
	defer client.Close()
	must(chain.Fund(ctx, client.Address(), nil, *uint256.NewInt(1_000_000)))
	rental, err := client.Rent(ctx, server.URL, renter.Options{Deposit: "0.02", PayEvery: 500 * time.Millisecond})
	must(err)
	err = rental.Run(ctx) // two seconds at most: 0.02 at 0.01 a second
	fmt.Println("the budget is used up:", errors.Is(err, renter.ErrBudget))
	closing, err := rental.Close(ctx)
	must(err)
	fmt.Println("paid what its records say:", !closing.Settled.IsZero() && closing.Settled == closing.Owed)
	var sum uint256.Int
	fmt.Println("paid and refunded, base units:", sum.Add(&closing.Settled, &closing.Refunded).Dec())
	// Output:
	// the budget is used up: true
	// paid what its records say: true
	// paid and refunded, base units: 20000
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
