// Package tower is the watchtower, and what providers and renters need to use
// one: a Tower settles what a payee vouches for it holds and does not settle
// itself, and sends what a payer without native coin has signed. A Feed tells it a
// payee's vouchers, a Client hands it a payer's requests.
package tower

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/big"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/run"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/units"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config says what a watchtower watches and what that may cost. The fields
// of the first group are needed; the zero value of every other is its default.
type Config struct {
	// RPC is the JSON-RPC endpoint: http, https, ws or wss; several of one chain with commas between them.
	RPC string
	// Escrow is the ChannelEscrow contract.
	Escrow common.Address
	// Key pays the gas; neither a payee's nor a payer's.
	Key channel.Signer
	// Database is the path of the SQLite file; it holds others' vouchers.
	Database string
	// Tokens are those whose channels are worth gas, and what must be at stake, in units of the token: what is left of the deposit to
	// take a channel and to bring it back, what is not settled to settle it. A token that is not named is not touched: its code could
	// burn whatever gas it is given.
	Tokens map[common.Address]string

	// Payees are whose channels are watched, whatever settling them costs. All payees' if empty, and then within SettleGas.
	Payees []common.Address
	// Patience is how long after a close request the payee may settle by itself, which saves our gas. An eighth of the grace period
	// if zero, at most a half, not negative.
	Patience time.Duration
	// RelayGas is for close requests and withdrawals, by payer; 0.005 and 0.05 ether where a figure is nil.
	RelayGas GasBudget
	// SettleGas is for settlements without Payees, by payee; 0.02 and 0.2 ether where a figure is nil. A channel is then settled twice an hour at
	// most.
	SettleGas GasBudget
	// Chain is how the chain is looked at, and what a transaction may cost.
	Chain Chain
	// TrustedProxies are the reverse proxies in front of the tower: see provider.HTTP.
	TrustedProxies []string
	// Limits are what strangers may cost.
	Limits Limits

	// OnSettled hears of each settlement; may be nil.
	OnSettled func(settle.Settlement)
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// Chain is how a watchtower looks at the chain, and what its transactions may cost.
type Chain struct {
	// ID refuses any other chain; not checked if zero.
	ID uint64
	// MinGrace refuses an escrow with less time to settle; chain.GraceFloor if zero: 2 h, on local chains 10 min. Not
	// negative.
	MinGrace time.Duration
	// Confirmations is after how many blocks a deposit counts; 1 (the block it is in) if zero.
	Confirmations uint64
	// Poll is the time between looks; 2 s if zero, not negative.
	Poll time.Duration
	// MaxFee is the most that a transaction offers for a unit of gas, in wei; chain.DefaultMaxFee of the chain if nil (500 gwei on
	// most).
	MaxFee *big.Int
	// Backend is a client that is already connected, instead of RPC.
	Backend chain.Backend
}

// GasBudget is how much native coin, in wei, transactions submitted within an
// hour may cost, those in flight included. It can be exceeded by one
// transaction. A nil figure is its default.
type GasBudget struct {
	PerParty *big.Int // for one payer, or one payee
	Total    *big.Int
}

// Tower is a watchtower: it holds the newest vouchers of channels that are not
// its own and settles them when a payer asks to close and the payee does not;
// and it relays what a payer without native coin has signed. It needs no key
// but its own, which pays the gas, and its money can go nowhere else.
//
// It can only help. The escrow pays a channel's payee and payer and nobody
// else, so all that a bad tower can do is nothing. What it acknowledged is on
// disk. Serve it as an http.Handler, and call Run beside the server.
type Tower struct {
	*watched
	db      *store.DB
	payee   *channel.Payee // keeps what the chain says
	sender  *chain.Sender
	settler *settle.Settler
	watcher *settle.Watcher
	taker   *taker
	relay   *relay
	metrics *metrics
	mux     *http.ServeMux
	guard   *guard
	running sync.WaitGroup
}

// watched is what the tower has to do with: the contract, the tokens and payees, and what of them is worth gas. It does not change
// after New.
type watched struct {
	config Config
	escrow *chain.Escrow
	least  map[common.Address]uint256.Int // worth gas, in base units, by token
}

// New connects to the chain and opens the database. Its errors are one
// line each and say what to do.
func New(ctx context.Context, config Config) (*Tower, error) {
	config = config.withDefaults()
	if err := config.check(); err != nil {
		return nil, err
	}
	t := &Tower{watched: &watched{config: config, least: make(map[common.Address]uint256.Int)}}
	if err := t.connect(ctx); err != nil {
		return nil, err
	}
	db, err := database.Open(ctx, config.Database, "tower", migrations, "migrations")
	if err != nil {
		return nil, err
	}
	txs, err := chain.OpenStore(ctx, db)
	if err == nil {
		err = txs.CheckGenesis(ctx, t.escrow.Backend())
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	t.assemble(db, txs)
	return t, nil
}

func (c Config) withDefaults() Config {
	c.RelayGas = c.RelayGas.or(5e15, 5e16)
	c.SettleGas = c.SettleGas.or(2e16, 2e17)
	c.Chain.Confirmations = cmp.Or(c.Chain.Confirmations, 1)
	c.Chain.Poll = cmp.Or(c.Chain.Poll, 2*time.Second)
	if proxies, err := limit.ParseProxies(c.TrustedProxies); err == nil && c.Limits.ClientIP == nil { // else check says what is wrong
		c.Limits.ClientIP = proxies.Client
	}
	c.Limits = c.Limits.withDefaults()
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func (b GasBudget) or(party, total int64) GasBudget {
	if b.PerParty == nil {
		b.PerParty = big.NewInt(party)
	}
	if b.Total == nil {
		b.Total = big.NewInt(total)
	}
	return b
}

func (c Config) check() error {
	if _, err := limit.ParseProxies(c.TrustedProxies); err != nil {
		return fmt.Errorf("watchtower: TrustedProxies: %w", err)
	}
	switch {
	case c.RPC == "" && c.Chain.Backend == nil:
		return errors.New("watchtower: RPC is empty: give the URL of a JSON-RPC endpoint")
	case c.Escrow == (common.Address{}):
		return errors.New("watchtower: Escrow is empty: give the address of the ChannelEscrow contract")
	case c.Key == nil:
		return errors.New("watchtower: Key is nil: give a key of its own with native coin for gas")
	case c.Database == "":
		return errors.New("watchtower: Database is empty: give the path of a file; it will hold vouchers, which are money")
	case len(c.Tokens) == 0:
		return errors.New("watchtower: Tokens is empty: name each token whose channels are worth gas, and the least amount")
	case slices.Contains(c.Payees, c.Key.Address()):
		return fmt.Errorf("watchtower: Key is the payee's (%s): two programs with one key take each other's nonces; give it a key of its own", c.Key.Address())
	case min(c.Patience, c.Chain.Poll, c.Chain.MinGrace) < 0:
		return errors.New("watchtower: Patience, Chain.Poll and Chain.MinGrace must not be negative")
	case c.Limits.Names < 0:
		return errors.New("watchtower: Limits.Names must not be negative")
	}
	return nil
}

// connect dials the chain and reads what the contracts are like.
func (w *watched) connect(ctx context.Context) error {
	backend := chain.Checked(w.config.Chain.Backend)
	if w.config.Chain.Backend == nil {
		var err error
		if backend, err = chain.Connect(ctx, w.config.RPC, w.config.Log); err != nil {
			return err
		}
	}
	if w.config.Chain.ID != 0 {
		if err := chain.CheckChainID(ctx, backend, w.config.Chain.ID); err != nil {
			return err
		}
	}
	var err error
	if w.escrow, err = chain.NewEscrow(ctx, backend, w.config.Escrow); err != nil {
		return err
	}
	floor := cmp.Or(w.config.Chain.MinGrace, chain.GraceFloor(w.escrow.ChainID()))
	if err := errors.Join(w.escrow.CheckGrace(floor), w.escrow.CheckHistory(ctx, w.config.Chain.Confirmations)); err != nil {
		return err
	}
	for address, least := range w.config.Tokens {
		token, err := chain.NewToken(ctx, backend, address)
		if err != nil {
			return err
		}
		if w.least[address], err = units.Parse(least, token.Decimals); err != nil {
			return fmt.Errorf("watchtower: Tokens[%s]: %w", address, err)
		}
	}
	w.config.Patience = cmp.Or(w.config.Patience, w.escrow.Grace()/8)
	if w.config.Patience > w.escrow.Grace()/2 {
		return fmt.Errorf("watchtower: Patience (%s) is over half of the escrow's grace period (%s): too little would be left to settle", w.config.Patience, w.escrow.Grace())
	}
	return nil
}

func (t *Tower) assemble(db *store.DB, txs *chain.Store) {
	c := t.config
	t.db, t.guard, t.metrics = db, newGuard(c.Limits), newMetrics(t)
	t.payee = &channel.Payee{Store: db.Payee(), Domain: t.escrow.Domain()}
	t.sender = &chain.Sender{Backend: t.escrow.Backend(), Key: c.Key, Store: txs, Poll: c.Chain.Poll, MaxFee: c.Chain.MaxFee, Log: c.Log}
	books := &books{watched: t.watched, payee: t.payee}
	budget := &budget{watched: t.watched, db: db, sender: t.sender, guard: t.guard}
	duty := &dutyStore{Store: db.Payee(), watched: t.watched, budget: budget}
	t.settler = &settle.Settler{
		Payee:    &channel.Payee{Store: duty, Domain: t.escrow.Domain()},
		Contract: t.escrow, Sender: t.sender, First: duty.first, Log: c.Log, OnSettled: c.OnSettled,
		// What is not closing is the payee's to settle; dutyStore says what is due.
		Policy: settle.Policy{Interval: max(c.Chain.Poll, time.Second), MaxAge: math.MaxInt64},
	}
	t.watcher = &settle.Watcher{Payee: t.payee, Contract: t.escrow, Confirmations: c.Chain.Confirmations, Poll: c.Chain.Poll, Store: txs, OnChange: t.changed, Log: c.Log}
	t.taker = &taker{watched: t.watched, books: books, guard: t.guard, settler: t.settler,
		late: &channel.Payee{Store: lateStore{db.Payee()}, Domain: t.escrow.Domain()}}
	t.relay = &relay{watched: t.watched, books: books, budget: budget, settler: t.settler, watcher: t.watcher,
		metrics: t.metrics, leaves: leaveStore{db}, rest: make(map[common.Hash]*rest)}
	t.routes()
}

// changed hears of every change the chain made to a channel.
func (t *Tower) changed(_, now channel.State) {
	if now.Status == channel.Closing {
		t.settler.Urgent(now.ID) // not before Patience is over: see dutyStore
	}
}

// Run watches, settles and relays until ctx ends or one of them fails for good.
// It looks for close requests first: they may have come while nobody looked.
func (t *Tower) Run(ctx context.Context) error {
	t.running.Add(1)
	defer t.running.Done()
	return run.Ended(run.Together(ctx, t.sender.Run, t.watcher.Run, t.settler.Run, t.relay.relayAll))
}

// Close closes the database, after Run has returned. The next New on it
// goes on.
func (t *Tower) Close() error {
	t.running.Wait()
	return t.db.Close()
}

// Address is who pays the gas: keep it funded.
func (t *Tower) Address() common.Address { return t.config.Key.Address() }

// Escrow is the contract that is watched.
func (t *Tower) Escrow() *chain.Escrow { return t.escrow }

// GasSpent is what the tower's transactions have cost so far, in wei.
func (t *Tower) GasSpent(ctx context.Context) (*big.Int, error) { return t.sender.GasSpent(ctx) }

// Channels returns what the tower knows of all its channels.
func (t *Tower) Channels(ctx context.Context) ([]channel.State, error) { return t.payee.Channels(ctx) }

// ErrDamaged says that a database file is not what was written to it.
var ErrDamaged = database.ErrDamaged

// What a tower leaves to others. Each comes wrapped with the figures.
var (
	errNotServed = errors.New("this watchtower does not serve it")
	errTooSmall  = errors.New("too little is at stake for the gas")
	errUsed      = errors.New("the close request was used or is not yet valid")
	errNotDue    = errors.New("the withdrawal is not due")
	errBudget    = errors.New("the gas budget of this hour is used up")
	errBusy      = errors.New("the watchtower is busy")
	errOver      = errors.New("nothing is left to do for the payer")
)

// serves reports whether the tower has to do with channels of these terms at
// all.
func (w *watched) serves(terms channel.Terms) error {
	if err := terms.Validate(); err != nil {
		return err
	}
	if terms.ChainID != w.escrow.ChainID() || terms.Escrow != w.escrow.Address() {
		return fmt.Errorf("%w: channel %s is in escrow %s on chain %d, it watches %s on chain %d", errNotServed,
			terms.ID(), terms.Escrow, terms.ChainID, w.escrow.Address(), w.escrow.ChainID())
	}
	if _, ok := w.least[terms.Token]; !ok {
		return fmt.Errorf("%w: token %s", errNotServed, terms.Token)
	}
	if len(w.config.Payees) > 0 && !slices.Contains(w.config.Payees, terms.Payee) {
		return fmt.Errorf("%w: payee %s", errNotServed, terms.Payee)
	}
	return nil
}

// worth reports whether an amount of a token is worth gas.
func (w *watched) worth(terms channel.Terms, amount uint256.Int) error {
	least := w.least[terms.Token]
	if amount.Lt(&least) {
		return fmt.Errorf("%w: channel %s: %s base units of token %s, at least %s", errTooSmall, terms.ID(), amount.Dec(), terms.Token, least.Dec())
	}
	return nil
}

// books are the channels that the tower keeps, as it reads them from the chain.
type books struct {
	*watched
	payee *channel.Payee
}

// learn reads channels from the chain and keeps those that exist and are worth
// it. Each has its own error.
func (b *books) learn(ctx context.Context, all []channel.Terms) ([]sighting, []error) {
	states, errs := make([]sighting, len(all)), make([]error, len(all))
	ids := make([]common.Hash, len(all))
	for i, terms := range all {
		ids[i] = terms.ID()
	}
	err := b.escrow.Record(func() error {
		views, _, err := b.escrow.Fresh(ctx, ids, b.config.Chain.Confirmations)
		if err != nil {
			return err
		}
		for i, terms := range all {
			states[i] = sighting{deposit: views[i].Latest.Deposit, final: views[i].View.Finalized, known: views[i].Known}
			states[i].State, errs[i] = b.keep(ctx, terms, views[i])
		}
		return nil
	})
	if err != nil {
		for i := range errs {
			errs[i] = err
		}
	}
	return states, errs
}

// keep registers one channel as the chain has it. A known one is only brought
// up to date: what was taken on is kept to the end.
func (b *books) keep(ctx context.Context, terms channel.Terms, c chain.Confirmed) (channel.State, error) {
	id := terms.ID()
	if _, err := b.payee.State(ctx, id); err == nil {
		return b.payee.Observe(ctx, id, c.View)
	} else if !errors.Is(err, channel.ErrUnknown) {
		return channel.State{}, err
	}
	switch {
	case c.View.Finalized:
		return channel.State{}, fmt.Errorf("channel %s: %w", id, channel.ErrFinalized)
	case c.Latest.Deposit.IsZero():
		return channel.State{}, fmt.Errorf("%w: escrow %s has no channel %s", channel.ErrUnknown, b.escrow.Address(), id)
	case c.View.Deposit.IsZero():
		return channel.State{}, fmt.Errorf("%w: the deposit of channel %s has not %d confirmations yet", errBusy, id, b.config.Chain.Confirmations)
	}
	var left uint256.Int
	left.Sub(&c.View.Deposit, &c.View.Settled)
	if err := b.worth(terms, left); err != nil {
		return channel.State{}, err
	}
	return b.payee.Register(ctx, terms, c.View)
}

// time is when it is for what must not come too late: the latest that two endpoints and this machine's clock say. What is
// tried too early for that the contract refuses in a simulation, or it is a settlement that would have been made later.
func (w *watched) time(ctx context.Context) (time.Time, error) {
	_, latest, err := w.escrow.Times(ctx)
	if ours := time.Now(); ours.After(latest) {
		latest = ours
	}
	return latest, err
}

// due is when a closing channel's payer may withdraw.
func (w *watched) due(s channel.State) time.Time {
	return time.Unix(int64(s.CloseRequestedAt), 0).Add(w.escrow.Grace())
}

func (b *books) look(ctx context.Context, terms channel.Terms) (sighting, error) {
	states, errs := b.learn(ctx, []channel.Terms{terms})
	return states[0], errs[0]
}

// weight is an amount in millionths of what is worth gas in its token: those of several
// tokens compare.
func (w *watched) weight(terms channel.Terms, amount uint256.Int) uint256.Int {
	least := w.least[terms.Token]
	if least.IsZero() {
		least.SetOne()
	}
	amount.Mul(&amount, uint256.NewInt(1_000_000)) // 96 bits, and 20
	return *amount.Div(&amount, &least)
}
