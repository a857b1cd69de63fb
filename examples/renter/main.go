// Command renter rents GPUs from a provider and pays for them by the minute,
// until its budget or its time is used up or it is interrupted; then it gives
// them back, pays what is left, closes the channel and waits for the refund.
// Killed at any moment, it goes on where it was: run it again with --resume.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk"
	"github.com/gpupay/gpupay/sdk/tower"
	"github.com/gpupay/gpupay/sdk/units"
)

func main() { cli.Main(run) }

// fields are the flags behind what is configured.
var fields = cli.Fields{
	"RPC": "rpc", "Token": "token", "Escrow": "escrow", "Database": "db", "Poll": "poll", "ChainID": "chain", "MaxFee": "max-fee",
	"GPUs": "gpus", "Deposit": "deposit", "TopUp": "top-up", "PayEvery": "pay-every",
	"Caps.PricePerGPUHour": "max-price", "Caps.PerLease": "budget", "Caps.PerDay": "max-per-day", "Caps.PerPayee": "max-per-provider",
}

type options struct {
	flags    *cli.Flags
	provider string
	minutes  time.Duration
	resume   bool
	leave    bool
	list     bool
	x402     bool
	recover  int64
	config   sdk.RenterConfig
	rent     sdk.RentOptions
}

func parse(args []string) (*options, error) {
	o := &options{}
	c := &o.config
	flags := cli.NewFlags("renter", "rents GPUs from a provider and pays for metered time.\n\nAmounts are in units of the token. Every cap is checked before anything is signed. One key belongs to one\nrunning renter: another one at the same time needs a key and a --db of its own. ", "warn")
	o.flags = flags
	flags.Text(&o.provider, "provider", "GPUPAY_PROVIDER", "http://127.0.0.1:8402", "`URL` of the provider")
	flags.RPC(&c.RPC, "")
	flags.MaxFee(&c.MaxFee)
	token := flags.Address("token", "GPUPAY_TOKEN", "the token to pay in")
	escrow := flags.Address("escrow", "GPUPAY_ESCROW", "the one escrow contract to trust; if empty, any whose code is this project's to the byte")
	flags.Text(&c.Database, "db", "GPUPAY_DB", "gpupay-renter.db", "`path` of the database: it remembers where your deposits are")
	flags.IntVar(&o.rent.GPUs, "gpus", 1, "how many GPUs")
	flags.Text(&o.rent.Deposit, "deposit", "GPUPAY_DEPOSIT", "", "what to deposit; what the provider suggests if empty")
	flags.Text(&o.rent.TopUp, "top-up", "GPUPAY_TOP_UP", "", "what to add when the deposit runs low; nothing if empty")
	flags.DurationVar(&o.rent.PayEvery, "pay-every", time.Minute, "time between vouchers")
	flags.DurationVar(&c.Poll, "poll", 2*time.Second, "time between looks at the chain")
	flags.BoolVar(&o.rent.Gasless, "gasless", false, "have the provider send the deposit, also if you have native coin")
	flags.Text(&c.Caps.PricePerGPUHour, "max-price", "GPUPAY_MAX_PRICE", "5.00", "refuse a GPU-hour that costs more")
	flags.Text(&c.Caps.PerLease, "budget", "GPUPAY_BUDGET", "10.00", "most to spend in this rental")
	flags.Text(&c.Caps.PerDay, "max-per-day", "GPUPAY_MAX_PER_DAY", "100.00", "most to spend in a day")
	flags.Text(&c.Caps.PerPayee, "max-per-provider", "GPUPAY_MAX_PER_PROVIDER", "1000.00", "most to spend with one provider, ever")
	minutes := flags.Float64("minutes", 0, "how long to rent; until interrupted or the budget is used if 0")
	flags.BoolVar(&o.resume, "resume", false, "go on with an unfinished rental instead of beginning one")
	flags.BoolVar(&o.leave, "leave", false, "get the deposit of an unfinished rental back without the provider's help")
	flags.Int64Var(&o.recover, "recover", -1, "after the loss of a database, find your channels in --escrow from this `block` on; then --leave gets their deposits back")
	flags.Uint64Var(&c.ChainID, "chain", 0, "refuse an endpoint that serves another chain than this `id`")
	relay := flags.String("relay", cli.Env("GPUPAY_RELAY", ""), "`URL` of a watchtower that sends what --leave signs, where there is no native coin ($GPUPAY_RELAY)")
	flags.BoolVar(&o.x402, "x402", false, "pay over x402, window by window; --leave then gets back what is in x402's contract")
	flags.BoolVar(&o.list, "list", false, "list unfinished rentals and stop")
	var err error
	if c.Log, err = flags.Load(args); err != nil {
		return nil, err
	}
	switch {
	case *minutes < 0:
		return nil, fmt.Errorf("--minutes %v is negative: say how long to rent, or nothing to rent until interrupted", *minutes)
	case o.rent.GPUs < 1:
		return nil, fmt.Errorf("--gpus %d: a rental has one GPU at least", o.rent.GPUs)
	case o.resume && o.leave:
		return nil, errors.New("--resume goes on with a rental, --leave ends it without the provider: give one of them")
	}
	o.minutes = time.Duration(*minutes * float64(time.Minute))
	c.Token, c.Escrow = token.Address, escrow.Address
	if *relay != "" {
		c.Relay = &tower.Client{URL: *relay, Log: c.Log}
	}
	c.Key, err = flags.Key()
	return o, err
}

func run(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	return explain(ctx, o.flags.Named(rent(ctx, o), fields))
}

// explain says what to do about an error in terms of this program's flags.
func explain(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, sdk.ErrDeposit), errors.Is(err, sdk.ErrTooDear):
		return fmt.Errorf("%w (--deposit and --top-up are what is put in; the caps are --max-price, --budget, --max-per-day and --max-per-provider)", err)
	case errors.Is(err, sdk.ErrToken):
		return fmt.Errorf("%w (--token, or another provider)", err)
	case errors.Is(err, channel.ErrUnknown):
		return fmt.Errorf("%w (a test chain that was started anew has nothing of the one before: take another --db)", err)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted: %w (--list shows what is unfinished; --resume goes on with it, --leave gets the deposit back)", err)
	}
	return err
}

func rent(ctx context.Context, o *options) error {
	// An interrupt ends the rental, not the program: what is left is paid and
	// the refund waited for.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if o.list {
		return list(work, o.config)
	}
	renter, err := sdk.NewRenter(work, o.config)
	if err != nil {
		return err
	}
	defer renter.Close()
	if o.recover >= 0 {
		return recoverLost(ctx, renter, o)
	}
	if o.x402 {
		return rentOverX402(ctx, work, renter, o)
	}
	open, err := renter.Rentals(work)
	if err != nil {
		return err
	}
	if o.leave {
		return leaveAll(ctx, renter, open)
	}
	rental, err := begin(ctx, renter, open, o)
	if err != nil {
		return err
	}
	return use(ctx, work, renter, rental, o.minutes)
}

func begin(ctx context.Context, renter *sdk.Renter, open []sdk.RentalState, o *options) (*sdk.Rental, error) {
	holding := 0
	for _, s := range open {
		switch s.Phase {
		case sdk.RentalClosed: // the refund is here
			continue
		case sdk.RentalOpening:
			if !o.resume && !s.Until.IsZero() { // it may never come to hold anything: that keeps nobody from renting elsewhere
				fmt.Printf("note: the deposit that was signed for channel %s may be sent until %s; --leave watches it and gets it back\n",
					s.Channel, s.Until.Format(time.TimeOnly))
				continue
			}
		}
		if o.resume {
			fmt.Printf("resuming the rental on channel %s\n", s.Channel)
			return renter.Resume(ctx, s.Channel)
		}
		holding++
	}
	if o.resume {
		return nil, fmt.Errorf("no unfinished rental in %s", redact.Database(o.config.Database))
	}
	if holding > 0 {
		return nil, fmt.Errorf("%d unfinished rental(s) in %s hold deposits: give --resume to go on, --leave to get them back, or another --db with another key", holding, redact.Database(o.config.Database))
	}
	quote, err := renter.Quote(ctx, o.provider)
	if err != nil {
		return nil, err
	}
	fmt.Printf("price %s %s per GPU-hour, deposit at least %s, refund without the provider's help after %s\n",
		quote.PerGPUHour, quote.Symbol, units.Format(quote.MinDeposit, quote.Decimals), quote.Grace)
	return renter.Rent(ctx, o.provider, o.rent)
}

// use pays until it is time to stop, whoever says so, and closes.
func use(ctx, work context.Context, renter *sdk.Renter, rental *sdk.Rental, limit time.Duration) error {
	fmt.Printf("channel %s\n", rental.ID())
	switch rental.Snapshot().Phase {
	case sdk.RentalClosing, sdk.RentalClosed, sdk.RentalFinished: // resumed: only the close is left
		return closeRental(work, renter, rental)
	case sdk.RentalLeaving:
		fmt.Println("it is being left; the provider is asked first, who can close at once")
		if err := closeRental(work, renter, rental); err == nil {
			return nil
		}
		return leave(ctx, renter, rental)
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	view := newTable(renter, rental)
	watching, stop := context.WithCancel(work)
	shown := make(chan struct{})
	go func() { defer close(shown); view.run(watching) }()
	err := rental.Run(ctx)
	stop()
	<-shown

	var dispute *sdk.Dispute
	switch {
	case err == nil, ctx.Err() != nil:
	case errors.Is(err, sdk.ErrBudget):
		fmt.Println("the budget is used up")
	case errors.Is(err, sdk.ErrSilent), errors.As(err, &dispute):
		fmt.Fprintln(os.Stderr, "warning:", redact.Text(err.Error()))
	default:
		return fmt.Errorf("%w (the rental is kept: --resume goes on, --leave gets the deposit back)", err)
	}
	return closeRental(work, renter, rental)
}

func closeRental(ctx context.Context, renter *sdk.Renter, rental *sdk.Rental) error {
	fmt.Println("closing: paying what is left, waiting for the refund (an interrupt stops at once; --resume then goes on)")
	closing, err := rental.Close(ctx)
	if errors.Is(err, sdk.ErrRefused) || errors.Is(err, sdk.ErrSilent) {
		return fmt.Errorf("%w (--resume asks again when the provider is back, --leave gets the deposit back without it)", err)
	}
	if err == nil || closing.Channel != (common.Hash{}) {
		report(renter, closing)
	}
	return err
}

// recoverLost finds on the chain what the database does not know.
func recoverLost(ctx context.Context, renter *sdk.Renter, o *options) error {
	if o.config.Escrow == (common.Address{}) {
		return errors.New("--recover needs --escrow: the contract in which your channels are")
	}
	found, err := renter.Recover(ctx, o.config.Escrow, uint64(o.recover))
	for _, id := range found {
		fmt.Printf("found channel %s: --leave gets its deposit back\n", id)
	}
	if err == nil && len(found) == 0 {
		fmt.Println("found no channel that is not known and not over")
	}
	return err
}

func leaveAll(ctx context.Context, renter *sdk.Renter, open []sdk.RentalState) error {
	open = slices.DeleteFunc(open, func(s sdk.RentalState) bool { return s.Phase == sdk.RentalClosed })
	if len(open) == 0 {
		fmt.Println("no unfinished rental: there is nothing to leave")
	}
	return together(open, func(state sdk.RentalState) error {
		rental, err := renter.Rental(ctx, state.Channel) // not Resume, which would make a deposit
		if err != nil {
			return err
		}
		if state.Phase == sdk.RentalOpening && !state.Until.IsZero() {
			fmt.Printf("channel %s is not known to be open; the deposit that was signed for it may be sent until %s, and is watched until then\n",
				state.Channel, state.Until.Format(time.TimeOnly))
		}
		return leave(ctx, renter, rental)
	})
}

// together leaves all channels at once: one after another each would wait for a grace period of its own, and one that cannot
// be left yet would keep the others.
func together[C any](channels []C, leave func(C) error) error {
	failed := make([]error, len(channels))
	var left sync.WaitGroup
	for i, c := range channels {
		left.Go(func() { failed[i] = leave(c) })
	}
	left.Wait()
	return errors.Join(failed...)
}

func leave(ctx context.Context, renter *sdk.Renter, rental *sdk.Rental) error {
	fmt.Printf("leaving channel %s: the refund comes after the grace period (it can be interrupted, and --leave goes on)\n", rental.ID())
	closing, err := rental.Leave(ctx)
	if err == nil {
		report(renter, closing)
	}
	return err
}
