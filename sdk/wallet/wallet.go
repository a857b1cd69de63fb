// Package wallet is what a payer pays from, by whichever scheme: its key, its token, its caps, and the database that
// remembers where its deposits are and what was refused.
package wallet

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

// What a payer meets, whatever it pays for.
var (
	// ErrDeposit says that a deposit is more than the cap, or less than the provider takes.
	ErrDeposit = errors.New("deposit does not fit")
	// ErrNoGas says that the way needs a transaction and the renter has no native coin.
	ErrNoGas = errors.New("no native coin to pay gas with")
	// ErrBalance says that the renter has too little of the token.
	ErrBalance = errors.New("too little of the token")
	// ErrLetTwice says that the provider bills one GPU twice for the same time.
	ErrLetTwice = billed.ErrTwice
)

// Why a renter turns an offer down. Nothing was signed.
var (
	// ErrPrice says that a price is above the cap.
	ErrPrice = errors.New("price is above the cap")
	// ErrEscrow says that an escrow contract is not one to trust.
	ErrEscrow = errors.New("escrow contract is not one to trust")
	// ErrToken says that a token is not the configured one.
	ErrToken = errors.New("token is not the configured one")
)

// Wallet is a payer: its key, the token that it pays in, its caps, and the database that
// remembers where its deposits are. What rents and what pays x402 servers hold one, and
// know nothing of each other.
type Wallet struct {
	Key     channel.Signer
	Backend chain.Backend // for reading: chain.Agreed
	Alone   bool          // Backend is one endpoint's word
	ChainID uint64        // zero: whichever the endpoint serves
	Token   *chain.Token
	Caps    Limits
	DB      *store.DB
	Sender  *chain.Sender
	Store   Store

	Billed billed.Ledger // what it was billed for, by whomever it paid
	Turns  Turns         // of payments to x402 servers, whichever client makes them

	Tolerance     time.Duration
	Patience      time.Duration
	Confirmations uint64
	Poll          time.Duration
	ClockOff      time.Duration
	MaxGrace      time.Duration

	HTTP  *http.Client
	Clock metering.Clock
	Now   func() time.Time
	Log   *slog.Logger

	sending chain.Backend // sends to all endpoints
}

// Config says who pays, with what money, and how much of it. Key, RPC (or Chain.Backend), Token, Database and Caps are needed;
// the zero value of every other field is its default.
type Config struct {
	// Key is the payer's: it deposits, signs vouchers and gets refunds. One key belongs to one running wallet: two, also with a
	// database each, replace each other's approvals and take each other's nonces, so that deposits revert, and each counts only its
	// own channels under its Caps.
	Key channel.Signer
	// RPC is the JSON-RPC endpoint: http, https, ws or wss; several of one chain with commas between them.
	RPC string
	// Token is what to pay in; all caps are in its units.
	Token common.Address
	// Database is the path of the SQLite file, which remembers where the deposits are. It is made if there is none.
	Database string
	// Caps bound what is put at stake. Each must be said.
	Caps Caps

	// Chain is how the chain is looked at, and what a transaction may cost.
	Chain Chain
	// Verify is asked about the chain before the database is opened, or made: what fails there leaves nothing on disk. Not asked
	// if nil.
	Verify func(ctx context.Context, backend chain.Backend) error
	// Tolerance is by how much a provider's clock may run ahead of ours; 2 s if zero, not negative.
	Tolerance time.Duration
	// Patience is how long to go without a usage record, or with a demand that none explains; 2 min if zero, not negative.
	Patience time.Duration

	// HTTP is http.DefaultClient if nil; its timeout is not used.
	HTTP *http.Client
	// Clock is metering.System if nil.
	Clock metering.Clock
	// Now is time.Now if nil.
	Now func() time.Time
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// Chain is how a payer looks at the chain, and what its transactions may cost.
type Chain struct {
	// ID refuses an endpoint that serves another chain; not checked if zero.
	ID uint64
	// Confirmations is after how many blocks a transaction counts; 1 if zero.
	Confirmations uint64
	// Poll is the time between looks; 2 s if zero, not negative.
	Poll time.Duration
	// MaxGrace refuses an escrow that takes longer to leave; 7 days if zero, not negative.
	MaxGrace time.Duration
	// ClockTolerance is the most that our clock and the chain's may differ; 2 min if zero, not negative.
	ClockTolerance time.Duration
	// MaxFee is the most that a transaction of ours offers for a unit of gas, in wei; chain.DefaultMaxFee of the chain if nil
	// (500 gwei on most).
	MaxFee *big.Int
	// Backend is a client that is already connected, instead of RPC.
	Backend chain.Backend
}

func (c Config) withDefaults() Config {
	c.Chain.MaxGrace = cmp.Or(c.Chain.MaxGrace, 7*24*time.Hour)
	c.Tolerance = cmp.Or(c.Tolerance, 2*time.Second)
	c.Patience = cmp.Or(c.Patience, 2*time.Minute)
	c.Chain.Confirmations = cmp.Or(c.Chain.Confirmations, 1)
	c.Chain.Poll = cmp.Or(c.Chain.Poll, 2*time.Second)
	c.Chain.ClockTolerance = cmp.Or(c.Chain.ClockTolerance, 2*time.Minute)
	c.HTTP = cmp.Or(c.HTTP, http.DefaultClient)
	if c.Clock == nil {
		c.Clock = metering.System
	}
	if c.Clock.BootID() == "" {
		c.Clock = processClock{c.Clock, rand.Text()}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Log = boundlog.New(cmp.Or(c.Log, slog.Default()), c.Now)
	return c
}

// processClock names a boot where the system names none, as off Linux: it ends
// with the process. What is compared on no named boot would be paid for twice.
type processClock struct {
	metering.Clock
	boot string
}

func (c processClock) BootID() string { return c.boot }

func (c Config) check() error {
	switch {
	case c.Key == nil:
		return errors.New("renter: Key is nil: give the payer's key")
	case c.RPC == "" && c.Chain.Backend == nil:
		return errors.New("renter: RPC is empty: give the URL of a JSON-RPC endpoint")
	case c.Token == (common.Address{}):
		return errors.New("renter: Token is empty: give the address of the token to pay in; the caps are in its units")
	case c.Database == "":
		return errors.New("renter: Database is empty: give the path of a file; it remembers where the deposits are")
	case c.Tolerance < 0 || c.Patience < 0 || min(c.Chain.Poll, c.Chain.MaxGrace, c.Chain.ClockTolerance) < 0:
		return errors.New("renter: Tolerance, Patience, Chain.Poll, Chain.MaxGrace and Chain.ClockTolerance must not be negative")
	}
	return nil
}

// Open connects to the chain and opens the database. Its errors are one line each and say what to do.
func Open(ctx context.Context, config Config) (*Wallet, error) {
	config = config.withDefaults()
	if err := config.check(); err != nil {
		return nil, err
	}
	w, err := dial(ctx, config)
	if err == nil && config.Verify != nil {
		err = config.Verify(ctx, w.Backend)
	}
	if err == nil {
		err = w.open(ctx, config)
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

// dial dials the chain and checks what about it could cost money later: Backend
// believes none of several endpoints alone. Nothing is opened on disk.
func dial(ctx context.Context, c Config) (*Wallet, error) {
	w := &Wallet{
		Key: c.Key, ChainID: c.Chain.ID, Tolerance: c.Tolerance, Patience: c.Patience, Confirmations: c.Chain.Confirmations,
		Poll: c.Chain.Poll, ClockOff: c.Chain.ClockTolerance, MaxGrace: c.Chain.MaxGrace, HTTP: c.HTTP, Clock: c.Clock, Now: c.Now, Log: c.Log,
	}
	var err error
	if w.sending = chain.Checked(c.Chain.Backend); c.Chain.Backend == nil {
		if w.sending, err = chain.Connect(ctx, c.RPC, c.Log); err != nil {
			return nil, err
		}
	}
	w.Backend = chain.Agreed(w.sending)
	_, several := w.sending.(*chain.Endpoints)
	w.Alone = !several
	if w.ChainID != 0 {
		if err := chain.CheckChainID(ctx, w.Backend, w.ChainID); err != nil {
			return nil, err
		}
	}
	w.Token, err = chain.NewToken(ctx, w.Backend, c.Token)
	return w, err
}

// open reads the caps and opens the database.
func (w *Wallet) open(ctx context.Context, c Config) (err error) {
	if w.Caps, err = c.Caps.base(w.Token.Decimals); err != nil {
		return err
	}
	if w.DB, err = database.Open(ctx, c.Database, "renter", Migrations, "migrations/renter"); err != nil {
		return err
	}
	w.Store = Store{DB: w.DB}
	outbox, err := chain.OpenStore(ctx, w.DB)
	if err == nil {
		err = w.Store.forgetChain(ctx)
	}
	if err == nil {
		err = outbox.CheckGenesis(ctx, w.sending)
	}
	if err == nil {
		err = w.Store.keepDecimals(ctx, w.sending, w.Token)
	}
	if err != nil {
		return errors.Join(err, w.DB.Close())
	}
	w.Sender = &chain.Sender{Backend: w.sending, Key: w.Key, Store: outbox, Poll: w.Poll, MaxFee: c.Chain.MaxFee, Log: w.Log}
	if err := w.recall(ctx); err != nil {
		return errors.Join(err, w.DB.Close())
	}
	return nil
}

// Close closes the database.
func (w *Wallet) Close() error { return w.DB.Close() }

// Address is the payer's.
func (w *Wallet) Address() common.Address { return w.Key.Address() }

// Keep puts evidence on disk. The same thing twice is kept once.
func (w *Wallet) Keep(ctx context.Context, e Evidence) error { return w.Store.keep(ctx, e) }

// Evidence returns what providers sent and this wallet's owner refused: about one
// channel or, with the zero id, before there was a channel.
func (w *Wallet) Evidence(ctx context.Context, channelID common.Hash) ([]Evidence, error) {
	return w.Store.Evidence(ctx, channelID)
}

// Payer signs vouchers in one contract, within the caps.
func (w *Wallet) Payer(domain channel.Domain) *channel.Payer {
	return &channel.Payer{Store: w.DB.Payer(), Signer: w.Key, Domain: domain, Caps: w.Caps.Caps, Now: w.Now}
}

// OnChain refuses to pay on another chain than the endpoint's, and than the configured one. The endpoint is asked each time:
// one wrong answer must not stop a renter until it is started again.
func (w *Wallet) OnChain(ctx context.Context, id uint64) error {
	if want := w.ChainID; want != 0 && id != want {
		return fmt.Errorf("%w: the payee is paid on chain %d, this renter pays on %d", chain.ErrChainID, id, want)
	}
	if err := chain.CheckChainID(ctx, w.Backend, id); err != nil {
		return fmt.Errorf("the payee is paid on chain %d: %w", id, err)
	}
	return nil
}

// CheckPrice is an offer's price, if it is in this wallet's token and within its cap.
func (w *Wallet) CheckPrice(offer wire.Offer) (metering.Price, error) {
	unit, err := metering.ParseUnit(offer.Unit)
	if err != nil {
		return metering.Price{}, fmt.Errorf("%w: %w", peer.ErrOffer, err)
	}
	if common.Address(offer.Token) != w.Token.Address {
		return metering.Price{}, fmt.Errorf("%w: the provider wants %s, this renter pays in %s: nothing was signed", ErrToken, offer.Token, w.Token.Address)
	}
	price := metering.Price{Amount: offer.Amount.Int, Unit: unit}
	return price, w.CheckCap(price)
}

// CheckCap is ErrPrice where a price is above the cap of now, which may be lower than the one that a rental began under.
func (w *Wallet) CheckCap(price metering.Price) error {
	if hourly := units.Hourly(price); hourly.Gt(&w.Caps.Hourly) {
		return fmt.Errorf("%w: %s %s per GPU-hour, the cap is %s", ErrPrice,
			units.PricePerGPUHour(price, w.Token.Decimals), w.Token.Symbol, units.Format(w.Caps.Hourly, w.Token.Decimals))
	}
	return nil
}

// Format is an amount in units of the token, with its symbol.
func (w *Wallet) Format(amount uint256.Int) string {
	return strings.TrimSpace(units.Format(amount, w.Token.Decimals) + " " + w.Token.Symbol)
}

// HasGas reports whether we can send a transaction at all.
func (w *Wallet) HasGas(ctx context.Context) (bool, error) {
	coin, err := w.Backend.BalanceAt(ctx, w.Address(), nil)
	if err != nil {
		return false, chain.Unread("the balance of "+w.Address().String(), err)
	}
	return coin.Sign() > 0, nil
}

// ErrStuck says that leaving a channel does not get on, and whose refusal that
// is. What was reached stays: Leave goes on from there.
var ErrStuck = errors.New("leaving does not get on")

// LeaveRounds is how often one step of leaving is tried before that is an error.
const LeaveRounds = 10

// Sync brings the outbox up to what the chain has of the payer's own transactions about a channel: a process that ended, or a wait
// that was cut off, may have left one on its way. ErrNotYet is one whose nonce is used, and the node does not show by what.
func (w *Wallet) Sync(ctx context.Context, id common.Hash) error {
	open := func() ([]chain.Tx, error) {
		sent, err := w.Sender.Find(ctx, id)
		return slices.DeleteFunc(sent, func(tx chain.Tx) bool { return tx.State == chain.Final || tx.Sender != w.Address() }), err
	}
	if sent, err := open(); err != nil || len(sent) == 0 {
		return err
	}
	if err := w.Sender.Sync(ctx); err != nil {
		return err
	}
	used, err := w.Backend.NonceAt(ctx, w.Address(), nil)
	if err != nil {
		return chain.Unread("the nonce of "+w.Address().String(), err)
	}
	sent, err := open()
	for _, tx := range sent {
		if tx.State == chain.Pending && tx.Nonce < used {
			return fmt.Errorf("channel %s: transaction %s, whose nonce is used: %w", id, tx.ID, ErrNotYet)
		}
	}
	return err
}

// ErrNotYet says that a transaction is mined, as its nonce shows, and that the node does not have it yet.
var ErrNotYet = errors.New("the chain does not show it")

// AuthorizationTTL is how long a provider may take to send a gasless deposit.
// After it the money cannot move any more, and a channel that is not on the
// chain by then never will be.
const AuthorizationTTL = 15 * time.Minute
