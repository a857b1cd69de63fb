package renting

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

// rentOverX402 rents by ticks over x402: each window is paid when it was metered
// and its record checked. What is left in the channel comes back at the end.
func rentOverX402(ctx, work context.Context, renter *renter.Client, o *Renting) error {
	client, err := x402client.New(work, renter.Wallet(), x402client.Options{MaxPrice: wallet.Unlimited, Deposit: o.Options.Deposit})
	if err != nil {
		return err
	}
	channels, err := client.Channels(work)
	if err != nil {
		return err
	}
	token := renter.Token()
	for _, c := range channels {
		if o.List || o.Leave {
			fmt.Printf("channel %s: %s, holds %s %s, %s charged, %s\n", c.ID, c.Status, units.Format(c.Deposit, token.Decimals),
				token.Symbol, units.Format(c.Charged, token.Decimals), c.URL)
		}
	}
	switch {
	case o.List:
		return nil
	case o.Leave:
		return together(channels, func(c x402client.Channel) error {
			refund, err := client.Leave(work, c.ID)
			if err == nil {
				fmt.Printf("channel %s: got back %s %s\n", c.ID, units.Format(refund.Amount, token.Decimals), token.Symbol)
			}
			return err
		})
	}
	rental, err := client.RentClass(work, o.Provider, o.Options.Class, o.Options.GPUs)
	if err != nil {
		return err
	}
	if o.Options.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Options.For)
		defer cancel()
	}
	shown := false
	runErr := rental.Run(ctx, func(t x402client.Tick) {
		if !shown {
			fmt.Printf("channel %s\naccess  %s\n", t.Channel, t.Access)
			shown = true
		}
		fmt.Printf("%s  %s  %s GPU time  %s %s owed\n", time.Now().Format(time.TimeOnly), t.State,
			time.Duration(t.Record.Nanos).Round(time.Millisecond), units.Format(t.Record.Owed, token.Decimals), token.Symbol)
	})
	if !shown {
		if locked, err := holds(work, client, rental); err != nil || !locked {
			return errors.Join(runErr, err)
		}
	}
	refund, err := rental.Close(work)
	if err != nil {
		return fmt.Errorf("%w (--x402 --leave gets the deposit back without the provider)", errors.Join(runErr, err))
	}
	fmt.Printf("closed: got back %s %s\n", units.Format(refund.Amount, token.Decimals), token.Symbol)
	return runErr
}

// holds reports whether a rental's channel has money that is not charged: its first
// tick may have failed behind the deposit.
func holds(ctx context.Context, client *x402client.Client, rental *x402client.Rental) (bool, error) {
	channels, err := client.Channels(ctx)
	return slices.ContainsFunc(channels, func(c x402client.Channel) bool { return c.ID == rental.Channel() && c.Deposit.Gt(&c.Charged) }), err
}
