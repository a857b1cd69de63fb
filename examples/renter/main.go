// Command renter rents one GPU with the SDK and pays for it every minute, until it is interrupted. `gpupay rent` is the same
// with flags, a table and what to do after a crash.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, cmp.Or(os.Getenv("GPUPAY_PROVIDER"), "http://127.0.0.1:8402"), time.Minute); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// run pays every period until ctx ends, closes, and waits for the refund.
func run(ctx context.Context, provider string, period time.Duration) error {
	key, err := channel.KeyFromEnv("GPUPAY_KEY") // it needs the token, and no gas
	if err != nil {
		return err
	}
	client, err := renter.New(ctx, renter.Config{
		Key: key, RPC: os.Getenv("GPUPAY_RPC"), Token: common.HexToAddress(os.Getenv("GPUPAY_TOKEN")), Database: os.Getenv("GPUPAY_DB"),
		Caps: wallet.Caps{PricePerGPUHour: "5.00", PerLease: "10.00", PerDay: "50.00", PerPayee: "500.00"},
	})
	if err != nil {
		return err
	}
	defer client.Close()
	rental, err := client.Rent(ctx, provider, renter.Options{PayEvery: period})
	if err != nil {
		return err
	}
	fmt.Printf("channel %s\naccess %s\n", rental.ID(), rental.Access())
	if err := rental.Run(ctx); err != nil && !errors.Is(err, context.Canceled) { // checks each record, and signs a voucher a period
		fmt.Fprintln(os.Stderr, "ended:", err)
	}
	closing, err := rental.Close(context.WithoutCancel(ctx))
	if err == nil {
		fmt.Printf("settled %s, refunded %s\n", units.Format(closing.Settled, client.Token().Decimals), units.Format(closing.Refunded, client.Token().Decimals))
	}
	return err
}
