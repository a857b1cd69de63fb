package provider

import (
	"context"
	"errors"
	"math/big"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/contain"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/gateways"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/offering"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
	"github.com/gpupay/gpupay/sdk/internal/run"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/sharing"
	"github.com/gpupay/gpupay/sdk/internal/x402scheme"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Server rents out GPUs over HTTP and is paid for the metered time. Embed it
// as an http.Handler under any path, and call Run beside the server:
//
//	p, err := provider.New(ctx, provider.Config{..})
//	go p.Run(ctx)
//	http.ListenAndServe(":8402", p)
//
// It promises: a voucher is on disk before service is given for it; a usage
// record and its charge are on disk before the renter sees them; no lease runs
// further ahead of its vouchers than the credit in the signed offer.
type Server struct {
	config Config
	escrow *chain.Escrow
	token  *chain.Token
	prices
	gasless bool // we send renters' ERC-3009 deposits

	db        *store.DB
	store     leasestore.Store
	payee     *channel.Payee
	leases    lease.Manager
	directory *gateways.Directory // leases wherever they run
	gateway   *gateways.Gateway   // nil where nobody shares the database
	nodes     *remote.Nodes       // nil where this gateway meters
	noGPUs    error               // why none could be listed at the start: it settles, and rents out nothing
	reserved  reserve.Books       // GPUs whose deposits are on their way

	sender     *chain.Sender
	settlement settlement
	offers     offering.Offers
	debts      *payercredit.Debts
	retention  retention
	metrics    *providerMetrics

	mounted []mounted        // by which schemes it is paid
	schemes scheme.Set       // of each mounted, in order
	named   x402scheme.Named // also where x402 is not taken: what was let by it before is taken back

	mux     *http.ServeMux
	proxies limit.Proxies
	limiter *admit.Limiter    // what clients may do how often
	sponsor *admit.GasSponsor // what transactions for strangers may cost
	starts  keyed.Mutex       // one lease start or close at a time on a channel
}

// ErrDamaged says that a database file is not what was written to it.
var ErrDamaged = database.ErrDamaged

// ErrInUse says that another process runs on the database file.
var ErrInUse = store.ErrInUse

// New connects to the chain, opens the database and takes up the
// leases of an earlier run. Its errors are one line each and say what to do.
func New(ctx context.Context, config Config) (*Server, error) {
	config = config.withDefaults()
	if err := config.check(); err != nil {
		return nil, err
	}
	config.Source = contain.Source(config.Log, config.Source)
	escrow, token, err := config.connect(ctx)
	if err != nil {
		return nil, err
	}
	p := &Server{config: config, escrow: escrow, token: token}
	if err := p.prepare(ctx); err != nil {
		return nil, err
	}
	p.leases.Init(ctx)
	err = p.directory.CatchUp(ctx, p.escrow, p.config.Chain.Confirmations)
	if err == nil {
		err = p.directory.TakeUp(ctx)
	}
	if err != nil {
		p.leases.Finish()
		return nil, errors.Join(err, p.shutFiles())
	}
	if p.nodes != nil { // they are asked again and again until the provider stops
		p.leases.Go(func(ctx context.Context) { _ = p.nodes.Run(ctx) })
	}
	return p, nil
}

func (p *Server) prepare(ctx context.Context) error {
	var err error
	if p.prices, err = pricesOf(p.config, p.token.Decimals); err == nil {
		err = p.worthSettling(p.escrow)
	}
	if err == nil {
		err = p.listGPUs(ctx)
	}
	if err != nil {
		return err
	}
	if p.config.Settlement.Dust.IsZero() {
		p.config.Settlement.Dust = p.minTransfer
	}
	db, err := database.Open(ctx, p.config.Database, "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		return err
	}
	p.db, p.store = db, leasestore.New(db)
	p.leases.Store = p.store
	if err := identify(ctx, db, p.escrow, p.config); err != nil {
		return errors.Join(err, db.Close())
	}
	marks, err := highwater.OpenFor(ctx, p.config.Records.HighWater, p.config.Database, p.config.Metering.Key.Address())
	if err != nil {
		return errors.Join(err, db.Close())
	}
	p.leases.Deps.Marks = marks
	p.payee = &channel.Payee{Store: db.Payee(), Domain: p.escrow.Domain(), MinDelta: p.minDelta}
	p.directory = &gateways.Directory{Manager: &p.leases, Payee: p.payee, Offers: &p.offers, NoGPUs: p.noGPUs}
	if p.nodes != nil {
		err = p.nodes.Poll(ctx, db)
	}
	p.metrics = newProviderMetrics(&p.leases)
	if err == nil {
		err = p.share()
	}
	if err := errors.Join(err, settlesAlone(ctx, p), p.chainParts(ctx), p.makeOffers(ctx)); err != nil {
		return errors.Join(err, p.shutFiles())
	}
	p.retention = retention{db: db, store: p.store, txs: p.sender.Store, payee: p.payee, debts: p.debts, keep: p.config.Records.Retention, folder: p.config.Records.Archive, log: p.config.Log}
	p.collectMoney()
	p.lets()
	if p.leases.Deps.Placer, err = placement.Guard(ctx, p.leases.Deps.Placer, marks, p.store, p.config.Database, p.config.Log); err != nil {
		return errors.Join(err, p.shutFiles())
	}
	p.routes()
	p.sponsor.WarnPoor(ctx)
	return nil
}

// settlesAlone has a provider that cannot list its GPUs run where there is something to settle or to give back: it rents out
// nothing, its leases are suspended until they can be metered, and its health says why. Without that it is refused.
func settlesAlone(ctx context.Context, p *Server) error {
	if p.noGPUs == nil {
		return nil
	}
	leases, err := p.store.Leases.Unfinished(ctx)
	if err != nil {
		return err
	}
	channels, err := p.payee.Channels(ctx, channel.Open, channel.Closing)
	if err != nil {
		return err
	}
	if len(leases) == 0 && len(channels) == 0 {
		return p.noGPUs
	}
	p.config.Log.Error("no GPU can be metered: what is owed is settled, and nothing is rented out before this program is started again with its GPUs at work",
		"channels", len(channels), "leases", len(leases), "error", p.noGPUs)
	return nil
}

// lets says how leases are run.
func (p *Server) lets() {
	p.leases.MeterKey, p.leases.Binder = p.config.Metering.Key, p.config.Key
	p.leases.PaidTo = p.config.Key.Address()
	p.leases.Channel = func(ctx context.Context, row leasestore.Row) (channel.State, error) {
		return p.payee.State(ctx, common.HexToHash(row.Channel))
	}
	p.leases.Scheme, p.leases.Allocated = p.schemes.Take, func(id common.Hash) { p.reserved.Taken(id) }
	p.leases.Owing = func(ctx context.Context, payer common.Address) ([]channel.State, error) {
		return p.debts.Owing(ctx, payer)
	}
	if p.nodes != nil {
		p.leases.Remote = p.nodes.NewLease
	}
	p.leases.Deps = lease.Deps{
		Placer:   p.placer(),
		Sick:     p.leases.Offered.Quarantines(p.config.Allocator),
		Liveness: contain.Liveness(p.config.Log, p.config.Allocator), Source: p.config.Source, Clock: p.config.Metering.Clock, Store: p.store, Marks: p.leases.Deps.Marks, Row: p.leastRow(p.escrow), Accounts: p.debts.Accounts,
		Metrics: p.metrics.Leases, Log: p.config.Log, Ended: p.settlement.leaseEnded, Dropped: p.leases.Drop,
		Timing: lease.Timing{Tick: p.config.Metering.Tick, RecordEvery: p.config.Metering.RecordEvery,
			SuspendTimeout: p.config.Terms.SuspendTimeout, AliveEvery: p.config.Commands.AliveEvery, CallTimeout: p.config.Commands.Timeout},
	}
	if p.gateway != nil {
		p.leases.Deps.Tenure = p.gateway.Tenure
	}
	if p.nodes != nil {
		p.nodes.Config = p.nodesConfig()
		p.leases.Deps.Timing.BeginTimeout = remote.BeginTimeout(p.config.Commands.Timeout)
	}
}

// nodesConfig is what the nodes' leases need of this gateway.
func (p *Server) nodesConfig() remote.Config {
	row := p.leases.Deps.Row
	return remote.Config{DB: p.db, Store: p.store, Payee: p.payee, Shares: &remote.Shares{Store: p.store, Row: row, Owing: p.debts.Owing}, Accounts: p.leases.Deps.Accounts, Row: row, Shared: p.gateway != nil,
		Log: p.config.Log, CallTimeout: p.config.Commands.Timeout, Tolerance: p.config.Chain.ClockTolerance, Credit: p.config.Terms.Credit, Tick: p.config.Metering.Tick,
		Decimals: p.token.Decimals, Forgone: p.metrics.forgone, OffersDiffer: p.offers.Differ, Renew: p.offers.Renew,
		Image: func(ctx context.Context, row leasestore.Row, s channel.State) (*lease.Lease, error) {
			return gateways.Image(ctx, &p.leases, row, s)
		},
		Resolve: p.directory.TakeBack}
}

// placer puts leases onto the nodes, or onto what the allocator rents out beside Metered routes.
func (p *Server) placer() placement.Placer {
	if p.nodes != nil {
		return p.nodes
	}
	return placement.Local{Allocator: sharing.Allocator{Services: p.leases.Services,
		Allocator: x402scheme.NamedAllocator{Allocator: contain.Allocator{Allocator: p.config.Allocator, Log: p.config.Log}, Named: &p.named, Book: p.deviceBook}}}
}

// chainParts makes what watches the chain and sends to it.
func (p *Server) chainParts(ctx context.Context) error {
	txs, err := chain.OpenStore(ctx, p.db)
	if err != nil {
		return err
	}
	if err := txs.CheckGenesis(ctx, p.escrow.Backend()); err != nil {
		return err
	}
	supported, err := p.token.SupportsAuthorization(ctx)
	if err != nil {
		return err
	}
	p.gasless = supported && !p.config.Deposits.NoGasless
	if err := p.chooseSchemes(ctx); err != nil {
		return err
	}
	settles := &p.settlement
	settles.config, settles.prices, settles.payee, settles.directory = p.config, &p.prices, p.payee, p.directory
	p.debts = p.newDebts()
	if p.db.Shared() {
		p.gateway = p.newGateway()
		p.sender = settles.newSender(txs)
		p.sender.Follow = true
	} else {
		settles.here(p.db, txs)
		p.sender = settles.service.Sender
	}
	p.limiter = p.config.Limits.limiter()
	p.sponsor = admit.NewGasSponsor(p.sender, settles.contracts, p.config.Limits.gasBudget())
	p.sponsor.MinTransfer, p.sponsor.Poll, p.sponsor.Log = p.minTransfer, p.config.Chain.Poll, p.config.Log
	return errors.Join(p.openSchemes(ctx), settles.warnUnwatched(ctx))
}

// challenges mints and checks challenges with the database's secret.
func (p *Server) challenges(ctx context.Context) (*wire.Minter, error) {
	secret, err := p.store.Secrets.Get(ctx, "challenge")
	if err != nil {
		return nil, err
	}
	return &wire.Minter{Secret: secret, Realm: p.config.HTTP.Realm, TTL: 5 * time.Minute, Now: time.Now}, nil
}

// Run watches the chain, settles and renews the offer until ctx ends, Close is
// called, or one of them fails for good. Without it nothing is settled.
func (p *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !p.leases.Begin() {
		return lease.ErrClosed
	}
	defer p.leases.Done()
	defer context.AfterFunc(p.leases.Lifetime(), cancel)()
	return run.Ended(run.Together(ctx, p.settlement.run, p.offers.Run, p.retention.run))
}

// Close stops metering, watching and settling, and closes the database. Leases are kept: their devices
// stay with the renters, the next New on this database goes on with
// them, and the time in between is not billed. To end them instead, call Drain
// first.
func (p *Server) Close() error {
	if !p.leases.Close() {
		return nil
	}
	if p.gateway != nil {
		p.gateway.Leave()
	}
	return p.shutFiles()
}

func (p *Server) shutFiles() error { return errors.Join(p.db.Close(), p.leases.Deps.Marks.Close()) }

// GasSpent is what the transactions of the provider's present key have cost so far, in wei.
func (p *Server) GasSpent(ctx context.Context) (*big.Int, error) { return p.sender.GasSpent(ctx) }

// lastVoucherTimeout bounds how long Drain waits for renters to pay final records, of which they hear only then.
const lastVoucherTimeout = 5 * time.Second

// Drain ends every lease, waits five seconds at most for the vouchers of their final records, and settles what is owed. New leases
// are refused. Renters close their channels meanwhile, and then: go on serving until their requests are answered, before Close.
func (p *Server) Drain(ctx context.Context) error {
	p.leases.Drain()
	var err error
	ended := p.leases.All()
	for _, l := range ended {
		err = errors.Join(err, l.End(ctx, lease.Stop{Reason: "the provider ends all leases"}))
	}
	awaitLastVouchers(ctx, p.payee, ended)
	return errors.Join(err, p.Settle(ctx))
}

// awaitLastVouchers returns when all that the leases used is vouchered for, or lastVoucherTimeout is over.
func awaitLastVouchers(ctx context.Context, payee *channel.Payee, ended []*lease.Lease) {
	ctx, cancel := context.WithTimeout(ctx, lastVoucherTimeout)
	defer cancel()
	for _, l := range ended {
		for {
			s, err := payee.State(ctx, l.Terms.ID())
			if owed := s.Owed(); err != nil || owed.IsZero() || s.Status == channel.Finalized {
				break
			}
			if chain.Pause(ctx, 50*time.Millisecond) != nil {
				return
			}
		}
	}
}

// Service says how the lease on a channel is: active, suspended, or ended
// (also where there never was one).
func (p *Server) Service(channelID common.Hash) string {
	l := p.leases.Running(channelID)
	if l == nil {
		return wire.StateEnded
	}
	return string(l.Status.State())
}
