// Package renting is what a renter's program does at a terminal: it rents, shows what is metered and paid, and closes;
// goes on with what a crash left, or gets its deposits back.
package renting

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// Renting is what is rented, of whom, and what is done.
type Renting struct {
	Config   renter.Config
	Options  renter.Options
	Provider string // URL

	Resume  bool        // go on with an unfinished rental
	Leave   bool        // get deposits back without the provider
	List    bool        // show what is unfinished
	X402    bool        // pay by ticks over x402
	Listen  string      // with Options.Share: the loopback address at which clients of OpenAI's API send requests
	Channel common.Hash // the one rental that is gone on with or left; any if zero
	Recover int64       // block from which channels are looked for on the chain that the database does not know; none if negative
}

// Run does it. An interrupt ends the rental, not the program: what is left is paid and the refund waited for.
func (o *Renting) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if o.List {
		return list(work, o.Config)
	}
	renter, err := renter.New(work, o.Config)
	if err != nil {
		return err
	}
	defer renter.Close()
	if o.Recover >= 0 {
		return recoverLost(ctx, renter, o)
	}
	if o.X402 {
		return rentOverX402(ctx, work, renter, o)
	}
	open, err := renter.Rentals(work)
	if err != nil {
		return err
	}
	open = unfinished(open, o.Channel)
	if o.Leave {
		return leaveAll(ctx, renter, open)
	}
	var at net.Listener
	if o.Options.Share { // before anything is deposited
		if at, err = listen(o.Listen); err != nil {
			return err
		}
		defer at.Close()
	}
	rental, err := begin(ctx, renter, open, o)
	if err != nil {
		return err
	}
	return use(ctx, work, renter, rental, o.limit(rental), at)
}

func begin(ctx context.Context, renter *renter.Client, open []renter.State, o *Renting) (*renter.Rental, error) {
	if o.Resume {
		chosen, err := choose(open, o.Config.Database)
		if err != nil {
			return nil, err
		}
		noteOthers(open, chosen.Channel)
		fmt.Printf("resuming the rental on channel %s\n", chosen.Channel)
		return renter.Resume(ctx, chosen.Channel)
	}
	holding := slices.DeleteFunc(slices.Clone(open), promised) // what may never come to hold anything keeps nobody from renting elsewhere
	if len(holding) > 0 {
		return nil, fmt.Errorf("%d unfinished rental(s) in %s hold deposits: give --resume to go on, --leave to get them back, or another --db with another key", len(holding), redact.Database(o.Config.Database))
	}
	noteOthers(open, common.Hash{})
	quote, err := renter.QuoteClass(ctx, o.Provider, o.Options.Class)
	if err != nil {
		return nil, err
	}
	fmt.Printf("price %s %s per GPU-hour, deposit at least %s, refund without the provider's help after %s\n",
		quote.PerGPUHour, quote.Symbol, units.Format(quote.MinDeposit, quote.Decimals), quote.Grace)
	return renter.Rent(ctx, o.Provider, o.Options)
}

// use pays until it is time to stop, whoever says so, and closes. Meanwhile clients send requests to at, if it is not nil.
func use(ctx, work context.Context, client *renter.Client, rental *renter.Rental, limit time.Duration, at net.Listener) error {
	fmt.Printf("channel %s\n", rental.ID())
	switch rental.Snapshot().Phase {
	case renter.PhaseClosing, renter.PhaseClosed, renter.PhaseFinished: // resumed: only the close is left
		return closeRental(work, client, rental)
	case renter.PhaseLeaving:
		fmt.Println("it is being left; the provider is asked first, who can close at once")
		err := closeRental(work, client, rental)
		if err == nil {
			return nil
		}
		fmt.Fprintln(os.Stderr, "note: the provider does not close it:", redact.Text(err.Error()))
		return leave(ctx, client, rental)
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	view := newTable(client, rental)
	watching, stop := context.WithCancel(work)
	shown := make(chan struct{})
	go func() { defer close(shown); view.run(watching) }()
	err := serve(ctx, rental, at)
	stop()
	<-shown

	var dispute *wallet.Dispute
	switch {
	case err == nil, ctx.Err() != nil:
	case errors.Is(err, renter.ErrBudget):
		fmt.Println("the budget is used up")
	case errors.Is(err, renter.ErrSilent), errors.As(err, &dispute):
		fmt.Fprintln(os.Stderr, "warning:", redact.Text(err.Error()))
	default:
		return fmt.Errorf("%w (the rental is kept: --resume goes on, --leave gets the deposit back)", err)
	}
	return closeRental(work, client, rental)
}

// serve pays, and has requests be sent meanwhile.
func serve(ctx context.Context, rental *renter.Rental, at net.Listener) error {
	if at != nil {
		defer Forward(at, rental)()
		go sayWhere(ctx, at, rental)
	}
	return rental.Run(ctx)
}

func closeRental(ctx context.Context, client *renter.Client, rental *renter.Rental) error {
	fmt.Println("closing: paying what is left, waiting for the refund (an interrupt stops at once; --resume then goes on)")
	closing, err := rental.Close(ctx)
	if errors.Is(err, renter.ErrRefused) || errors.Is(err, renter.ErrSilent) {
		return fmt.Errorf("%w (--resume asks again when the provider is back, --leave gets the deposit back without it)", err)
	}
	if err == nil || closing.Channel != (common.Hash{}) {
		report(client, closing)
	}
	return err
}

// recoverLost finds on the chain what the database does not know.
func recoverLost(ctx context.Context, renter *renter.Client, o *Renting) error {
	if o.Config.Escrow == (common.Address{}) {
		return errors.New("--recover needs --escrow: the contract in which your channels are")
	}
	found, err := renter.Recover(ctx, o.Config.Escrow, uint64(o.Recover))
	for _, id := range found {
		fmt.Printf("found channel %s: --leave gets its deposit back\n", id)
	}
	if err == nil && len(found) == 0 {
		fmt.Println("found no channel that is not known and not over")
	}
	return err
}

func leaveAll(ctx context.Context, client *renter.Client, open []renter.State) error {
	if len(open) == 0 {
		fmt.Println("no unfinished rental: there is nothing to leave")
	}
	return together(open, func(state renter.State) error {
		rental, err := client.Rental(ctx, state.Channel) // not Resume, which would make a deposit
		if err != nil {
			return err
		}
		if promised(state) {
			fmt.Printf("channel %s is not known to be open; the deposit that was signed for it may be sent until %s, and is watched until then\n",
				state.Channel, state.Until.Format(time.TimeOnly))
		}
		return leave(ctx, client, rental)
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

func leave(ctx context.Context, renter *renter.Client, rental *renter.Rental) error {
	fmt.Printf("leaving channel %s: the refund comes after the grace period (it can be interrupted, and --leave goes on)\n", rental.ID())
	closing, err := rental.Leave(ctx)
	if err == nil {
		report(renter, closing)
	}
	return err
}

// limit is how much longer is rented; 0 is until it is interrupted, or its budget is used.
func (o *Renting) limit(rental *renter.Rental) time.Duration {
	s := rental.Snapshot()
	left := remaining(o, s)
	if left != o.Options.For {
		fmt.Printf("of the %s that were rented, %s are left (--minutes says another time)\n", s.For, left.Round(time.Second))
	}
	return left
}

// remaining is what a rental that is resumed has not had metered, a GPU, of the time that it was begun for, where nobody says
// another one.
func remaining(o *Renting, s renter.State) time.Duration {
	if !o.Resume || o.Options.For > 0 || s.For == 0 {
		return o.Options.For
	}
	return max(s.For-time.Duration(s.Nanos/uint64(max(s.GPUs, 1))), time.Millisecond) // not 0, which is without end
}
