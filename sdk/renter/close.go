package renter

import (
	"context"
	"errors"
	"fmt"

	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
)

// Close ends the rental with the provider's help: it gives the lease back,
// checks the final record and pays it exactly, has the provider close the
// channel, and waits until the refund is on the chain.
//
// ErrRefused means that the provider does not close: Leave gets the deposit
// back without it. A *Dispute beside a Closing means that the channel is closed
// and that the provider lied about the last seconds, which were not paid.
func (l *Rental) Close(ctx context.Context) (Closing, error) {
	release, err := l.lease.TakeOver(ctx)
	if err != nil {
		return Closing{}, err
	}
	defer release()
	defer l.lease.Detach()
	if done, err := l.lease.Over(ctx); done || err != nil {
		return Closing(l.lease.Closing()), err
	}
	if l.lease.Row.Phase == rental.PhaseOpening {
		return Closing{}, fmt.Errorf("channel %s: it was not opened: resume the rental to open it, or leave it", l.lease.ID)
	}
	if l.lease.Row.URL == "" {
		return Closing{}, fmt.Errorf("channel %s: %w: it was found on the chain, and who its provider is was lost: leave it", l.lease.ID, peer.ErrRefused)
	}
	l.lease.Requests.Stop()
	if err := errors.Join(l.lease.StopClock(ctx), l.lease.Enter(ctx, rental.PhaseClosing)); err != nil {
		return Closing{}, err
	}
	lied, unheard := l.lease.LastRecord(ctx) // first of all: the lease is billed until it is given back, and that takes no chain
	if ctx.Err() != nil {
		return Closing{}, ctx.Err()
	}
	closed, err := l.lease.AwaitChain(ctx)
	if err == nil && !closed {
		if unheard != nil {
			return Closing{}, unheard
		}
		if err = l.lease.RequestClose(ctx); err == nil {
			err = l.lease.AwaitClosed(ctx)
		}
		if err == nil {
			fault.Point(fault.CloseSeen)
		}
	}
	if err != nil {
		return Closing{}, errors.Join(err, lied)
	}
	c, err := l.lease.Ending(ctx, false)
	return Closing(c), errors.Join(err, lied)
}
