package renter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Reopen takes back a close that was requested on the chain, by Leave or by who relayed what SignLeave signed, and begins
// another lease on the channel, where the one before ended with the request: what its records say is paid first, and the new
// one is under the provider's offer of now, within the caps. Run pays for it then. Of a channel whose close was taken back, or
// never requested, it begins the next lease where the one before has ended, and leaves one that goes on as it is.
//
// It sends a transaction, for which it takes native coin (ErrNoGas). It can be cut off and called again, also in another
// process. After the grace period anyone may have sent the withdrawal: then there is nothing to reopen (channel.ErrFinalized).
// A request that was signed and is not on the chain cannot be taken back (channel.ErrClosing): whoever has it can send it.
func (l *Rental) Reopen(ctx context.Context) error {
	release, err := l.lease.TakeOver(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := l.mayReopen(ctx); err != nil {
		return err
	}
	paid, err := l.lease.Payer.State(ctx, l.lease.ID)
	if err != nil {
		return err
	}
	if l.lease.Row.Phase == rental.PhaseLeaving || paid.Closed {
		if err := l.lease.CancelClose(ctx); err != nil {
			return err
		}
	}
	return l.renew(ctx)
}

// mayReopen refuses what would put money where it is not to be.
func (l *Rental) mayReopen(ctx context.Context) error {
	if done, err := l.lease.Over(ctx); done || err != nil {
		return errors.Join(err, fmt.Errorf("channel %s: %w: rent again", l.lease.ID, channel.ErrFinalized))
	}
	switch {
	case l.lease.Row.Dispute != "":
		return &wallet.Dispute{Channel: l.lease.ID, Reason: errors.New(l.lease.Row.Dispute)}
	case l.lease.Row.Phase != rental.PhaseLeaving && l.lease.Row.Phase != rental.PhaseRunning || l.lease.Row.Found():
		return fmt.Errorf("channel %s: the rental is %s: only one that runs, or is being left, can be reopened", l.lease.ID, l.lease.Row.Phase)
	}
	return l.c.w.Vet(ctx, l.lease.Row.Terms.Payee, peer.SiteOf(l.lease.Row.URL))
}

// renew ends what is left of the lease before and begins another. The provider may see later than we do that the channel is
// open again: it is asked for as long as Patience.
func (l *Rental) renew(ctx context.Context) error {
	pace := chain.Backoff{Least: l.c.w.Poll, Most: 15 * time.Second}
	for began := time.Now(); ; {
		err := l.next(ctx)
		if err == nil || ctx.Err() != nil || !rental.IsTransient(err) && !errors.Is(err, peer.ErrUnreachable) {
			return err
		}
		l.lease.Detach()
		if time.Since(began) > l.c.w.Patience {
			return fmt.Errorf("channel %s: it is open, and no lease begins on it: reopen it again, close it or leave it: %w", l.lease.ID, err)
		}
		if err := chain.Pause(ctx, pace.Next()); err != nil {
			return err
		}
	}
}

// next is one try to renew.
func (l *Rental) next(ctx context.Context) error {
	if l.lease.Row.Lease != (common.Hash{}) && l.lease.Row.Ended == "" {
		if err := l.lease.Reattach(ctx); err != nil {
			return err
		}
		if l.lease.Service != wire.StateEnded && l.lease.Row.Ended == "" {
			return nil // it goes on
		}
		if err := l.lease.Follow(ctx, nil); err != nil || l.lease.Row.Ended == "" {
			return errors.Join(err, l.lease.Save(ctx))
		}
	}
	l.lease.Detach()
	if l.lease.Row.Lease != (common.Hash{}) {
		if err := l.lease.PayExact(ctx); err != nil {
			return err
		}
		q, err := l.c.quote(ctx, l.lease.Row.URL, l.lease.Row.GPUs, l.lease.Offer.ClassID())
		if err != nil {
			return err
		}
		if err := q.pays(l.lease.Terms); err != nil {
			return err
		}
		if err := q.available(); err != nil {
			return err
		}
		if err := l.lease.TurnOver(); err != nil {
			return err
		}
		now := l.c.w.Clock.Now()
		l.lease.Row.Asked, l.lease.Row.AskedBoot = &now, l.c.w.Clock.BootID()
		if err := errors.Join(l.lease.Agree(q.Offer), l.lease.Save(ctx)); err != nil {
			return err
		}
	}
	return l.lease.Reattach(ctx)
}
