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

// ledger is what a rental is about and has on disk. Nothing changes row but by save, so that memory and disk say the same.
type ledger struct {
	r      *Client
	id     common.Hash
	terms  channel.Terms
	escrow *chain.Escrow
	payer  *channel.Payer
	peer   peer.Peer
	offer  wire.SignedOffer
	price  metering.Price
	credit uint256.Int // base units that the provider serves ahead of vouchers

	busy    chan struct{} // holds one token: whoever has it owns all of a rental but what mu guards
	row     rentalRow
	service string    // what the provider last said of the lease
	heard   time.Time // the newest record, or the start

	mu      sync.Mutex
	stop    context.CancelFunc // of a running Run
	waiting int                // Closes and Leaves that wait for their turn
	view    State
	access  json.RawMessage
}

// owed is what checked records say that the channel owes.
func (l *ledger) owed() uint256.Int {
	if l.row.Checker != nil {
		return l.row.Checker.Owed
	}
	return l.row.OwedBefore
}

func (l *ledger) save(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // memory and disk must not differ because somebody lost patience
	if err := l.r.store.save(ctx, l.row); err != nil {
		return fmt.Errorf("channel %s: %w", l.id, err)
	}
	l.show(ctx)
	return nil
}

// enter moves the rental to another phase, on disk first.
func (l *ledger) enter(ctx context.Context, phase Phase) error {
	if l.row.Phase == phase {
		return nil
	}
	l.row.Phase = phase
	l.r.w.Log.Info("rental "+string(phase), "channel", l.id, "lease", l.row.Lease)
	return l.save(ctx)
}

// dispute stops trusting the provider: evidence first, then no more payments. The payee is distrusted elsewhere only for what it
// signed: whoever has us rent at his own site under a copy of its offer harms himself.
func (l *ledger) dispute(ctx context.Context, reason error, document []byte) error {
	ctx, reason = context.WithoutCancel(ctx), boundlog.Plain(reason)
	err := l.r.w.Keep(ctx, wallet.Evidence{Channel: l.id, URL: l.row.URL, Reason: reason.Error(), At: l.r.w.Now(), Document: document})
	l.row.Dispute, l.row.OfSite = reason.Error(), !wallet.Convicts(reason)
	l.row.Phase = PhaseDisputed
	l.r.w.Log.Error("provider was caught: nothing more is paid", "channel", l.id, "reason", reason)
	return errors.Join(&wallet.Dispute{Channel: l.id, Reason: reason}, err, l.save(ctx))
}

// claim waits until nobody else runs, closes or leaves this rental.
func (l *ledger) claim(ctx context.Context) (release func(), err error) {
	select {
	case <-l.busy:
		return func() { l.busy <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// interrupt stops a Run, so that a Close or a Leave gets its turn.
func (l *ledger) interrupt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting++
	if l.stop != nil {
		l.stop()
	}
}

// takeOver claims the rental from a Run that goes on.
func (l *ledger) takeOver(ctx context.Context) (release func(), err error) {
	l.interrupt()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.waiting--
	}()
	return l.claim(ctx)
}
