package paystream

import (
	"context"
	"errors"
	"fmt"

	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxPast is from how many leases on a channel on no more are taken up that this database does not know: each is kept.
const maxPast = 64

// another is a lease beside the one that this database has. Its payee can name any, so it is paid only where a voucher of ours
// that this database has lost shows that Reopen began one: then its records are asked for from the first, and it goes on. Of
// time, it may have used what the one before did not. Else nobody asked for it: it is given back, and nothing is paid of it. It
// is on disk as the rental's lease from the first on, or not at all: never as one that is asked for still.
func (l *leaseStream) another(ctx context.Context, lease wire.Lease, document []byte) error {
	owed := l.Owed()
	carried, err := l.carried()
	if err != nil {
		return err
	}
	after := rental.Row{OwedBefore: owed, Carried: carried, Recalled: l.Row.Recalled}
	if _, ok := after.Knows(lease); !ok || !l.Row.Recalled.Gt(&owed) || len(l.Row.Past) >= maxPast {
		return l.replaced(ctx, lease)
	}
	offer, err := l.ForgottenOffer(ctx, lease.OfferHash)
	if err != nil {
		l.Wallet.Log.Warn("provider names a lease that this database does not know, under an offer that does not hold: it is given back", "channel", l.ID, "error", err)
		return l.replaced(ctx, lease)
	}
	l.Wallet.Log.Warn("provider names a lease that this database does not know, and a voucher for it: its records are asked for", "channel", l.ID, "lease", lease.LeaseID)
	before, ended := l.Row.Checker, l.Row.Ended != ""
	if err := l.TurnOver(); err != nil {
		return err
	}
	l.askedAfterLast()
	if err := errors.Join(l.Agree(offer), l.begin(ctx, lease, document)); err != nil {
		return err
	}
	if l.Row.Phase == rental.PhaseClosing {
		if err := l.stopForgotten(ctx, *before, ended); err != nil {
			return err
		}
	}
	return l.Reattach(ctx)
}

// stopForgotten ends the time that is paid of a lease that is found out about while the rental is closed: when Close was asked
// for, which is when the lease before was stopped, unless that had ended long ago.
func (l *checks) stopForgotten(ctx context.Context, before verify.State, ended bool) error {
	if err := l.StopClock(ctx); err != nil {
		return err
	}
	if !ended {
		l.Row.Checker.Stopped = max(1, before.Stopped-before.Elapsed)
	}
	return errors.Join(l.Save(ctx), l.Forget())
}

// askedAfterLast has our clock for a lease begin where the one before was heard of last: it cannot have begun earlier.
func (l *checks) askedAfterLast() {
	if before := l.Row.Past[len(l.Row.Past)-1]; before.Heard != nil {
		l.Row.Asked, l.Row.AskedBoot = before.Heard, before.HeardBoot
	}
}

// catchUp takes up what this database has forgotten of a lease that Reopen asks for and that runs already.
func (l *leaseStream) catchUp(ctx context.Context, lease wire.Lease) error {
	if !l.Row.Recalled.Gt(&l.Row.OwedBefore) || len(l.Row.Past) == 0 {
		return nil
	}
	l.askedAfterLast()
	offer, err := l.ForgottenOffer(ctx, lease.OfferHash)
	if err != nil {
		return rental.Transient(fmt.Errorf("channel %s: %w", l.ID, err))
	}
	return l.Agree(offer)
}
