package renter_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// A renter asks a provider's price, rents for as long as it needs, and closes: what its records say was paid, the rest of the
// deposit is back. Provider and chain are in this process.
func ExampleClient_Rent() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	chain, err := devchain.Start(ctx, devchain.Options{BlockTime: 100 * time.Millisecond})
	must(err)
	defer chain.Close()
	provider := serve(ctx, chain, dir)
	defer provider.Close()
	client, err := renter.New(ctx, configured(chain, dir))
	must(err)
	defer client.Close()
	must(chain.Fund(ctx, client.Address(), nil, *uint256.NewInt(1_000_000)))

	quote, err := client.Quote(ctx, provider.URL)
	must(err)
	fmt.Println("a GPU-second costs, base units:", quote.Price.Amount.Dec())
	rental, err := client.Rent(ctx, provider.URL, renter.Options{Deposit: "0.10", PayEvery: 200 * time.Millisecond})
	must(err)
	enough, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	_ = rental.Run(enough) // pays meanwhile
	closing, err := rental.Close(ctx)
	must(err)
	fmt.Println("paid what its records say:", !closing.Settled.IsZero() && closing.Settled == closing.Owed)
	fmt.Println(rental.Snapshot().Phase)
	// Output:
	// a GPU-second costs, base units: 10000
	// paid what its records say: true
	// closed
}

// A renter that has begun to leave changes its mind before the grace period is over, and rents on.
func ExampleRental_Reopen() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	chain, err := devchain.Start(ctx, devchain.Options{BlockTime: 100 * time.Millisecond})
	must(err)
	defer chain.Close()
	provider := serve(ctx, chain, dir)
	defer provider.Close()
	client, err := renter.New(ctx, configured(chain, dir))
	must(err)
	defer client.Close()
	must(chain.Fund(ctx, client.Address(), nil, *uint256.NewInt(1_000_000)))
	rental, err := client.Rent(ctx, provider.URL, renter.Options{Deposit: "0.10", PayEvery: 200 * time.Millisecond})
	must(err)

	leaving, stay := context.WithCancel(ctx)
	go func() {
		requested(ctx, chain, rental.ID())
		stay()
	}()
	_, err = rental.Leave(leaving) // waits for the grace period's end, if nobody stops it
	fmt.Println("left:", err == nil)
	must(rental.Reopen(ctx))
	fmt.Println("it is", rental.Snapshot().Phase)
	_, err = rental.Close(ctx)
	must(err)
	all, err := client.History(ctx) // of every rental, those that are over too
	must(err)
	fmt.Println(len(all), "rental, which is", all[0].Phase)
	// Output:
	// left: false
	// it is running
	// 1 rental, which is closed
}

// requested waits until the escrow has been asked to close a channel.
func requested(ctx context.Context, local *devchain.Chain, id common.Hash) {
	escrow, err := chain.NewEscrow(ctx, local.Backend, local.Escrow)
	must(err)
	for {
		channel, err := escrow.View(ctx, id, nil)
		must(err)
		if channel.CloseRequestedAt != 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// configured is a renter who pays a token a day at most.
func configured(chain *devchain.Chain, dir string) renter.Config {
	return renter.Config{
		RPC: chain.URL, Token: chain.Token, Key: channel.NewKey(chain.Keys[1]), Database: filepath.Join(dir, "renter.db"),
		Caps:  wallet.Caps{PricePerGPUHour: "40.00", PerLease: "0.10", PerDay: "1.00", PerPayee: "1.00"},
		Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler), // the chain's clock runs ahead
	}
}

// serve is a provider with a simulated GPU.
func serve(ctx context.Context, chain *devchain.Chain, dir string) *httptest.Server {
	provider, err := provider.New(ctx, provider.Config{
		RPC: chain.URL, Escrow: chain.Escrow, Token: chain.Token, Key: channel.NewKey(chain.Keys[0]),
		Database: filepath.Join(dir, "provider.db"), PricePerGPUHour: "36.00", Deposits: provider.Deposits{Min: "0.02"}, Source: sim.New(1, sim.Options{}),
		Metering: provider.Metering{Tick: 100 * time.Millisecond, MaxGap: 300 * time.Millisecond, RecordEvery: 500 * time.Millisecond}, Chain: provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour},
		Log: slog.New(slog.DiscardHandler),
	})
	must(err)
	go func() {
		_ = provider.Run(ctx)
		_ = provider.Close()
	}()
	return httptest.NewServer(provider)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
