package renter

import (
	"context"

	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wire"
)

// SignLeave signs a request to close that anyone can relay, and ends payments:
// no voucher and no deposit is signed after it. Signing moves nothing. A top-up by
// our own transaction that was sent before it, and is mined after the request,
// takes the request back: sign another one then.
//
// The lease is given back to the provider at once, if that answers, since what it
// serves from then on would be paid no more; a Run ends with channel.ErrClosing.
func (l *Rental) SignLeave(ctx context.Context) (wire.LeaveRequest, error) {
	request, err := l.lease.SignLeave(ctx)
	if err != nil {
		return request, err
	}
	if release, free := l.lease.TakeOverRun(ctx); free {
		defer release()
		defer l.lease.Detach()
		l.lease.GiveBack(ctx)
	}
	return request, nil
}

// Leave gets the deposit back without the provider: it requests the close,
// waits out the grace period, in which the provider may still settle what was
// signed, and withdraws. Where there is too little native coin, the Relay of the
// configuration sends what was signed; without one the error is ErrNoGas, and
// SignLeave makes a document that anyone can send; the rental is then as it was
// before, and can be paid, closed or left.
//
// Of a rental that was being opened (see Client.Rental) it asks the chain alone,
// and never makes the deposit: it waits until one that was handed out is there or
// has ended, and leaves what came.
//
// Of one that is over in the books it asks the chain too, and goes on where that
// has the channel open.
//
// It takes as long as the grace period. It can be cut off and called again,
// also in another process: it goes on from what the chain says. ErrStuck says
// whose refusal it gave up on; nothing is lost by it.
func (l *Rental) Leave(ctx context.Context) (Closing, error) {
	release, err := l.lease.TakeOver(ctx)
	if err != nil {
		return Closing{}, err
	}
	defer release()
	if l.lease.Row.IsOver() { // also one that is final in the books: who leaves asks the chain
		if done, err := l.lease.StillOver(ctx); done || err != nil {
			return Closing(l.lease.Closing()), err
		}
	}
	if l.lease.Row.Phase == rental.PhaseOpening {
		if there, err := l.lease.AwaitOpening(ctx); err != nil || !there {
			return Closing(l.lease.Closing()), err
		}
	}
	l.lease.Requests.Stop()
	closed, err := l.lease.AwaitChain(ctx)
	if err == nil && !closed {
		err = l.lease.Leave(ctx)
	}
	if err != nil {
		return Closing{}, err
	}
	c, err := l.lease.Ending(ctx, true)
	return Closing(c), err
}
