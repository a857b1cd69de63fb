package rental

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Ledger is what a rental is about and has on disk. Nothing changes Row but by Save, so that memory and disk say the same.
type Ledger struct {
	account *Account
	Wallet  *wallet.Wallet
	Store   Store
	ID      common.Hash
	Terms   channel.Terms
	Escrow  *chain.Escrow
	Payer   *channel.Payer
	Offer   wire.SignedOffer // of now

	busy    lock // whoever holds it owns all of a rental but what mu guards
	Row     Row
	Service string    // what the provider last said of the lease
	Heard   time.Time // the newest record, or the start

	mu      sync.Mutex
	stop    context.CancelFunc // of a running Run
	waiting int                // Closes and Leaves that wait for their turn
	shown   View
}

// View is a rental for others than its owner, as of the newest save.
type View struct {
	Row     Row
	Paid    uint256.Int // by vouchers
	Service string      // what the provider last said of the lease
	Heard   time.Time   // the newest record, or the start
}

// Show refreshes the view. Only the owner of busy calls it.
func (l *Ledger) Show(ctx context.Context) {
	now := View{Row: l.Row, Service: l.Service, Heard: l.Heard}
	now.Row.Promises = slices.Clone(l.Row.Promises) // what the owner changes in place
	if l.Row.Checker != nil {
		checker := *l.Row.Checker
		now.Row.Checker = &checker
	}
	paid, err := l.Payer.State(context.WithoutCancel(ctx), l.ID)
	if err != nil && !errors.Is(err, channel.ErrUnknown) { // one that is not opened yet has no vouchers
		boundlog.Warn(l.Wallet.Log, "what was paid could not be read: it is shown as before", l.ID, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Paid = paid.Signed; err != nil {
		now.Paid = l.shown.Paid
	}
	l.shown = now
}

// View is the newest that was shown.
func (l *Ledger) View() View {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shown
}

// Owed is what checked records say that the channel owes.
func (l *Ledger) Owed() uint256.Int {
	if l.Row.Checker != nil {
		return l.Row.Checker.Owed
	}
	return l.Row.OwedBefore
}

// Save puts the row on disk.
func (l *Ledger) Save(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // memory and disk must not differ because somebody lost patience
	if err := l.Store.Save(ctx, l.Row); err != nil {
		return fmt.Errorf("channel %s: %w", l.ID, err)
	}
	l.Show(ctx)
	return nil
}

// Enter moves the rental to another phase, on disk first.
func (l *Ledger) Enter(ctx context.Context, phase Phase) error {
	if l.Row.Phase == phase {
		return nil
	}
	l.Row.Phase = phase
	l.Wallet.Log.Info("rental "+string(phase), "channel", l.ID, "lease", l.Row.Lease)
	return l.Save(ctx)
}

// Dispute stops trusting the provider: evidence first, then no more payments. The payee is distrusted elsewhere only for what it
// signed: whoever has us rent at his own site under a copy of its offer harms himself.
func (l *Ledger) Dispute(ctx context.Context, reason error, document []byte) error {
	ctx, reason = context.WithoutCancel(ctx), boundlog.Plain(reason)
	err := l.Wallet.Keep(ctx, wallet.Evidence{Channel: l.ID, URL: l.Row.URL, Reason: reason.Error(), At: l.Wallet.Now(), Document: document})
	l.Row.Dispute, l.Row.OfSite = reason.Error(), !wallet.Convicts(reason)
	l.Row.Phase = PhaseDisputed
	l.Wallet.Log.Error("provider was caught: nothing more is paid", "channel", l.ID, "reason", reason)
	return errors.Join(&wallet.Dispute{Channel: l.ID, Reason: reason}, err, l.Save(ctx))
}

// Newest is the voucher that was signed last: as it is on disk or, where a
// crash came before its signature, signed again.
func (l *Ledger) Newest(ctx context.Context) (channel.Voucher, error) {
	paid, err := l.Payer.State(ctx, l.ID)
	if err != nil {
		return channel.Voucher{}, err
	}
	if len(paid.Signature) > 0 {
		return channel.Voucher{ChannelID: l.ID, Cumulative: paid.Signed, Signature: paid.Signature}, nil
	}
	return l.Payer.Pay(ctx, l.ID, paid.Signed)
}

// Unpaid is channel.ErrClosing where payments were ended.
func (l *Ledger) Unpaid(ctx context.Context) error {
	paid, err := l.Payer.State(context.WithoutCancel(ctx), l.ID)
	if err == nil && paid.Closed {
		err = l.PaidNoMore()
	}
	return err
}

// PaidNoMore is the error of a payment after payments were ended.
func (l *Ledger) PaidNoMore() error {
	return fmt.Errorf("channel %s: nothing is paid after a leave was signed or a close requested: leave it: %w", l.ID, channel.ErrClosing)
}

// finish notes how the rental ended. It stays listed until no re-org can undo it.
func (l *Ledger) finish(ctx context.Context, c Closing) error {
	c.Channel = l.ID
	l.Row.Closed, l.Row.Phase = &c, PhaseClosed
	l.Wallet.Log.Info("rental closed", "channel", l.ID, "settled", c.Settled.Dec(), "refunded", c.Refunded.Dec(), "note", c.Note)
	return l.Save(ctx)
}

// Closing is how the rental ended, zero if it has not.
func (l *Ledger) Closing() Closing {
	if l.Row.Closed == nil {
		return Closing{}
	}
	return *l.Row.Closed
}

// Claim waits until nobody else runs, closes or leaves this rental.
func (l *Ledger) Claim(ctx context.Context) (release func(), err error) {
	return l.busy.acquire(ctx)
}

// TakeOver claims the rental from a Run that goes on.
func (l *Ledger) TakeOver(ctx context.Context) (release func(), err error) {
	l.mu.Lock()
	l.waiting++
	if l.stop != nil {
		l.stop()
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.waiting--
	}()
	return l.Claim(ctx)
}

// Running lets Close and Leave stop a Run; it reports false if one of them
// waits already.
func (l *Ledger) Running(stop context.CancelFunc) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop = stop
	return l.waiting == 0
}

// Interrupted reports a Close or a Leave that waits for a Run.
func (l *Ledger) Interrupted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting > 0
}

// TakeOverRun claims the rental from a Run, or where nothing goes on. A Close or a Leave that goes on ends the lease itself.
func (l *Ledger) TakeOverRun(ctx context.Context) (release func(), free bool) {
	l.mu.Lock()
	runs := l.stop != nil
	l.mu.Unlock()
	if runs {
		release, err := l.TakeOver(ctx)
		return release, err == nil
	}
	select {
	case l.busy <- struct{}{}:
		return func() { <-l.busy }, true
	default:
		return nil, false
	}
}

// What a renter meets, as package renter names it.
var (
	ErrBudget      = errors.New("budget is used up")
	ErrNeverFunded = errors.New("channel was never funded")
)

type transientError struct{ error }

func (t transientError) Unwrap() error { return t.error }

// Transient is a failure that the next try may not have: the lease goes on at
// the provider's while we are away.
func Transient(err error) error { return transientError{err} }

// IsTransient reports a failure that the next try may not have.
func IsTransient(err error) bool {
	var t transientError
	return errors.As(err, &t)
}
