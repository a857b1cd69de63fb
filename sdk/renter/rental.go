package renter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/paystream"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// Rental is one channel of a renter and the lease that it pays for. One
// goroutine at a time may Run, Close or Leave it; Close and Leave stop a Run.
// Snapshot, Access and SignLeave may be called at any time.
type Rental struct {
	c     *Client
	lease *paystream.Lease

	mu    sync.Mutex
	offer []byte // that what is kept of it is of
	kept  offered
}

// rental makes a Rental of what is on disk.
func (r *Client) rental(ctx context.Context, row rental.Row, escrow *chain.Escrow) (*Rental, error) {
	lease, err := paystream.New(ctx, r.account.Channel(row, escrow), &r.credits, r.config.MaxCredit)
	if err != nil {
		return nil, err
	}
	return &Rental{c: r, lease: lease}, nil
}

// ID is the channel's.
func (l *Rental) ID() common.Hash { return l.lease.ID }

// Terms are the channel's.
func (l *Rental) Terms() channel.Terms { return l.lease.Terms }

// Access is what the provider said about how to reach the GPUs. It comes from
// a stranger: treat it so.
func (l *Rental) Access() json.RawMessage { return l.lease.View().Row.Access }

// Snapshot is how things stand, for a live table.
func (l *Rental) Snapshot() State {
	seen := l.lease.View()
	s := stateOf(seen.Row, l.offerOf(seen.Row))
	s.Paid, s.Service, s.Heard = seen.Paid, seen.Service, seen.Heard
	return s
}

// offerOf is what a row of this rental says of its offer, which is read once.
func (l *Rental) offerOf(row rental.Row) offered {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !bytes.Equal(l.offer, row.Offer) {
		l.offer, l.kept = row.Offer, offerOf(row)
	}
	return l.kept
}

// Evidence returns what the provider sent on this channel and was refused.
func (l *Rental) Evidence(ctx context.Context) ([]wallet.Evidence, error) {
	return l.c.store.Evidence(ctx, l.lease.ID)
}

// Resume takes up a rental that a crash or a restart cut off: it opens what was
// being opened, and for everything else returns the rental as it was left. Then
// Run goes on paying, and Close or Leave end it. To end one that was being
// opened take it from Rental instead: Resume would make the deposit.
func (r *Client) Resume(ctx context.Context, channelID common.Hash) (*Rental, error) {
	l, err := r.Rental(ctx, channelID)
	if err != nil || l.lease.Row.Phase != rental.PhaseOpening {
		return l, err
	}
	if err := l.open(ctx, nil); err != nil {
		return nil, l.openFailed(ctx, "resume it again", err)
	}
	return l, nil
}

// Rental returns a rental as it was left, finished or not. Nothing is signed or
// sent.
func (r *Client) Rental(ctx context.Context, channelID common.Hash) (*Rental, error) {
	row, err := r.store.Load(ctx, channelID)
	if err != nil {
		return nil, err
	}
	// The escrow was checked when the rental began: money may be in it, so nothing but the chain may keep us from it.
	err = r.w.OnChain(ctx, row.Terms.ChainID)
	var escrow *chain.Escrow
	if err == nil {
		escrow, err = chain.NewEscrow(ctx, r.w.Backend, row.Terms.Escrow)
	}
	if err != nil {
		return nil, fmt.Errorf("channel %s: %w", channelID, err)
	}
	return r.rental(ctx, row, escrow)
}

// Run pays for the lease until it ends: it checks every usage record, signs
// vouchers for what the records say, tops up within the caps, and attaches again
// when the stream breaks.
//
// It returns nil when the lease has ended or Close or Leave takes over,
// channel.ErrClosing when SignLeave has ended payments, ErrBudget when the money set aside is used up (Close then, and everything is
// paid), ErrSilent when the provider stays away, a *Dispute when it lied, and
// the context's error.
func (l *Rental) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	release, err := l.lease.Claim(ctx)
	if err != nil {
		return err
	}
	defer release()
	if !l.lease.Running(cancel) {
		return nil
	}
	defer l.lease.Running(nil)
	if l.lease.Row.Phase == rental.PhaseDisputed {
		return &wallet.Dispute{Channel: l.lease.ID, Reason: errors.New(l.lease.Row.Dispute)}
	}
	if l.lease.Row.Phase != rental.PhaseRunning {
		return fmt.Errorf("channel %s: the rental is %s: only a running one can be paid for", l.lease.ID, l.lease.Row.Phase)
	}
	defer l.lease.Detach()
	if err = l.lease.Unpaid(ctx); err == nil {
		err = l.lease.PayLoop(ctx)
	}
	if ctx.Err() != nil && l.lease.Interrupted() {
		return l.lease.Unpaid(ctx)
	}
	if errors.Is(err, channel.ErrClosing) {
		l.lease.GiveBack(ctx)
	}
	return err
}
