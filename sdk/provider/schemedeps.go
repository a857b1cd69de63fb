package provider

import (
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
)

// schemeDeps is what schemes need of the provider that they are mounted on: the line of each gives it what it takes of it.
type schemeDeps struct {
	config      Config
	minDeposit  uint256.Int // base units
	minTransfer uint256.Int // base units that are worth a transaction

	db      *store.DB
	store   leasestore.Store
	escrow  *chain.Escrow
	payee   *channel.Payee
	sender  *chain.Sender
	limiter *admit.Limiter
	sponsor *admit.GasSponsor
	metrics *providerMetrics
	starts  *keyed.Mutex // one lease start at a time on a channel

	leases scheme.Leases
	gpus   scheme.GPUs
	debts  scheme.Debts
	outbox scheme.Outbox
	front  scheme.Front
}
