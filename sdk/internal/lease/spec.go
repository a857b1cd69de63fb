package lease

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/gpumetrics"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Spec is what a lease is about. Its parts read it, and nothing of it changes while the lease runs.
type Spec struct {
	ID         common.Hash
	Terms      channel.Terms
	Offer      *wire.SignedOffer
	Price      metering.Price
	MaxDebt    uint256.Int // base units owed and not vouchered, at most
	Allocation gpu.Allocation
	OwedBefore uint256.Int
	Binding    *wire.MeterBinding // whose key signs its records; nil: the one that its offer names
	Credit     Credit
	Deps       Deps
	Remote     Engine // where a node meters it: then this has no meter and no recorder of its own
	Mirror     bool   // another gateway runs it: this only shows its streams
	Term       int64  // of our ownership, where gateways share the database
	startedAt  int64  // unix nanoseconds

	life context.Context // it goes on in the next process when this ends; nil: it does not run, or a node meters it
	Read chan struct{}   // closed when its devices were read first, of a lease that lasts for one request
	Done chan struct{}   // closed when the lease has ended or the provider stops
}

// ChannelID is its channel.
func (s *Spec) ChannelID() common.Hash { return s.Terms.ID() }

// Deps is what every lease of a provider uses.
type Deps struct {
	Placer   placement.Placer
	Liveness func(context.Context, gpu.Allocation) error // of what it allocated; nil: it does not say
	probing  chan struct{}                               // bounds how many are asked at a time
	Source   metering.Source
	Clock    metering.Clock
	sampling *sampling.Scheduler     // of source, for all leases
	Sick     []*inventory.Quarantine // hear which devices cannot be read
	Store    leasestore.Store
	Row      uint256.Int           // base units of a channel that a settlement fetches at least
	Accounts *payercredit.Accounts // of payers; nil: each lease has a credit of its own
	Marks    *highwater.Marks      // outside the store: what was signed
	Metrics  gpumetrics.Leases
	Log      *slog.Logger
	Timing   Timing
	Ended    func(*Lease)
	Dropped  func(*Lease)           // it goes on elsewhere
	leaving  chan struct{}          // bounds how many write their last record at a time
	Tenure   func() context.Context // ends when others may run our leases; nil: nobody else does
}

// asks is how the allocator is asked whether leases are alive.
func (d *Deps) asks() placement.Asks {
	return placement.Asks{Alive: d.Liveness, Every: d.Timing.AliveEvery, Within: d.Timing.CallTimeout, Turn: d.probing, Log: d.Log}
}

// Timing is how often a lease looks at things.
type Timing struct {
	Tick           time.Duration
	RecordEvery    time.Duration
	SuspendTimeout time.Duration
	AliveEvery     time.Duration // between looks at whether what was allocated is alive
	CallTimeout    time.Duration // of an allocator's command and of a device's reading
	BeginTimeout   time.Duration // of all that is asked to begin a lease; CallTimeout if zero
}

// Engine meters a lease that this process does not meter. It has each record checked and on disk (records.Commit) before anybody sees it.
type Engine interface {
	// Follow passes on what is paid, and takes records, until the lease is over.
	Follow(ctx context.Context) Stop
	// Collect ends the lease where it is metered and takes its last records.
	Collect(ctx context.Context, req Stop) error
}

// MetersHere reports whether this process meters the lease.
func (s *Spec) MetersHere() bool { return s.Remote == nil }

// Begins is how long the beginning of a lease may take.
func (t Timing) Begins() time.Duration { return cmp.Or(t.BeginTimeout, t.CallTimeout) }

// of is the timing of a lease: what its offer promises counts, and not what was configured since.
func (t Timing) of(o wire.Offer) Timing {
	t.Tick = cmp.Or(time.Duration(o.Tick)*time.Millisecond, t.Tick)
	t.RecordEvery = cmp.Or(time.Duration(o.RecordEvery)*time.Millisecond, t.RecordEvery)
	return t
}
