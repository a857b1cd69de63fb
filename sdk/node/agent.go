package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/contain"
	"github.com/gpupay/gpupay/sdk/internal/gpumetrics"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/spool"
)

// Agent meters the GPUs of one host. It is an http.Handler that serves the provider's gateways alone; its methods are safe for concurrent
// use.
type Agent struct {
	config  Config
	leases  lease.Manager
	spool   spool.Spool
	store   leasestore.Store // of the spool
	mux     *http.ServeMux
	starts  keyed.Mutex // one start or end of a lease at a time
	hears   keyed.Mutex // one word about a lease's money at a time
	metrics *prometheus.Registry
	refusal atomic.Pointer[refusal]
}

// New opens the spool and takes up the leases of an earlier run. The time in
// between is billed to nobody.
func New(ctx context.Context, config Config) (*Agent, error) {
	config = config.withDefaults()
	if err := config.check(); err != nil {
		return nil, err
	}
	if err := config.Identity.CheckNode(config.Name); err != nil {
		return nil, fmt.Errorf("node %s: %w", config.Name, err)
	}
	config.Source = contain.Source(config.Log, config.Source)
	n := &Agent{config: config}
	var err error
	if n.spool, err = spool.Open(ctx, config.Database); err != nil {
		return nil, err
	}
	if err := n.list(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("node %s: %w", config.Name, err), n.spool.DB.Close())
	}
	marks, err := highwater.OpenFor(ctx, config.HighWater, config.Database, config.MeterKey.Address())
	if err != nil {
		return nil, errors.Join(err, n.spool.DB.Close())
	}
	n.configureLeases()
	n.leases.Deps.Marks = marks
	if n.leases.Deps.Placer, err = placement.Guard(ctx, n.leases.Deps.Placer, marks, n.store, config.Database, config.Log); err != nil {
		return nil, errors.Join(err, n.shutFiles())
	}
	n.routes()
	n.leases.Init(ctx)
	if err := n.leases.Restore(ctx); err != nil {
		n.leases.Close()
		return nil, errors.Join(err, n.shutFiles())
	}
	n.leases.TakeBackHeld()
	n.leases.Go(n.forgetOld)
	return n, nil
}

// list reads the devices, and makes the allocator of a host that has none. Where the devices cannot be listed a node runs that has
// leases or their records: it suspends what it cannot meter, gateways fetch what was metered and end their leases, and it begins
// none before its devices are listed. Without any it is refused.
func (n *Agent) list(ctx context.Context) error {
	devices, err := n.config.Source.Devices(ctx)
	if err == nil {
		err = inventory.OfOneKind(devices)
	} else {
		err = fmt.Errorf("%w: listing the GPUs of %s: %w", errUnlisted, n.config.Source.Name(), err)
	}
	if err == nil && len(devices) == 0 {
		err = fmt.Errorf("%w: %s has no GPU to rent out", errUnlisted, n.config.Source.Name())
	}
	n.leases.Offered.Devices = devices
	if n.config.Allocator == nil {
		n.config.Allocator = gpu.HostOf(ctx, n.config.Source)
	}
	if !errors.Is(err, errUnlisted) {
		return err
	}
	rows, failed := n.spool.Unclosed(ctx)
	if failed != nil || len(rows) == 0 {
		return errors.Join(err, failed)
	}
	n.config.Log.Error("no GPU can be metered: leases are suspended, and what was metered is delivered", "leases", len(rows), "error", err)
	return nil
}

// errUnlisted is that nobody knows which devices the node has.
var errUnlisted = errors.New("the node has no GPUs now")

// configureLeases wires the lease manager to the spool, the allocator and the metrics.
func (n *Agent) configureLeases() {
	metrics := gpumetrics.NewLeases()
	n.metrics = prometheus.NewRegistry()
	n.metrics.MustRegister(metrics.GPU, metrics.Gaps,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_leases", Help: "Leases running."}, func() float64 { return float64(len(n.leases.All())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_unmetered_leases", Help: "Leases none of whose GPUs can be metered: they are suspended."}, func() float64 { return float64(lease.Unmetered(n.leases.All())) }),
		gpumetrics.Collector{Look: n.leases.GPUs},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_node_refused", Help: "1 while a gateway begins no lease here, or none on some of its GPUs: /healthz says why."}, func() float64 { return gpumetrics.Flag(n.refused() != "") }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_node_waiting_records", Help: "Usage records that no gateway has yet."}, n.waiting))
	n.store = n.spool.Store
	n.leases.MeterKey, n.leases.PastKeys, n.leases.Store = n.config.MeterKey, n.config.PastKeys, n.store
	n.leases.Channel, n.leases.Share = n.spool.Channel, n.spool.Share
	n.leases.Deps = lease.Deps{
		Placer: placement.Local{Allocator: contain.Allocator{Allocator: n.config.Allocator, Log: n.config.Log}}, Sick: n.leases.Offered.Quarantines(n.config.Allocator), Liveness: contain.Liveness(n.config.Log, n.config.Allocator), Source: n.config.Source, Clock: n.config.Clock, Store: n.store,
		Metrics: metrics, Log: n.config.Log, Ended: n.leases.Drop, Dropped: n.leases.Drop,
		Timing: lease.Timing{Tick: metering.DefaultTick, RecordEvery: 5 * time.Second,
			SuspendTimeout: n.config.SuspendTimeout, AliveEvery: n.config.AliveEvery, CallTimeout: n.config.CommandTimeout},
	}
}

// waiting is how many records no gateway has yet; -1 where the spool does not say.
func (n *Agent) waiting() float64 {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	records, err := n.spool.Waiting(ctx)
	if err != nil {
		return -1
	}
	return float64(records)
}

// forgetOld deletes once an hour the leases that are over, delivered and older than spool.Kept, until the node stops.
func (n *Agent) forgetOld(ctx context.Context) {
	for {
		if err := n.spool.Forget(ctx, time.Now().Add(-spool.Kept)); err != nil && ctx.Err() == nil {
			n.config.Log.Warn("old leases were not forgotten", "error", err)
		}
		if chain.Pause(ctx, time.Hour) != nil {
			return
		}
	}
}

// Close stops metering and closes the spool. Leases are kept, as provider.Server.Close
// does: the next New on this spool goes on with them.
func (n *Agent) Close() error {
	if !n.leases.Close() {
		return nil
	}
	return n.shutFiles()
}

func (n *Agent) shutFiles() error {
	return errors.Join(n.spool.DB.Close(), n.leases.Deps.Marks.Close())
}

// Drain ends every lease. Gateways can still fetch its records.
func (n *Agent) Drain(ctx context.Context) error {
	n.leases.Drain()
	var err error
	for _, l := range n.leases.All() {
		err = errors.Join(err, l.End(ctx, lease.Stop{Reason: "the node ends all leases"}))
	}
	return err
}

// Metrics serves Prometheus metrics, for the operator.
func (n *Agent) Metrics() http.Handler { return promhttp.HandlerFor(n.metrics, promhttp.HandlerOpts{}) }
