package renter

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Rental is one channel of a renter and the lease that it pays for. One
// goroutine at a time may Run, Close or Leave it; Close and Leave stop a Run.
// Snapshot, Access and SignLeave may be called at any time.
type Rental struct{ payments } // on leaseStream, checks, onChain, deposits and ledger, each on the next

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
	l := r.newRental(row, escrow)
	l.peer, l.offer, l.price = p, offer, metering.Price{Amount: offer.Amount.Int, Unit: unit}
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

// newRental makes a Rental of its row alone.
func (r *Client) newRental(row rentalRow, escrow *chain.Escrow) *Rental {
	l := new(Rental)
	l.ledger = ledger{
		r: r, id: row.Terms.ID(), terms: row.Terms, escrow: escrow, payer: r.payer(escrow), row: row,
		busy: make(chan struct{}, 1), heard: time.Now(),
	}
	return l
}

// found reports a rental that was found on the chain, of which no offer is known.
func (row rentalRow) found() bool { return len(row.Offer) == 0 || string(row.Offer) == "null" }

// recovered makes a Rental of which only the channel is known: it can be left.
func (r *Client) recovered(ctx context.Context, row rentalRow, escrow *chain.Escrow) (*Rental, error) {
	l := r.newRental(row, escrow)
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
