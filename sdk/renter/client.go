package renter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/paystream"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/internal/sharedcredit"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Client rents GPUs and pays for what it checked. It is safe for concurrent
// use; one database belongs to one Client at a time.
//
// It promises: nothing is signed above the caps; a voucher is signed only for
// records that were checked, and for at most Options.Prepay ahead; a
// channel is on disk before it is funded, so that a crash loses none; whatever
// is sent again after a crash can move the money only once.
type Client struct {
	w       *wallet.Wallet
	config  Config
	account *rental.Account
	store   rental.Store
	credits sharedcredit.Credits
}

// New connects to the chain and opens the database. Its errors are one
// line each and say what to do.
func New(ctx context.Context, config Config) (*Client, error) {
	if config.MaxCredit != 0 && config.MaxCredit < time.Second {
		return nil, fmt.Errorf("renter: MaxCredit (%s) must be at least 1s: offers say whole seconds", config.MaxCredit)
	}
	config.MaxCredit = cmp.Or(config.MaxCredit, time.Hour)
	w, err := wallet.Open(ctx, config.wallet())
	if err != nil {
		return nil, err
	}
	r := &Client{w: w, config: config, account: rental.NewAccount(w, config.Relay), store: rental.Store{Store: w.Store}}
	if err := r.recall(ctx); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return r, nil
}

// recall takes up what its rentals hold against each other.
func (r *Client) recall(ctx context.Context) error {
	rows, err := r.store.All(ctx)
	if err != nil {
		return err
	}
	for _, row := range rows {
		offer, err := wire.ParseOffer(row.Offer)
		if err != nil {
			continue
		}
		if err := r.owes(ctx, row, offer); err != nil {
			return err
		}
		if row.Phase != rental.PhaseRunning {
			continue
		}
		if price, err := offer.Price(); err == nil {
			r.credits.With(row.Terms).Join(row.Terms.ID(), row.GPUs, price, offer.Offer)
		}
	}
	for _, row := range rows {
		for id, taken := range row.Beside {
			r.credits.With(row.Terms).Restore(id, *taken, r.w.Clock)
		}
	}
	return nil
}

// owes counts what an earlier process may owe on a channel.
func (r *Client) owes(ctx context.Context, row rental.Row, offer wire.SignedOffer) error {
	if row.Closed != nil {
		return paystream.Recall(ctx, r.store, r.w.Clock, row, channel.PayerState{Settled: row.Closed.Settled}, offer, &r.credits)
	}
	paid, err := r.w.Payer(channel.EscrowDomain(row.Terms.ChainID, row.Terms.Escrow)).State(ctx, row.Terms.ID())
	if errors.Is(err, channel.ErrUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	return paystream.Recall(ctx, r.store, r.w.Clock, row, paid, offer, &r.credits)
}

// payer signs vouchers in one escrow, within the caps.
func (r *Client) payer(escrow *chain.Escrow) *channel.Payer { return r.w.Payer(escrow.Domain()) }

// Wallet is what this renter pays from. It is closed with the renter.
func (r *Client) Wallet() *wallet.Wallet { return r.w }

// Address is the payer's.
func (r *Client) Address() common.Address { return r.w.Address() }

// Token is what this renter pays in.
func (r *Client) Token() *chain.Token { return r.w.Token }

// Evidence returns what providers sent and this renter refused: about one
// channel or, with the zero id, before there was a channel.
func (r *Client) Evidence(ctx context.Context, channelID common.Hash) ([]wallet.Evidence, error) {
	return r.w.Evidence(ctx, channelID)
}

// Records returns the usage records of a channel that were checked and found
// right.
func (r *Client) Records(ctx context.Context, channelID common.Hash) ([]metering.SignedRecord, error) {
	return r.store.Records(ctx, channelID)
}

// RecordsAfter returns those of a lease that are newer than a sequence, at most so many, in order.
func (r *Client) RecordsAfter(ctx context.Context, channelID, lease common.Hash, sequence uint64, most int) ([]metering.SignedRecord, error) {
	return r.store.RecordsAfter(ctx, channelID, lease, sequence, most)
}

// Close closes the database. Rentals go on when a Client is opened on it again.
func (r *Client) Close() error { return r.w.Close() }
