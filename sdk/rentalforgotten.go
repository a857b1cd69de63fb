package sdk

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/wire"
)

// maxPast is from how many leases on a channel on no more are taken up that this database does not know: each is kept.
const maxPast = 64

// another is a lease beside the one that this database has, whose records are asked for from the first, checked and paid. Where
// the provider has a voucher of ours that this database has lost, that is from before Reopen began the lease, which goes on. Else
// nothing shows that anybody asked for it: it is given back. Of time, it may have used what the one before did not.
func (l *Rental) another(ctx context.Context, lease wire.Lease) error {
	carried, err := l.carried()
	if err != nil {
		return err
	}
	after := rentalRow{OwedBefore: l.owed(), Carried: carried, Recalled: l.row.Recalled}
	if _, ok := after.knows(lease); !ok || len(l.row.Past) >= maxPast {
		return l.replaced(ctx, lease)
	}
	offer, err := l.forgottenOffer(ctx, lease.OfferHash)
	if err != nil {
		l.r.config.Log.Warn("provider names a lease that this database does not know, under an offer that does not hold: it is given back", "channel", l.id, "error", err)
		return l.replaced(ctx, lease)
	}
	l.r.config.Log.Warn("provider names a lease that this database does not know: its records are asked for", "channel", l.id, "lease", lease.LeaseID)
	if err := l.turnOver(); err != nil {
		return err
	}
	l.askedAfterLast()
	if err := errors.Join(l.agree(offer), l.save(ctx)); err != nil {
		return err
	}
	if err := l.reattach(ctx); err != nil || !l.row.Recalled.IsZero() {
		return err
	}
	return l.replaced(ctx, wire.Lease{LeaseID: l.row.Lease, Secret: l.row.Secret})
}

// askedAfterLast has our clock for a lease begin where the one before was heard of last: it cannot have begun earlier.
func (l *Rental) askedAfterLast() {
	if before := l.row.Past[len(l.row.Past)-1]; before.Heard != nil {
		l.row.Asked, l.row.AskedBoot = before.Heard, before.HeardBoot
	}
}

// catchUp takes up what this database has forgotten of a lease that Reopen asks for and that runs already.
func (l *Rental) catchUp(ctx context.Context, lease wire.Lease) error {
	if l.row.Recalled.IsZero() || len(l.row.Past) == 0 {
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
// keeps it; everything else is as for a new one.
func (l *Rental) forgottenOffer(ctx context.Context, hash common.Hash) (wire.SignedOffer, error) {
	if hash == l.offer.Hash {
		return l.offer, nil
	}
	offer, err := l.peer.pastOffer(ctx, hash)
	if err != nil {
		return offer, err
	}
	if common.Address(offer.Payee) != l.terms.Payee || common.Address(offer.Escrow) != l.terms.Escrow || offer.ChainID != l.terms.ChainID {
		return offer, fmt.Errorf("%w: offer %s is of payee %s in escrow %s on chain %d, the channel pays %s in %s on chain %d",
			ErrOffer, hash, offer.Payee, offer.Escrow, offer.ChainID, l.terms.Payee, l.terms.Escrow, l.terms.ChainID)
	}
	if err := l.r.plausible(offer.Offer); err != nil {
		return offer, err
	}
	_, err = l.r.checkPrice(offer.Offer)
	return offer, err
}
