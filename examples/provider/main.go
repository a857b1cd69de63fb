// Command provider rents out this host's GPUs with the SDK. `gpupay serve` is the same with flags, metrics and a clean stop.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering/nvml"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/service"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	key, err := channel.KeyFromEnv("GPUPAY_KEY")
	if err != nil {
		return err
	}
	gpus, err := nvml.Open(nvml.Options{}) // sim.New(1, sim.Options{}) to try it without one
	if err != nil {
		return err
	}
	defer gpus.Close()
	provider, err := provider.New(ctx, provider.Config{
		RPC: os.Getenv("GPUPAY_RPC"), Escrow: common.HexToAddress(os.Getenv("GPUPAY_ESCROW")), Token: common.HexToAddress(os.Getenv("GPUPAY_TOKEN")),
		Key: key, Database: os.Getenv("GPUPAY_DB"), PricePerGPUHour: "2.50", Source: gpus,
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:8402")
	if err != nil {
		return errors.Join(err, provider.Close())
	}
	fmt.Println("renting out at http://" + listener.Addr().String())
	return service.Serve(ctx, service.Service{Handler: provider, Metrics: provider.Metrics(), Health: provider.Health(), Run: provider.Run,
		Stop: func(context.Context) error { return provider.Close() }}, listener, nil) // leases go on at the next start
}
