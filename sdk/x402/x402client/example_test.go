package x402client_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings/batchsettlement/standin"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

// A renter pays a provider of simulated GPUs by ticks, on a chain of this process, and has back what it did not use.
func ExampleClient() {
	if err := rentByTicks(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output:
	// paid for 3 ticks of 1 GPU
	// what is left in the channel: 0.00 TUSD
}

func rentByTicks(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "x402client")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := devchain.Start(ctx, devchain.Options{BlockTime: 200 * time.Millisecond, Genesis: types.GenesisAlloc{ // x402's contracts
		channel.BatchSettlementEscrow:    {Code: common.FromHex(standin.BatchSettlement)},
		channel.BatchSettlementCollector: {Code: common.FromHex(standin.ERC3009DepositCollector)},
	}})
	if err != nil {
		return err
	}
	defer c.Close()

	provider, err := provider.New(ctx, provider.Config{
		RPC: c.URL, Escrow: c.Escrow, Token: c.Token, Key: channel.NewKey(c.Keys[0]), Database: filepath.Join(dir, "provider.db"),
		PricePerGPUHour: "3.60", Source: sim.New(1, sim.Options{}), Metering: provider.Metering{Tick: 50 * time.Millisecond}, Chain: provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour},
		X402: &provider.X402{Window: 300 * time.Millisecond}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	defer provider.Close()
	working, stop := context.WithCancel(ctx)
	defer stop()
	go func() { _ = provider.Run(working) }()
	server := httptest.NewServer(provider)
	defer server.Close()

	renter := channel.NewKey(c.Keys[1])
	if err := c.Fund(ctx, renter.Address(), nil, *uint256.NewInt(1_000_000)); err != nil { // one token
		return err
	}
	w, err := wallet.Open(ctx, wallet.Config{
		Key: renter, Chain: wallet.Chain{Backend: c.Backend, Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Token: c.Token, Database: filepath.Join(dir, "renter.db"),
		Caps: wallet.Caps{PricePerGPUHour: "4.00", PerLease: "1.00", PerDay: "1.00", PerPayee: "1.00"},
		Log:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	defer w.Close()
	client, err := x402client.New(ctx, w, x402client.Options{MaxPrice: "0.01"}) // the most that a tick may cost
	if err != nil {
		return err
	}
	rental, err := client.Rent(ctx, server.URL, 1)
	if err != nil {
		return err
	}
	ticks, gpus := 0, 0
	renting, done := context.WithCancel(ctx)
	err = rental.Run(renting, func(t x402client.Tick) { // each was metered, and its record checked
		if ticks, gpus = ticks+1, len(t.Devices); ticks == 3 {
			done()
		}
	})
	if err != nil {
		return err
	}
	fmt.Printf("paid for %d ticks of %d GPU\n", ticks, gpus)
	refund, err := rental.Close(ctx)
	if err != nil {
		return err
	}
	fmt.Println("what is left in the channel:", w.Format(refund.Left))
	return nil
}
