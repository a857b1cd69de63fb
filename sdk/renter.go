package sdk

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net/http"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/units"
)

// What a renter meets. Every other error says what happened and wraps nothing
// that a caller would branch on.
var (
	// ErrGone: the provider cannot be reached.
	ErrGone = errors.New("provider cannot be reached")
	// ErrSilent: the provider sent no usage record for too long. Nothing is owed
	// for the time.
	ErrSilent = errors.New("provider is silent")
	// ErrDemand: the provider demands money that no record accounts for.
	ErrDemand = errors.New("provider demands more than its records say")
	// ErrGarbage: the provider's stream is not what it should be.
	ErrGarbage = errors.New("provider's stream does not parse")
	// ErrFlood: the provider sends records faster than it offered to.
	ErrFlood = errors.New("provider sends more records than it offered")
	// ErrLetTwice: the provider bills one GPU twice for the same time.
	ErrLetTwice = billed.ErrTwice
	// ErrRefused: the provider does not close the channel. Leave gets the
	// deposit back without it.
	ErrRefused = errors.New("provider does not close the channel")
	// ErrBudget: a cap or the deposit is used up. Close now, and all is paid.
	ErrBudget = errors.New("budget is used up")
	// ErrDeposit: more than the cap, or less than the provider takes.
	ErrDeposit = errors.New("deposit does not fit")
	// ErrNoGas: the way needs a transaction and the renter has no native coin.
	ErrNoGas = errors.New("no native coin to pay gas with")
	// ErrBalance: the renter has too little of the token.
	ErrBalance = errors.New("too little of the token")
	// ErrNeverFunded: a channel that was meant to be opened was not and cannot be
	// any more. No money is in it.
	ErrNeverFunded = errors.New("channel was never funded")
)

// capField is what a cap of the payer's is called in Caps.
func capField(cap string) string {
	switch cap {
	case channel.CapPayee:
		return "Caps.PerPayee"
	case channel.CapDay:
		return "Caps.PerDay"
	}
	return "Caps.PerLease"
}

// Unlimited is a cap that does not cap.
const Unlimited = "unlimited"

// Caps are what a renter will put at stake, in units of the token ("2.50"). Each
// must be said: "unlimited" lifts one. PricePerGPUHour cannot be lifted. What is
// deposited, or signed to be deposited, counts until it is back or signed away. With
// one endpoint, a deposit that was signed and given away, and that it does not show
// in time, counts until that day (UTC) is over.
type Caps struct {
	PricePerGPUHour string // a dearer offer is refused
	PerLease        string // deposited and signed for in one rental
	PerDay          string // signed for in one UTC day, and deposited and not signed for now
	PerPayee        string // signed for to one provider, for ever, and deposited with it and not signed for now
}

// RenterConfig says who rents, with what money, and how much of it. Key, RPC
// (or Backend), Token, Database and Caps are needed; the zero value of every
// other field is its default.
type RenterConfig struct {
	// Key is the payer's: it deposits, signs vouchers and gets refunds. One key belongs to one running Renter: two, also with a
	// database each, replace each other's approvals and take each other's nonces, so that deposits revert, and each counts only its
	// own channels under its Caps.
	Key      channel.Signer
	RPC      string         // JSON-RPC endpoint: http, https, ws or wss; several of one chain with commas between them
	Token    common.Address // what to pay in; all caps are in its units
	Database string         // path of the SQLite file; it remembers where the deposits are
	Caps     Caps

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

// Renter rents GPUs and pays for what it checked. It is safe for concurrent
// use; one database belongs to one Renter at a time.
//
// It promises: nothing is signed above the caps; a voucher is signed only for
// records that were checked, and for at most RentOptions.Prepay ahead; a
// channel is on disk before it is funded, so that a crash loses none; whatever
// is sent again after a crash can move the money only once.
type Renter struct {
	config  RenterConfig
	backend chain.Backend // for reading: chain.Agreed
	alone   bool          // it is one endpoint's word
	token   *chain.Token
	caps    renterCaps
	db      *store.DB
	store   rentalStore
	sender  *chain.Sender
	turns   turns // of payments to x402 servers, whichever client makes them
	let     billed.Ledger
	credits payeeCredits

	spending chan struct{} // held from an approval until it is spent
	left     sync.Map      // ids of channels whose leave this process has signed: they are not reopened
	pledging chan struct{} // held while a deposit is signed, and while payments are ended: see Rental.pledge
}

// renterCaps are Caps in base units.
type renterCaps struct {
	hourly uint256.Int
	channel.Caps
}

// NewRenter connects to the chain and opens the database. Its errors are one
// line each and say what to do.
func NewRenter(ctx context.Context, config RenterConfig) (*Renter, error) {
	config = config.withDefaults()
	if err := config.check(); err != nil {
		return nil, err
	}
	r := &Renter{config: config, spending: make(chan struct{}, 1), pledging: make(chan struct{}, 1)}
	backend, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	if r.caps, err = config.Caps.base(r.token.Decimals); err != nil {
		return nil, err
	}
	if r.db, err = database.Open(ctx, config.Database, "renter", renterMigrations, "migrations/renter"); err != nil {
		return nil, err
	}
	r.store = rentalStore{r.db}
	outbox, err := chain.OpenStore(ctx, r.db)
	if err == nil {
		err = r.store.forgetChain(ctx)
	}
	if err == nil {
		err = outbox.CheckGenesis(ctx, backend)
	}
	if err == nil {
		err = r.store.keepDecimals(ctx, backend, r.token)
	}
	if err == nil {
		err = r.recall(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.db.Close())
	}
	r.sender = &chain.Sender{Backend: backend, Key: config.Key, Store: outbox, Poll: config.Poll, MaxFee: config.MaxFee, Log: config.Log}
	return r, nil
}

// recall takes up what its rentals hold against each other.
func (r *Renter) recall(ctx context.Context) error {
	rows, err := r.store.list(ctx, `ORDER BY updated_at`)
	if err != nil {
		return err
	}
	r.credits.recall(rows, r.config.Clock)
	for _, row := range rows {
		r.let.Keep(row.Terms.Payee, row.Terms.ID(), row.Spans)
	}
	all, err := slates{r.store}.list(ctx)
	for _, s := range all {
		r.let.Keep(s.Payee, s.ID, s.Spans)
	}
	return err
}

func (c RenterConfig) withDefaults() RenterConfig {
	c.MaxGrace = cmp.Or(c.MaxGrace, 7*24*time.Hour)
	c.MaxCredit = cmp.Or(c.MaxCredit, time.Hour)
	c.Tolerance = cmp.Or(c.Tolerance, 2*time.Second)
	c.Patience = cmp.Or(c.Patience, 2*time.Minute)
	c.Confirmations = cmp.Or(c.Confirmations, 1)
	c.Poll = cmp.Or(c.Poll, 2*time.Second)
	c.ClockOff = cmp.Or(c.ClockOff, 2*time.Minute)
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
	c.Log = boundedLog(cmp.Or(c.Log, slog.Default()), c.Now)
	return c
}

// processClock names a boot where the system names none, as off Linux: it ends
// with the process. What is compared on no named boot would be paid for twice.
type processClock struct {
	metering.Clock
	boot string
}

func (c processClock) BootID() string { return c.boot }

func (c RenterConfig) check() error {
	switch {
	case c.Key == nil:
		return errors.New("renter: Key is nil: give the payer's key")
	case c.RPC == "" && c.Backend == nil:
		return errors.New("renter: RPC is empty: give the URL of a JSON-RPC endpoint")
	case c.Token == (common.Address{}):
		return errors.New("renter: Token is empty: give the address of the token to pay in; the caps are in its units")
	case c.Database == "":
		return errors.New("renter: Database is empty: give the path of a file; it remembers where the deposits are")
	case c.Tolerance < 0 || c.Patience < 0 || c.Poll < 0 || c.MaxGrace < 0 || c.MaxCredit < 0:
		return errors.New("renter: Tolerance, Patience, Poll, MaxGrace and MaxCredit must not be negative")
	}
	return nil
}

// connect dials the chain and checks what about it could cost money later. It
// returns the backend to send through: r.backend is for reading, and believes none
// of several endpoints alone.
func (r *Renter) connect(ctx context.Context) (backend chain.Backend, err error) {
	if backend = chain.Checked(r.config.Backend); r.config.Backend == nil {
		if backend, err = chain.Connect(ctx, r.config.RPC, r.config.Log); err != nil {
			return nil, err
		}
	}
	r.backend = chain.Agreed(backend)
	_, several := backend.(*chain.Endpoints)
	r.alone = !several
	if r.config.ChainID != 0 {
		if err := chain.CheckChainID(ctx, r.backend, r.config.ChainID); err != nil {
			return nil, err
		}
	}
	if r.token, err = chain.NewToken(ctx, r.backend, r.config.Token); err != nil {
		return nil, err
	}
	if r.config.Escrow != (common.Address{}) {
		_, err = chain.NewEscrow(ctx, r.backend, r.config.Escrow)
	}
	return backend, err
}

// onChain refuses to pay on another chain than the endpoint's, and than the configured one. The endpoint is asked each time:
// one wrong answer must not stop a renter until it is started again.
func (r *Renter) onChain(ctx context.Context, id uint64) error {
	if want := r.config.ChainID; want != 0 && id != want {
		return fmt.Errorf("%w: the payee is paid on chain %d, this renter pays on %d", chain.ErrChainID, id, want)
	}
	if err := chain.CheckChainID(ctx, r.backend, id); err != nil {
		return fmt.Errorf("the payee is paid on chain %d: %w", id, err)
	}
	return nil
}

// base reads the caps as base units of a token.
func (c Caps) base(decimals uint8) (renterCaps, error) {
	var caps renterCaps
	for _, cap := range []struct {
		name, text string
		into       *uint256.Int
	}{
		{"PricePerGPUHour", c.PricePerGPUHour, &caps.hourly},
		{"PerLease", c.PerLease, &caps.PerChannel},
		{"PerDay", c.PerDay, &caps.PerDay},
		{"PerPayee", c.PerPayee, &caps.PerPayee},
	} {
		if cap.text == "" {
			return caps, fmt.Errorf("renter: Caps.%s is empty: say how much, in units of the token, such as \"2.50\"", cap.name)
		}
		if cap.text == Unlimited && cap.into != &caps.hourly {
			*cap.into = channel.MaxAmount()
			continue
		}
		amount, err := units.Parse(cap.text, decimals)
		if err != nil {
			return caps, fmt.Errorf("renter: Caps.%s: %w", cap.name, err)
		}
		*cap.into = amount
	}
	return caps, nil
}

// payer signs vouchers in one escrow, within the caps.
func (r *Renter) payer(escrow *chain.Escrow) *channel.Payer {
	return &channel.Payer{
		Store: r.db.Payer(), Signer: r.config.Key, Domain: escrow.Domain(), Caps: r.caps.Caps, Now: r.config.Now,
	}
}

// Address is the payer's.
func (r *Renter) Address() common.Address { return r.config.Key.Address() }

// Token is what this renter pays in.
func (r *Renter) Token() *chain.Token { return r.token }

// Rentals lists what is not finished: each may hold money. Resume takes one up
// again.
//
// A rental that is closed stays in the list until no re-org can undo that; each
// call looks, and one that was undone is open again.
func (r *Renter) Rentals(ctx context.Context) ([]RentalState, error) {
	rows, err := r.store.unfinished(ctx)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		if row.Phase != RentalClosed {
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
		if row.Phase == RentalOpening && row.until() != 0 {
			rows[i] = r.opening(ctx, row)
		}
	}
	return r.store.paid(ctx, rows), nil
}

// opening is a rental that is being opened as the chain shows it, where that has its channel: the deposit is promised no more.
// Nothing is kept: whoever opens it may be at work. An endpoint that does not answer changes nothing.
func (r *Renter) opening(ctx context.Context, row rentalRow) rentalRow {
	l, err := r.Rental(ctx, row.Terms.ID())
	if err != nil {
		return row
	}
	if seen, err := l.look(ctx, r.config.Confirmations); err != nil || !seen.there {
		return row
	}
	return l.row
}

// History lists all rentals, the finished ones too, oldest first. Rental finds
// each of them again.
func (r *Renter) History(ctx context.Context) ([]RentalState, error) {
	rows, err := r.store.list(ctx, `ORDER BY updated_at`)
	return r.store.paid(ctx, rows), err
}

// RentalsFile lists what is not finished in a renter's database. The program that
// owns the database may run meanwhile; what it does not have yet is not there.
func RentalsFile(ctx context.Context, path string) ([]RentalState, error) {
	db, err := database.Read(ctx, path, map[string]fs.FS{"renter": renterMigrations})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	return rentalStore{db}.states(ctx)
}

func (s rentalStore) states(ctx context.Context) ([]RentalState, error) {
	rows, err := s.unfinished(ctx)
	if err != nil {
		return nil, err
	}
	return s.paid(ctx, rows), nil
}

// paid adds what vouchers say to what the rentals do.
func (s rentalStore) paid(ctx context.Context, rows []rentalRow) []RentalState {
	states := make([]RentalState, len(rows))
	for i, row := range rows {
		states[i] = row.state()
		if paid, err := s.db.Payer().Load(ctx, row.Terms.ID()); err == nil {
			states[i].Paid = paid.Signed
		}
	}
	return states
}

// Evidence returns what providers sent and this renter refused: about one
// channel or, with the zero id, before there was a channel.
func (r *Renter) Evidence(ctx context.Context, channelID common.Hash) ([]Evidence, error) {
	return r.store.evidence(ctx, channelID)
}

// Records returns the usage records of a channel that were checked and found
// right.
func (r *Renter) Records(ctx context.Context, channelID common.Hash) ([]metering.SignedRecord, error) {
	return r.store.records(ctx, channelID)
}

// Close closes the database. Rentals go on when a Renter is opened on it again.
func (r *Renter) Close() error { return r.db.Close() }
