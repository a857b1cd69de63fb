// Package rental keeps the books of a renter's channels, and reaches the chain for them: deposits go in, and what is left comes
// back without the provider. It speaks to no provider.
package rental

import (
	"context"
	"math/big"
	"sync"
	"time"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// Account is what the rentals of one payer have in common.
type Account struct {
	wallet *wallet.Wallet
	store  Store
	relay  Relay // sends what was signed when there is no native coin; may be nil

	spending lock     // held from an approval until it is spent
	pledging lock     // held while a deposit is signed, and while payments are ended: see Deposits.pledge
	left     sync.Map // ids of channels whose leave this process has signed: they are not reopened
}

// NewAccount has a payer's rentals kept in its wallet's database.
func NewAccount(w *wallet.Wallet, relay Relay) *Account {
	return &Account{wallet: w, store: Store{w.Store}, relay: relay, spending: make(lock, 1), pledging: make(lock, 1)}
}

// Channel makes a rental's channel of its row.
func (a *Account) Channel(row Row, escrow *chain.Escrow) *Channel {
	if row.TopUp != nil { // of a database that kept no promises
		row.Promised(row.TopUp.Authorization)
	}
	if row.Funding != nil && row.Phase == PhaseOpening {
		row.Promised(row.Funding.Authorization)
	}
	l := new(Channel)
	l.Ledger = Ledger{
		account: a, Wallet: a.wallet, Store: a.store, ID: row.Terms.ID(), Terms: row.Terms, Escrow: escrow, Payer: a.wallet.Payer(escrow.Domain()), Row: row,
		busy: make(lock, 1), Heard: time.Now(),
	}
	return l
}

// lock is a mutex that is waited for no longer than a context.
type lock chan struct{}

func (k lock) acquire(ctx context.Context) (release func(), err error) {
	select {
	case k <- struct{}{}:
		return func() { <-k }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Moment is a block and its time, or our own clock's where that is earlier: one
// false time of an endpoint ends no authorization in the books. What is read as of it is read after its time
// is known: an authorization that ended before it, and that it does not show
// used, never will be. In the other order a deposit that arrives between the two
// looks would be taken for one that never came.
type Moment struct {
	Block *big.Int
	time  uint64 // unix seconds: by the chain, and no later than our clock says
	mined uint64 // the same, and no later than our clock may be off
}

// Moment is the newest block that has the given number of confirmations.
func (a *Account) Moment(ctx context.Context, confirmations uint64) (Moment, error) {
	header, err := a.wallet.Backend.HeaderByNumber(ctx, nil)
	if err != nil {
		return Moment{}, chain.Unread("the newest block", err)
	}
	if depth := min(confirmations-1, header.Number.Uint64()); depth > 0 {
		block := new(big.Int).SetUint64(header.Number.Uint64() - depth)
		if header, err = a.wallet.Backend.HeaderByNumber(ctx, block); err != nil {
			return Moment{}, chain.Unread("block "+block.String(), err)
		}
	}
	now := a.wallet.Now()
	return Moment{Block: header.Number, time: min(header.Time, uint64(now.Unix())), mined: min(header.Time, uint64(now.Add(a.wallet.ClockOff).Unix()))}, nil
}
