package renter

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxPast is from how many leases on a channel on no more are taken up that this database does not know: each is kept.
const maxPast = 64

// another is a lease beside the one that this database has. Its payee can name any, so it is paid only where a voucher of ours
// that this database has lost shows that Reopen began one: then its records are asked for from the first, and it goes on. Of
// time, it may have used what the one before did not. Else nobody asked for it: it is given back, and nothing is paid of it. It
// is on disk as the rental's lease from the first on, or not at all: never as one that is asked for still.
func (l *leaseStream) another(ctx context.Context, lease wire.Lease, document []byte) error {
	owed := l.owed()
	carried, err := l.carried()
	if err != nil {
		return err
	}
	after := rentalRow{OwedBefore: owed, Carried: carried, Recalled: l.row.Recalled}
	if _, ok := after.knows(lease); !ok || !l.row.Recalled.Gt(&owed) || len(l.row.Past) >= maxPast {
		return l.replaced(ctx, lease)
	}
	offer, err := l.forgottenOffer(ctx, lease.OfferHash)
	if err != nil {
		l.r.w.Log.Warn("provider names a lease that this database does not know, under an offer that does not hold: it is given back", "channel", l.id, "error", err)
		return l.replaced(ctx, lease)
	}
	l.r.w.Log.Warn("provider names a lease that this database does not know, and a voucher for it: its records are asked for", "channel", l.id, "lease", lease.LeaseID)
	before, ended := l.row.Checker, l.row.Ended != ""
	if err := l.turnOver(); err != nil {
		return err
	}
	l.askedAfterLast()
	if err := errors.Join(l.agree(offer), l.begin(ctx, lease, document)); err != nil {
		return err
	}
	if l.row.Phase == PhaseClosing {
		if err := l.stopForgotten(ctx, *before, ended); err != nil {
			return err
		}
	}
	return l.reattach(ctx)
}

// stopForgotten ends the time that is paid of a lease that is found out about while the rental is closed: when Close was asked
// for, which is when the lease before was stopped, unless that had ended long ago.
func (l *checks) stopForgotten(ctx context.Context, before metering.CheckerState, ended bool) error {
	if err := l.stopClock(ctx); err != nil {
		return err
	}
	if !ended {
		l.row.Checker.Stopped = max(1, before.Stopped-before.Elapsed)
	}
	return errors.Join(l.save(ctx), l.forget())
}

// askedAfterLast has our clock for a lease begin where the one before was heard of last: it cannot have begun earlier.
func (l *checks) askedAfterLast() {
	if before := l.row.Past[len(l.row.Past)-1]; before.Heard != nil {
		l.row.Asked, l.row.AskedBoot = before.Heard, before.HeardBoot
	}
}

// catchUp takes up what this database has forgotten of a lease that Reopen asks for and that runs already.
func (l *checks) catchUp(ctx context.Context, lease wire.Lease) error {
	if !l.row.Recalled.Gt(&l.row.OwedBefore) || len(l.row.Past) == 0 {
		return nil
	}
	l.askedAfterLast()
	offer, err := l.forgottenOffer(ctx, lease.OfferHash)
	if err != nil {
		return transient{fmt.Errorf("channel %s: %w", l.id, err)}
	}
	return l.agree(offer)
}

// forgottenOffer is an offer that the payee signed and this database does not have. It may have ended meanwhile, since a lease
// keeps it; its price is held to the caps, and its credit to that of the offer that this database has: a payee could have signed
// it a moment ago, for the time that we were away.
func (l *checks) forgottenOffer(ctx context.Context, hash common.Hash) (wire.SignedOffer, error) {
	if hash == l.offer.Hash {
		return l.offer, nil
	}
	offer, err := l.peer.PastOffer(ctx, hash)
	if err != nil {
		return offer, err
	}
	if common.Address(offer.Payee) != l.terms.Payee || common.Address(offer.Escrow) != l.terms.Escrow || offer.ChainID != l.terms.ChainID {
		return offer, fmt.Errorf("%w: offer %s is of payee %s in escrow %s on chain %d, the channel pays %s in %s on chain %d",
			peer.ErrOffer, hash, offer.Payee, offer.Escrow, offer.ChainID, l.terms.Payee, l.terms.Escrow, l.terms.ChainID)
	}
	if offer.Credit > l.offer.Credit {
		return offer, fmt.Errorf("%w: offer %s has a credit of %d GPU-seconds, %d were agreed", peer.ErrOffer, hash, offer.Credit, l.offer.Credit)
	}
	if err := l.r.plausible(offer.Offer); err != nil {
		return offer, err
	}
	_, err = l.r.w.CheckPrice(offer.Offer)
	return offer, err
}
