package renter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Rental is one channel of a renter and the lease that it pays for. One
// goroutine at a time may Run, Close or Leave it; Close and Leave stop a Run.
// Snapshot, Access and SignLeave may be called at any time.
type Rental struct {
	r      *Client
	id     common.Hash
	terms  channel.Terms
	escrow *chain.Escrow
	payer  *channel.Payer
	peer   peer.Peer
	offer  wire.SignedOffer
	price  metering.Price
	credit uint256.Int // base units that the provider serves ahead of vouchers

	busy chan struct{} // holds one token: whoever has it owns what is below
	row  rentalRow

	checker    *metering.Checker
	challenge  *wire.Challenge    // the newest, reused for vouchers until it expires
	feed       *peer.Subscription // nil: not attached
	lowBalance bool               // the balance did not cover a top-up at the newest look
	delivered  uint256.Int        // the newest voucher that the provider is known to have
	sent       uint256.Int        // the newest that went into the stream, zero if none did
	sentAt     time.Time          // by awake
	counted    uint256.Int        // the newest that row.Vouchers counts
	demand     demand
	topped     time.Time     // the newest try to top up
	aside      bool          // something is done beside the stream
	followed   time.Duration // by awake: how long, in all
	looked     time.Time     // the newest look of budget at the chain
	service    string        // what the provider last said of the lease
	heard      time.Time     // the newest record, or the start
	awake      awake         // what silence and patience are measured by
	listened   time.Time     // heard, by awake

	mu      sync.Mutex
	stop    context.CancelFunc // of a running Run
	waiting int                // Closes and Leaves that wait for their turn
	view    State
	access  json.RawMessage
}

// rental makes a Rental of what is on disk.
func (r *Client) rental(ctx context.Context, row rentalRow, escrow *chain.Escrow) (*Rental, error) {
	if row.found() {
		return r.recovered(ctx, row, escrow)
	}
	offer, err := wire.ParseOffer(row.Offer)
	if err != nil {
		return nil, fmt.Errorf("channel %s: its offer on disk does not parse; restore the database from its backup: %w", row.Terms.ID(), err)
	}
	unit, err := metering.ParseUnit(offer.Unit)
	if err != nil {
		return nil, err
	}
	p, err := peer.New(r.w.HTTP, row.URL)
	if err != nil {
		return nil, err
	}
	l := &Rental{
		r: r, id: row.Terms.ID(), terms: row.Terms, escrow: escrow, payer: r.payer(escrow), peer: p, offer: offer, row: row,
		price: metering.Price{Amount: offer.Amount.Int, Unit: unit},
		busy:  make(chan struct{}, 1), heard: time.Now(),
	}
	if row.TopUp != nil { // of a database that kept no promises
		l.row.promised(row.TopUp.Authorization)
	}
	if row.Funding != nil && row.Phase == PhaseOpening {
		l.row.promised(row.Funding.Authorization)
	}
	if l.credit, err = l.price.Charge(offer.Credit * uint64(time.Second)); err != nil {
		return nil, err
	}
	if row.Checker != nil {
		if err := l.resumeChecker(*row.Checker); err != nil {
			return nil, fmt.Errorf("channel %s: the lease on disk does not hold; restore the database from its backup: %w", l.id, err)
		}
	}
	l.show(ctx)
	l.busy <- struct{}{}
	return l, nil
}

// found reports a rental that was found on the chain, of which no offer is known.
func (row rentalRow) found() bool { return len(row.Offer) == 0 || string(row.Offer) == "null" }

// recovered makes a Rental of which only the channel is known: it can be left.
func (r *Client) recovered(ctx context.Context, row rentalRow, escrow *chain.Escrow) (*Rental, error) {
	l := &Rental{
		r: r, id: row.Terms.ID(), terms: row.Terms, escrow: escrow, payer: r.payer(escrow), row: row,
		busy: make(chan struct{}, 1), heard: time.Now(),
	}
	l.show(ctx)
	l.busy <- struct{}{}
	return l, nil
}

// ID is the channel's.
func (l *Rental) ID() common.Hash { return l.id }

// Terms are the channel's.
func (l *Rental) Terms() channel.Terms { return l.terms }

// Access is what the provider said about how to reach the GPUs. It comes from
// a stranger: treat it so.
func (l *Rental) Access() json.RawMessage {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.access
}

// Snapshot is how things stand, for a live table.
func (l *Rental) Snapshot() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.view
}

// Evidence returns what the provider sent on this channel and was refused.
func (l *Rental) Evidence(ctx context.Context) ([]wallet.Evidence, error) {
	return l.r.store.Evidence(ctx, l.id)
}

// owed is what checked records say that the channel owes.
func (l *Rental) owed() uint256.Int {
	if l.row.Checker != nil {
		return l.row.Checker.Owed
	}
	return l.row.OwedBefore
}

func (l *Rental) save(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // memory and disk must not differ because somebody lost patience
	if err := l.r.store.save(ctx, l.row); err != nil {
		return fmt.Errorf("channel %s: %w", l.id, err)
	}
	l.show(ctx)
	return nil
}

// enter moves the rental to another phase, on disk first.
func (l *Rental) enter(ctx context.Context, phase Phase) error {
	if l.row.Phase == phase {
		return nil
	}
	l.row.Phase = phase
	l.r.w.Log.Info("rental "+string(phase), "channel", l.id, "lease", l.row.Lease)
	return l.save(ctx)
}

// resumeChecker has records checked on from a state.
func (l *Rental) resumeChecker(state metering.CheckerState) error {
	config, err := l.checking()
	if err != nil {
		return err
	}
	checker, err := metering.ResumeChecker(config, state)
	if err == nil {
		l.checker = checker
	}
	return err
}

// checking is what this renter knows by itself about the lease.
func (l *Rental) checking() (metering.CheckerConfig, error) {
	meter, err := l.offer.MeterOf(l.row.Lease, l.id, l.row.Binding)
	return metering.CheckerConfig{
		Key: meter, Tolerance: l.r.w.Tolerance, Clock: l.r.w.Clock,
		RecordEvery: l.offer.MinRecordEvery(),
		Lease: l.offer.Meters(metering.Lease{
			ID: l.row.Lease, ChannelID: l.id, OfferHash: l.offer.Hash,
			ChainID: l.row.Terms.ChainID, Escrow: l.row.Terms.Escrow,
			Price: l.price, OwedBefore: l.row.OwedBefore, Devices: l.row.Devices,
		}),
	}, err
}

// dispute stops trusting the provider: evidence first, then no more payments. The payee is distrusted elsewhere only for what it
// signed: whoever has us rent at his own site under a copy of its offer harms himself.
func (l *Rental) dispute(ctx context.Context, reason error, document []byte) error {
	ctx, reason = context.WithoutCancel(ctx), boundlog.Plain(reason)
	err := l.r.w.Keep(ctx, wallet.Evidence{Channel: l.id, URL: l.row.URL, Reason: reason.Error(), At: l.r.w.Now(), Document: document})
	l.row.Dispute, l.row.OfSite = reason.Error(), !wallet.Convicts(reason)
	l.row.Phase = PhaseDisputed
	l.r.w.Log.Error("provider was caught: nothing more is paid", "channel", l.id, "reason", reason)
	return errors.Join(&wallet.Dispute{Channel: l.id, Reason: reason}, err, l.save(ctx))
}

// claim waits until nobody else runs, closes or leaves this rental.
func (l *Rental) claim(ctx context.Context) (release func(), err error) {
	select {
	case <-l.busy:
		return func() { l.busy <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// interrupt stops a Run, so that a Close or a Leave gets its turn.
func (l *Rental) interrupt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting++
	if l.stop != nil {
		l.stop()
	}
}

// takeOver claims the rental from a Run that goes on.
func (l *Rental) takeOver(ctx context.Context) (release func(), err error) {
	l.interrupt()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.waiting--
	}()
	return l.claim(ctx)
}
