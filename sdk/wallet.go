package sdk

import (
	"context"
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
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

// What a payer meets, whatever it pays for.
var (
	// ErrDeposit: more than the cap, or less than the provider takes.
	ErrDeposit = errors.New("deposit does not fit")
	// ErrNoGas: the way needs a transaction and the renter has no native coin.
	ErrNoGas = errors.New("no native coin to pay gas with")
	// ErrBalance: the renter has too little of the token.
	ErrBalance = errors.New("too little of the token")
	// ErrLetTwice: the provider bills one GPU twice for the same time.
	ErrLetTwice = billed.ErrTwice
)

// Why a renter turns an offer down. Nothing was signed.
var (
	ErrTooDear = errors.New("price is above the cap")
	ErrEscrow  = errors.New("escrow contract is not one to trust")
	ErrToken   = errors.New("token is not the configured one")
)

// wallet is a payer: its key, the token that it pays in, its caps, and the database that
// remembers where its deposits are. What rents and what pays x402 servers hold one, and
// know nothing of each other.
type wallet struct {
	Key     channel.Signer
	Backend chain.Backend // for reading: chain.Agreed
	Alone   bool          // Backend is one endpoint's word
	ChainID uint64        // zero: whichever the endpoint serves
	Token   *chain.Token
	Caps    walletCaps
	DB      *store.DB
	Sender  *chain.Sender

	Billed billed.Ledger // what it was billed for, by whomever it paid
	Turns  turns         // of payments to x402 servers, whichever client makes them

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
	store   walletStore
}

// walletConfig is what of a RenterConfig is the wallet's.
type walletConfig struct {
	Key           channel.Signer
	RPC           string
	Backend       chain.Backend
	Token         common.Address
	Database      string
	Caps          Caps
	ChainID       uint64
	Tolerance     time.Duration
	Patience      time.Duration
	Confirmations uint64
	Poll          time.Duration
	ClockOff      time.Duration
	MaxGrace      time.Duration
	MaxFee        *big.Int
	HTTP          *http.Client
	Clock         metering.Clock
	Now           func() time.Time
	Log           *slog.Logger
}

// dialWallet dials the chain and checks what about it could cost money later: Backend
// believes none of several endpoints alone. Nothing is opened on disk.
func dialWallet(ctx context.Context, c walletConfig) (*wallet, error) {
	w := &wallet{
		Key: c.Key, ChainID: c.ChainID, Tolerance: c.Tolerance, Patience: c.Patience, Confirmations: c.Confirmations,
		Poll: c.Poll, ClockOff: c.ClockOff, MaxGrace: c.MaxGrace, HTTP: c.HTTP, Clock: c.Clock, Now: c.Now, Log: c.Log,
	}
	var err error
	if w.sending = chain.Checked(c.Backend); c.Backend == nil {
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
func (w *wallet) open(ctx context.Context, c walletConfig) (err error) {
	if w.Caps, err = c.Caps.base(w.Token.Decimals); err != nil {
		return err
	}
	if w.DB, err = database.Open(ctx, c.Database, "renter", renterMigrations, "migrations/renter"); err != nil {
		return err
	}
	w.store = walletStore{w.DB}
	outbox, err := chain.OpenStore(ctx, w.DB)
	if err == nil {
		err = w.store.forgetChain(ctx)
	}
	if err == nil {
		err = outbox.CheckGenesis(ctx, w.sending)
	}
	if err == nil {
		err = w.store.keepDecimals(ctx, w.sending, w.Token)
	}
	if err != nil {
		return errors.Join(err, w.DB.Close())
	}
	w.Sender = &chain.Sender{Backend: w.sending, Key: w.Key, Store: outbox, Poll: w.Poll, MaxFee: c.MaxFee, Log: w.Log}
	if err := w.recall(ctx); err != nil {
		return errors.Join(err, w.DB.Close())
	}
	return nil
}

// Close closes the database.
func (w *wallet) Close() error { return w.DB.Close() }

// Address is the payer's.
func (w *wallet) Address() common.Address { return w.Key.Address() }

// Keep puts evidence on disk. The same thing twice is kept once.
func (w *wallet) Keep(ctx context.Context, e Evidence) error { return w.store.keep(ctx, e) }

// Evidence returns what providers sent and this wallet's owner refused: about one
// channel or, with the zero id, before there was a channel.
func (w *wallet) Evidence(ctx context.Context, channelID common.Hash) ([]Evidence, error) {
	return w.store.evidence(ctx, channelID)
}

// Payer signs vouchers in one contract, within the caps.
func (w *wallet) Payer(domain channel.Domain) *channel.Payer {
	return &channel.Payer{Store: w.DB.Payer(), Signer: w.Key, Domain: domain, Caps: w.Caps.Caps, Now: w.Now}
}

// OnChain refuses to pay on another chain than the endpoint's, and than the configured one. The endpoint is asked each time:
// one wrong answer must not stop a renter until it is started again.
func (w *wallet) OnChain(ctx context.Context, id uint64) error {
	if want := w.ChainID; want != 0 && id != want {
		return fmt.Errorf("%w: the payee is paid on chain %d, this renter pays on %d", chain.ErrChainID, id, want)
	}
	if err := chain.CheckChainID(ctx, w.Backend, id); err != nil {
		return fmt.Errorf("the payee is paid on chain %d: %w", id, err)
	}
	return nil
}

// CheckPrice is an offer's price, if it is in this wallet's token and within its cap.
func (w *wallet) CheckPrice(offer wire.Offer) (metering.Price, error) {
	unit, err := metering.ParseUnit(offer.Unit)
	if err != nil {
		return metering.Price{}, fmt.Errorf("%w: %w", peer.ErrOffer, err)
	}
	if common.Address(offer.Token) != w.Token.Address {
		return metering.Price{}, fmt.Errorf("%w: the provider wants %s, this renter pays in %s: nothing was signed", ErrToken, offer.Token, w.Token.Address)
	}
	price := metering.Price{Amount: offer.Amount.Int, Unit: unit}
	if hourly := units.Hourly(price); hourly.Gt(&w.Caps.Hourly) {
		return metering.Price{}, fmt.Errorf("%w: %s %s per GPU-hour, the cap is %s", ErrTooDear,
			units.PricePerGPUHour(price, w.Token.Decimals), w.Token.Symbol, units.Format(w.Caps.Hourly, w.Token.Decimals))
	}
	return price, nil
}

// Format is an amount in units of the token, with its symbol.
func (w *wallet) Format(amount uint256.Int) string {
	return strings.TrimSpace(units.Format(amount, w.Token.Decimals) + " " + w.Token.Symbol)
}

// HasGas reports whether we can send a transaction at all.
func (w *wallet) HasGas(ctx context.Context) (bool, error) {
	coin, err := w.Backend.BalanceAt(ctx, w.Address(), nil)
	if err != nil {
		return false, chain.Unread("the balance of "+w.Address().String(), err)
	}
	return coin.Sign() > 0, nil
}

// processClock names a boot where the system names none, as off Linux: it ends
// with the process. What is compared on no named boot would be paid for twice.
type processClock struct {
	metering.Clock
	boot string
}

func (c processClock) BootID() string { return c.boot }

// sendOnce sends a call that only works once, or waits for the one that is on
// its way already.
func sendOnce(ctx context.Context, sender *chain.Sender, call chain.Call, confirmations uint64) error {
	if err := sender.Sync(ctx); err != nil { // what a re-org undid is on its way again, and pending
		return err
	}
	sent, err := sender.Find(ctx, call.Channels[0])
	if err != nil {
		return err
	}
	for _, tx := range sent {
		if tx.Call.Kind == call.Kind && tx.State == chain.Pending && tx.Sender == sender.Address() {
			_, err := sender.Wait(ctx, tx.ID, confirmations)
			return err
		}
	}
	id, err := sender.Submit(ctx, call)
	if err != nil {
		return err
	}
	_, err = sender.Wait(ctx, id, confirmations)
	return err
}

// ErrStuck says that leaving a channel does not get on, and whose refusal that
// is. What was reached stays: Leave goes on from there.
var ErrStuck = errors.New("leaving does not get on")

// leaveRounds is how often one step of leaving is tried before that is an error.
const leaveRounds = 10

// told brings the outbox up to what the chain has of a renter's own transactions about a channel: a process that ended, or a wait
// that was cut off, may have left one on its way. errNotYet is one whose nonce is used, and the node does not show by what.
func told(ctx context.Context, w *wallet, id common.Hash) error {
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
			return fmt.Errorf("channel %s: transaction %s, whose nonce is used: %w", id, tx.ID, errNotYet)
		}
	}
	return err
}

var errNotYet = errors.New("the chain does not show it")

// authorizationTTL is how long a provider may take to send a gasless deposit.
// After it the money cannot move any more, and a channel that is not on the
// chain by then never will be.
const authorizationTTL = 15 * time.Minute
