package renter

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/big"
	"net/http"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// What a renter meets. Every other error says what happened and wraps nothing
// that a caller would branch on.
var (
	// ErrFlood: the provider sends records faster than it offered to.
	ErrFlood = errors.New("provider sends more records than it offered")
	// ErrBudget: a cap or the deposit is used up. Close now, and all is paid.
	ErrBudget = errors.New("budget is used up")
	// ErrNeverFunded: a channel that was meant to be opened was not and cannot be
	// any more. No money is in it.
	ErrNeverFunded = errors.New("channel was never funded")
)

// Config says who rents, with what money, and how much of it. Key, RPC
// (or Backend), Token, Database and Caps are needed; the zero value of every
// other field is its default.
type Config struct {
	// Key is the payer's: it deposits, signs vouchers and gets refunds. One key belongs to one running Client: two, also with a
	// database each, replace each other's approvals and take each other's nonces, so that deposits revert, and each counts only its
	// own channels under its Caps.
	Key      channel.Signer
	RPC      string         // JSON-RPC endpoint: http, https, ws or wss; several of one chain with commas between them
	Token    common.Address // what to pay in; all caps are in its units
	Database string         // path of the SQLite file; it remembers where the deposits are
	Caps     wallet.Caps

	ChainID uint64 // refuse an endpoint that serves another chain; not checked if zero

	// Escrow is the one contract to trust. If zero, those are that the
	// deterministic factory deployed (chain.DeployedAt with salt zero), with this
	// project's code to the byte: an instance of another salt, or of a chain
	// without the factory, must be named.
	Escrow             common.Address
	AllowUnknownEscrow bool          // trust any contract that a provider names: it can keep the whole deposit
	MaxGrace           time.Duration // refuse an escrow that takes longer to leave; 7 days if zero
	MaxCredit          time.Duration // refuse an offer that lets more GPU time be billed unseen; 1 h if zero, at least 1 s
	Relay              Relay         // sends what this renter signed when it has no native coin; may be nil

	Tolerance     time.Duration // by which a provider's clock may run ahead of ours; 2 s if zero
	Patience      time.Duration // without a usage record, or with a demand that none explains; 2 min if zero
	Confirmations uint64        // before a transaction counts; 1 if zero
	Poll          time.Duration // between looks at the chain; 2 s if zero
	ClockOff      time.Duration // most that our clock and the chain's may differ; 2 min if zero
	// The most that a transaction of ours offers for a unit of gas, in wei;
	// chain.DefaultMaxFee of the chain if nil (500 gwei on most).
	MaxFee *big.Int

	HTTP    *http.Client // http.DefaultClient if nil; its timeout is not used
	Clock   metering.Clock
	Now     func() time.Time
	Log     *slog.Logger
	Backend chain.Backend // instead of RPC: a client that is already connected
}

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
	store   rentalStore
	credits payeeCredits

	spending chan struct{} // held from an approval until it is spent
	left     sync.Map      // ids of channels whose leave this process has signed: they are not reopened
	pledging chan struct{} // held while a deposit is signed, and while payments are ended: see Rental.pledge
}

// New connects to the chain and opens the database. Its errors are one
// line each and say what to do.
func New(ctx context.Context, config Config) (*Client, error) {
	if config.MaxCredit < 0 {
		return nil, errors.New("renter: MaxCredit must not be negative")
	}
	config.MaxCredit = cmp.Or(config.MaxCredit, time.Hour)
	w, err := wallet.Open(ctx, config.wallet())
	if err != nil {
		return nil, err
	}
	r := &Client{w: w, config: config, store: rentalStore{w.Store}, spending: make(chan struct{}, 1), pledging: make(chan struct{}, 1)}
	if err := r.recall(ctx); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return r, nil
}

// recall takes up what its rentals hold against each other.
func (r *Client) recall(ctx context.Context) error {
	rows, err := r.store.list(ctx, `ORDER BY updated_at`)
	if err != nil {
		return err
	}
	r.credits.recall(rows, r.w.Clock)
	return nil
}

// wallet is what of it is the wallet's.
func (c Config) wallet() wallet.Config {
	return wallet.Config{
		Key: c.Key, RPC: c.RPC, Backend: c.Backend, Token: c.Token, Database: c.Database, Caps: c.Caps, ChainID: c.ChainID,
		Tolerance: c.Tolerance, Patience: c.Patience, Confirmations: c.Confirmations, Poll: c.Poll, ClockOff: c.ClockOff,
		MaxGrace: c.MaxGrace, MaxFee: c.MaxFee, HTTP: c.HTTP, Clock: c.Clock, Now: c.Now, Log: c.Log, Verify: c.verify,
	}
}

// verify checks that the escrow to trust, if one is named, is on the chain.
func (c Config) verify(ctx context.Context, backend chain.Backend) error {
	if c.Escrow == (common.Address{}) {
		return nil
	}
	_, err := chain.NewEscrow(ctx, backend, c.Escrow)
	return err
}

// payer signs vouchers in one escrow, within the caps.
func (r *Client) payer(escrow *chain.Escrow) *channel.Payer { return r.w.Payer(escrow.Domain()) }

// Wallet is what this renter pays from. It is closed with the renter.
func (r *Client) Wallet() *wallet.Wallet { return r.w }

// Address is the payer's.
func (r *Client) Address() common.Address { return r.w.Address() }

// Token is what this renter pays in.
func (r *Client) Token() *chain.Token { return r.w.Token }

// Rentals lists what is not finished: each may hold money. Resume takes one up
// again.
//
// A rental that is closed stays in the list until no re-org can undo that; each
// call looks, and one that was undone is open again.
func (r *Client) Rentals(ctx context.Context) ([]State, error) {
	rows, err := r.store.unfinished(ctx)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		if row.Phase != PhaseClosed {
			continue
		}
		l, err := r.Rental(ctx, row.Terms.ID())
		if err == nil {
			_, err = l.over(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
	if rows, err = r.store.unfinished(ctx); err != nil {
		return nil, err
	}
	for i, row := range rows {
		if row.Phase == PhaseOpening && row.until() != 0 {
			rows[i] = r.opening(ctx, row)
		}
	}
	return r.store.paid(ctx, rows), nil
}

// opening is a rental that is being opened as the chain shows it, where that has its channel: the deposit is promised no more.
// Nothing is kept: whoever opens it may be at work. An endpoint that does not answer changes nothing.
func (r *Client) opening(ctx context.Context, row rentalRow) rentalRow {
	l, err := r.Rental(ctx, row.Terms.ID())
	if err != nil {
		return row
	}
	if seen, err := l.look(ctx, r.w.Confirmations); err != nil || !seen.there {
		return row
	}
	return l.row
}

// History lists all rentals, the finished ones too, oldest first. Rental finds
// each of them again.
func (r *Client) History(ctx context.Context) ([]State, error) {
	rows, err := r.store.list(ctx, `ORDER BY updated_at`)
	return r.store.paid(ctx, rows), err
}

// RentalsFile lists what is not finished in a renter's database. The program that
// owns the database may run meanwhile; what it does not have yet is not there.
func RentalsFile(ctx context.Context, path string) ([]State, error) {
	s, err := wallet.ReadFile(ctx, path)
	if err != nil {
		return nil, err
	}
	defer s.DB.Close()
	return rentalStore{s}.states(ctx)
}

func (s rentalStore) states(ctx context.Context) ([]State, error) {
	rows, err := s.unfinished(ctx)
	if err != nil {
		return nil, err
	}
	return s.paid(ctx, rows), nil
}

// paid adds what vouchers say to what the rentals do.
func (s rentalStore) paid(ctx context.Context, rows []rentalRow) []State {
	states := make([]State, len(rows))
	for i, row := range rows {
		states[i] = row.state()
		if paid, err := s.DB.Payer().Load(ctx, row.Terms.ID()); err == nil {
			states[i].Paid = paid.Signed
		}
	}
	return states
}

// Evidence returns what providers sent and this renter refused: about one
// channel or, with the zero id, before there was a channel.
func (r *Client) Evidence(ctx context.Context, channelID common.Hash) ([]wallet.Evidence, error) {
	return r.w.Evidence(ctx, channelID)
}

// Records returns the usage records of a channel that were checked and found
// right.
func (r *Client) Records(ctx context.Context, channelID common.Hash) ([]metering.SignedRecord, error) {
	return r.store.records(ctx, channelID)
}

// Close closes the database. Rentals go on when a Client is opened on it again.
func (r *Client) Close() error { return r.w.Close() }
