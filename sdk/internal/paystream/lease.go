// Package paystream pays for a lease while it runs: it follows the lease's stream, checks what the provider says against the offer,
// the clock and what was signed, and signs vouchers for what holds.
package paystream

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/awake"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/internal/sharedcredit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Lease follows the lease's stream, signs vouchers for the records that hold, and tops up while the caps allow it.
type Lease struct {
	leaseStream
	sentAt   time.Time     // by awake: of the oldest voucher in the stream that waits for its receipt
	Topped   time.Time     // the newest try to top up
	asked    uint256.Int   // the most that the provider asked for and records state
	aside    bool          // something is done beside the stream
	followed time.Duration // by awake: how long, in all
	looked   time.Time     // the newest look of budget at the chain
}

// leaseStream speaks to the provider: it attaches to the lease's stream, begins the lease or takes it up, and gives it back.
type leaseStream struct {
	checks
	Peer      peer.Peer
	Challenge *wire.Challenge    // the newest, reused for vouchers until it expires
	Feed      *peer.Subscription // nil: not attached
	delivered uint256.Int        // the newest voucher that the provider is known to have
	sent      uint256.Int        // the newest that went into the stream, zero if none did
	counted   uint256.Int        // the newest that Row.Vouchers counts
}

// checks holds what the provider says of the lease against the offer, our clock and what was signed before. What does not hold is
// a dispute.
type checks struct {
	*rental.Channel
	credits   *sharedcredit.Credits // what all of the payee's channels may owe it
	maxCredit time.Duration         // of an offer
	Price     metering.Price
	credit    uint256.Int // base units that the provider serves ahead of vouchers

	Requests *Requests // of a lease that shares GPUs
	Checker  *verify.Checker
	Demand   Demand
	awake    awake.Clock // what silence and patience are measured by
	listened time.Time   // Ledger.Heard, by awake
}

// Demand is a provider's wish for more than its records explain. It is not
// paid; if it stays, it is a dispute.
type Demand struct {
	required  uint256.Int
	explained uint256.Int
	since     time.Time // by the rental's awake; zero: there is none
	document  []byte
}

// New goes on with the lease that a channel's row has. Of a channel that was found on the chain no offer is known: it can only
// be left.
func New(ctx context.Context, channel *rental.Channel, credits *sharedcredit.Credits, maxCredit time.Duration) (*Lease, error) {
	l := new(Lease)
	l.Channel, l.credits, l.maxCredit = channel, credits, maxCredit
	defer l.Show(ctx)
	l.Requests = newRequests(&l.Ledger, l.Wallet.Clock)
	if l.Row.Found() {
		return l, nil
	}
	offer, err := wire.ParseOffer(l.Row.Offer)
	if err != nil {
		return nil, fmt.Errorf("channel %s: its offer on disk does not parse; restore the database from its backup: %w", l.ID, err)
	}
	if l.Peer, err = peer.New(l.Wallet.HTTP, l.Row.URL); err != nil {
		return nil, err
	}
	if err := l.Agree(offer); err != nil {
		return nil, err
	}
	if l.Row.Checker != nil {
		if err := l.resumeChecker(*l.Row.Checker); err != nil {
			return nil, fmt.Errorf("channel %s: the lease on disk does not hold; restore the database from its backup: %w", l.ID, err)
		}
	}
	return l, nil
}

// Agree takes an offer, whose price was checked, for what the lease is under. From here on the provider is asked for the class of that.
func (l *leaseStream) Agree(offer wire.SignedOffer) error {
	l.Peer.Class = offer.ClassID()
	return l.agree(offer)
}

func (l *checks) agree(offer wire.SignedOffer) (err error) {
	l.Row.Offer, l.Offer = offer.Document, offer
	if l.Price, err = offer.Price(); err != nil {
		return err
	}
	if l.credit, err = l.Price.Charge(offer.Credit * uint64(time.Second)); err == nil {
		l.Requests.agree(offer.Offer, l.Row.GPUs, l.Price, l.credit, l.credits.With(l.Terms))
	}
	return err
}

// recall goes back to an earlier offer, if a lease was asked for under it.
func (l *checks) recall(hash common.Hash) error {
	for _, document := range l.Row.PastOffers {
		offer, err := wire.ParseOffer(document)
		if err != nil {
			return fmt.Errorf("channel %s: an offer on disk does not parse; restore the database from its backup: %w", l.ID, err)
		}
		if offer.Hash == hash {
			return l.agree(offer)
		}
	}
	return nil // nobody asked for that one
}

// TurnOver makes room in the books for the channel's next lease.
func (l *checks) TurnOver() error {
	carried, err := l.carried()
	if err != nil {
		return err
	}
	past := rental.Past{ID: l.Row.Lease, Offer: l.Row.Offer, Devices: l.Row.Devices, OwedBefore: l.Row.OwedBefore, Binding: l.Row.Binding}
	if c := l.Row.Checker; c != nil {
		past.Heard, past.HeardBoot = &metering.Instant{Boot: c.Start.Boot + c.Elapsed, Mono: c.Start.Mono + c.Elapsed, Wall: c.Start.Wall + c.Elapsed}, c.BootID
	}
	l.Row.Past = append(l.Row.Past, past)
	l.Row.Carried = carried
	l.Row.OwedBefore = l.Owed()
	l.Row.Lease, l.Row.Secret, l.Row.Devices, l.Row.Access, l.Row.Ended = common.Hash{}, "", nil, nil, ""
	l.Row.Checker, l.Checker, l.Row.PastOffers, l.Row.Binding, l.Row.Books = nil, nil, nil, nil, nil
	l.Demand = Demand{}
	return nil
}

// carried is what the channel's leases used so far and were not charged for, in metering.Fractions.
func (l *checks) carried() (uint64, error) {
	at := l.Row.Checker
	if at == nil {
		return l.Row.Carried, nil
	}
	left, err := l.Offer.Uncharged(at.Nanos, at.Final)
	return l.Row.Carried + left, err
}
