package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/renting"
	"github.com/gpupay/gpupay/sdk/tower"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// rentFields are the flags behind what is configured.
var rentFields = cli.Fields{
	"RPC": "rpc", "Token": "token", "Escrow": "escrow", "Database": "db", "Poll": "poll", "ChainID": "chain-id", "MaxFee": "max-fee",
	"GPUs": "gpus", "Deposit": "deposit", "TopUp": "top-up", "PayEvery": "pay-every",
	"Caps.PricePerGPUHour": "max-price", "Caps.PerLease": "budget", "Caps.PerDay": "max-per-day", "Caps.PerPayee": "max-per-provider",
}

// rent rents GPUs and pays for them by the minute, until its budget or its time is used up or it is interrupted.
type rent struct {
	flags   *cli.Flags
	minutes float64
	relay   string
	renting.Renting
}

const rentMore = `It checks every record, signs a voucher each minute and, at an interrupt, gives the GPUs back, pays what is left, closes
the channel and waits for the refund. Killed at any moment, it goes on where it was with --resume.

Amounts are in units of the token. Every cap is checked before anything is signed. One key belongs to one running
renter: another one at the same time needs a key and a --db of its own.`

func newRent(app *cli.App) *rent {
	r := &rent{flags: app.Flags("rent", "renter")}
	c, o, f := &r.Config, &r.Options, r.flags

	f.Group("What is rented")
	f.Text(&r.Provider, "provider", "http://127.0.0.1:8402", "`URL` of the provider")
	f.Int(&o.GPUs, "gpus", 1, "how many GPUs")
	f.Text(&o.Class, "class", "", "which of the provider's `class`es of GPUs, such as h100; not asked for if empty")
	f.Float(&r.minutes, "minutes", "how long to rent; until interrupted or the budget is used if 0")

	f.Bool(&o.Share, "share", "rent a share of the GPUs behind an inference server, and pass on what clients of OpenAI's API on this machine ask; with --resume again")
	f.Text(&r.Listen, "share-listen", "127.0.0.1:8420", "with --share: loopback `address` at which they ask")

	f.Group("The most that is paid")
	f.Text(&c.Caps.PricePerGPUHour, "max-price", "5.00", "refuse a GPU-hour that costs more")
	f.Text(&c.Caps.PerLease, "budget", "10.00", "most to spend in this rental")
	f.Text(&c.Caps.PerDay, "max-per-day", "100.00", "most to spend in a day")
	f.Text(&c.Caps.PerPayee, "max-per-provider", "1000.00", "most to spend with one provider, ever")

	f.Group("How it is paid")
	f.Text(&o.Deposit, "deposit", "", "what to deposit; what the provider suggests if empty")
	f.Text(&o.TopUp, "top-up", "", "what to add when the deposit runs low; nothing if empty")
	f.Duration(&o.PayEvery, "pay-every", time.Minute, "time between vouchers")
	f.Bool(&o.Gasless, "gasless", "have the provider send the deposit, also if you have native coin")
	f.Bool(&r.X402, "x402", "pay over x402, window by window; --leave then gets back what is in x402's contract")

	f.Group("Chain and database")
	f.RPC(&c.RPC, "")
	f.Address(&c.Token, "token", "the token to pay in")
	f.Address(&c.Escrow, "escrow", "the one escrow contract to trust; if empty, any whose code is this project's to the byte")
	f.Uint64(&c.Chain.ID, "chain-id", 0, "refuse an endpoint that serves another chain than this `id`")
	f.Duration(&c.Chain.Poll, "poll", 2*time.Second, "time between looks at the chain")
	f.MaxFee(&c.Chain.MaxFee)
	f.Text(&r.relay, "relay", "", "`URL` of a watchtower that sends what --leave signs, where there is no native coin")
	f.Path(&c.Database, "db", "gpupay-renter.db", "`path` of the database: it remembers where your deposits are")

	f.Key()
	f.Log("warn")
	f.Actions("Instead of renting")
	f.Bool(&r.Resume, "resume", "go on with an unfinished rental")
	f.Bool(&r.Leave, "leave", "get the deposit of an unfinished rental back without the provider's help")
	f.Hash(&r.Channel, "channel", "with --resume or --leave: of several rentals the one on this channel")
	f.Bool(&r.List, "list", "list unfinished rentals")
	f.Int64(&r.Recover, "recover", -1, "after the loss of a database, find your channels in --escrow from this `block` on; then --leave gets their deposits back")
	return r
}

func (r *rent) command() *urfave.Command {
	return r.flags.Command("rent GPUs and pay for metered time", rentMore, func(ctx context.Context, _ []string) error {
		if err := r.read(); err != nil {
			return err
		}
		return explain(ctx, r.flags.Named(r.Run(ctx), rentFields))
	})
}

func (r *rent) read() (err error) {
	if r.Config.Log, err = r.flags.Logger(); err != nil {
		return err
	}
	switch {
	case r.minutes < 0:
		return cli.Usage(fmt.Errorf("--minutes %v is negative: say how long to rent, or nothing to rent until interrupted", r.minutes))
	case r.Options.GPUs < 1:
		return cli.Usage(fmt.Errorf("--gpus %d: a rental has one GPU at least", r.Options.GPUs))
	case r.Options.Share && r.X402:
		return cli.Usage(errors.New("--share is paid by the request, --x402 by the window: give one of them"))
	case r.Resume && r.Leave:
		return cli.Usage(errors.New("--resume goes on with a rental, --leave ends it without the provider: give one of them"))
	case r.Channel != (common.Hash{}) && (!r.Resume && !r.Leave || r.X402):
		return cli.Usage(errors.New("--channel says which rental --resume goes on with or --leave ends: give one of them, without --x402"))
	}
	r.Options.For = time.Duration(r.minutes * float64(time.Minute))
	if r.relay != "" {
		r.Config.Relay = &tower.Client{URL: r.relay, Log: r.Config.Log}
	}
	r.Config.Key, err = r.flags.LoadKey()
	return err
}

// explain says what to do about an error in terms of this program's flags.
func explain(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, wallet.ErrDeposit), errors.Is(err, wallet.ErrPrice):
		return fmt.Errorf("%w (--deposit and --top-up are what is put in; the caps are --max-price, --budget, --max-per-day and --max-per-provider)", err)
	case errors.Is(err, wallet.ErrToken):
		return fmt.Errorf("%w (--token, or another provider)", err)
	case errors.Is(err, channel.ErrUnknown):
		return fmt.Errorf("%w (a test chain that was started anew has nothing of the one before: take another --db)", err)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted: %w (--list shows what is unfinished; --resume goes on with it, --leave gets the deposit back)", err)
	}
	return err
}
