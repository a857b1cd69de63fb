package sdk

import (
	"context"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/wire"
)

// schemeDeps is what a scheme needs of the provider that it is mounted on: nothing else of it is reached from there.
type schemeDeps struct {
	config      ProviderConfig
	price       metering.Price
	credit      uint256.Int   // base units that one payer may owe on channels that no claim is worth
	minDeposit  uint256.Int   // base units
	minTransfer uint256.Int   // base units that are worth a transaction
	shared      bool          // other gateways serve the same channels
	poll        time.Duration // how often each looks at what the others wrote

	db         *store.DB
	store      leasestore.Store
	sender     *chain.Sender
	settlement *settle.Service // nil where another process settles
	limiter    *admit.Limiter
	sponsor    *admit.GasSponsor
	metrics    *providerMetrics
	named      *namedDevices
	starts     *keyed.Mutex // one lease start at a time on a channel

	leases leaseDirectory
	gpus   gpuReservations
	debts  payerDebts
	outbox depositOutbox
	front  frontDesk
}

// leaseDirectory begins, finds and ends leases, wherever they run.
type leaseDirectory interface {
	Offer() wire.SignedOffer // under which new ones begin
	takesLeases() error
	beginLease(ctx context.Context, row leasestore.Row, s channel.State, offer wire.SignedOffer, c *leasestore.Lock) (*lease.Lease, error) // c: under which
	running(channelID common.Hash) *lease.Lease                                                                                            // nil: none here
	serving(ctx context.Context, s channel.State) (*lease.Lease, error)                                                                    // also elsewhere; the caller owes a detach
	detach(l *lease.Lease)
	begun(ctx context.Context, channelID common.Hash) bool // whether one runs, here or elsewhere
	nextStream(ctx context.Context, l *lease.Lease) (number uint64, err error)
	paid(s channel.State) // tells the channel's lease, or what is known of its payer
	endLease(ctx context.Context, channelID common.Hash, row *leasestore.Row, reason string) error
	unmetered(devices []string, route inventory.Route) error

	begin() bool // registers work that Close waits for until it is done
	done()
	lifetime() context.Context // ends with the provider
}

// gpuReservations keeps GPUs for leases whose deposits are on their way.
type gpuReservations interface {
	room(ctx context.Context, channelID common.Hash, gpus, back int) error
	reserve(ctx context.Context, channelID common.Hash, gpus, back int) (*reservation, error)
	seated(ctx context.Context, s *reservation, channelID common.Hash, gpus int) (*reservation, error)
	deviceBook() inventory.Book
}

// payerDebts says what a payer owes on a contract's channels.
type payerDebts interface {
	owingAt(ctx context.Context, contract chain.Contract, payers ...common.Address) ([]channel.State, error)
	leastRow(contract chain.Contract) uint256.Int
	debtors(owing []channel.State, row uint256.Int) string
	lapse(ctx context.Context, owing []channel.State) ([]channel.State, error)
	lapses(owing []channel.State) string
	creditworthy(ctx context.Context, s channel.State, offer wire.SignedOffer, gpus int) error
}

// depositOutbox sends deposits, each once.
type depositOutbox interface {
	submitOnce(ctx context.Context, terms channel.Terms, call chain.Call, reserve func() error) (chain.TxID, error)
	outboxIsWhole(ctx context.Context) error
	claim(ctx context.Context, name string) (*leasestore.Lock, error) // makes this gateway the only one to do it
}

// frontDesk answers as every part of the provider does.
type frontDesk interface {
	refuse(w http.ResponseWriter, r *http.Request, err error)
	problem(err error) *wire.Problem
	addressOf(r *http.Request) string
}
