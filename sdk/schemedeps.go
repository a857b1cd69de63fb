package sdk

import (
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/settle"
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

	leases scheme.Leases
	gpus   scheme.GPUs
	debts  scheme.Debts
	outbox scheme.Outbox
	front  scheme.Front
	book   func() inventory.Book // of devices
}
