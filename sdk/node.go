package sdk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/internal/spool"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
)

// NodeConfig says what a node meters, and for whom. The fields of the first group
// are needed.
type NodeConfig struct {
	Name     string            // what its gateways call it: 1 to 63 of a-z, 0-9 and -
	Identity nodekeys.Identity // that the provider's nodekeys.CA issued to this name
	MeterKey metering.Signer   // this node's own, which signs the usage records of its leases: see nodekeys.OpenMeterKey
	Database string            // path of the spool, an SQLite file on the node's own disk
	Source   metering.Source

	PastKeys       []metering.Signer // metering keys of before, for leases that go on, the one that all nodes had first; none if empty
	HighWater      string            // as ProviderConfig.HighWater; Database with ".signed" behind it if empty
	Allocator      gpu.Allocator     // a gpu.HostAllocator over Source if nil
	Payee          common.Address    // whose offers it meters for; anybody's whom its gateways serve if zero
	SuspendTimeout time.Duration     // an unpaid lease ends after it, also where no gateway is heard of; 5 min if zero
	CallTimeout    time.Duration     // of an allocator's command; 30 s if zero
	AliveEvery     time.Duration     // between looks at whether what was allocated is alive, where the Allocator says (Liveness); 10 s if zero
	Clock          metering.Clock    // the system's if nil
	Log            *slog.Logger      // slog.Default() if nil
}

func (c NodeConfig) withDefaults() NodeConfig {
	c.SuspendTimeout = cmp.Or(c.SuspendTimeout, 5*time.Minute)
	c.CallTimeout = cmp.Or(c.CallTimeout, 30*time.Second)
	c.AliveEvery = cmp.Or(c.AliveEvery, defaultAliveEvery)
	if c.Clock == nil {
		c.Clock = metering.System
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func (c NodeConfig) check() error {
	if err := nodekeys.CheckName(c.Name); err != nil {
		return err
	}
	switch {
	case c.MeterKey == nil:
		return errors.New("node: MeterKey is nil: give the key that signs usage records, as OpenMeterKey makes one")
	case c.Database == "":
		return errors.New("node: Database is empty: give the path of a file; it will hold records that are not delivered yet")
	case c.AliveEvery < 0:
		return fmt.Errorf("node: AliveEvery (%s) must not be negative", c.AliveEvery)
	case c.Source == nil:
		return errors.New("node: Source is nil: give nvml.Open(..) or, to try things out, sim.New(1)")
	}
	return nil
}

// Node meters GPUs on their host for gateways that are somewhere else: providers
// whose ProviderConfig.Nodes names it. It needs no chain, no payee's key and no
// gateway to go on:
//
//	n, err := sdk.NewNode(ctx, sdk.NodeConfig{..})
//	server := &http.Server{Addr: "10.0.0.5:8404", Handler: n, TLSConfig: n.TLS()}
//	server.ListenAndServeTLS("", "")
//
// It promises: a usage record is on the node's own disk before any gateway sees
// it, and stays there until one has it; no lease runs further ahead of what its
// gateways said is vouchered than the credit in the offer, however long none of
// them is heard of.
type Node struct {
	config  NodeConfig
	leases  lease.Manager
	spool   spool.Spool
	store   leasestore.Store // of the spool
	mux     *http.ServeMux
	starts  keyed.Mutex // one start or end of a lease at a time
	hears   keyed.Mutex // one word about a lease's money at a time
	metrics *prometheus.Registry
	refusal atomic.Pointer[refusal]
}

// NewNode opens the spool and takes up the leases of an earlier run. The time in
// between is billed to nobody.
func NewNode(ctx context.Context, config NodeConfig) (*Node, error) {
	config = config.withDefaults()
	if err := config.check(); err != nil {
		return nil, err
	}
	if err := config.Identity.CheckNode(config.Name); err != nil {
		return nil, fmt.Errorf("node %s: %w", config.Name, err)
	}
	config.Source = tame(config.Log, config.Source)
	devices, err := inventory.List(ctx, config.Source)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", config.Name, err)
	}
	if config.Allocator == nil {
		allocator, err := gpu.NewHostAllocator(ctx, config.Source)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", config.Name, err)
		}
		config.Allocator = allocator
	}
	n := &Node{config: config}
	n.leases.Offered.Devices = devices
	if n.spool, err = spool.Open(ctx, config.Database); err != nil {
		return nil, err
	}
	marks, err := highwater.OpenFor(ctx, config.HighWater, config.Database, config.MeterKey.Address())
	if err != nil {
		return nil, errors.Join(err, n.spool.DB.Close())
	}
	n.lets()
	n.leases.Deps.Marks = marks
	if n.leases.Deps.Placer, err = placement.Guard(n.leases.Deps.Placer, marks, n.store, config.Database, config.Log); err != nil {
		return nil, errors.Join(err, n.shutFiles())
	}
	n.routes()
	n.leases.Init()
	if err := n.leases.Restore(ctx); err != nil {
		n.leases.Close()
		return nil, errors.Join(err, n.shutFiles())
	}
	n.leases.TakeBackHeld()
	n.every(time.Hour, n.tidy)
	return n, nil
}

// lets says how leases are run.
func (n *Node) lets() {
	metrics := lease.NewMetrics()
	n.metrics = prometheus.NewRegistry()
	n.metrics.MustRegister(metrics.GPU, metrics.Gaps,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_leases", Help: "Leases running."}, func() float64 { return float64(len(n.leases.All())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_unmetered_leases", Help: "Leases none of whose GPUs can be metered: they are suspended."}, func() float64 { return float64(lease.Unmetered(n.leases.All())) }),
		gpuCollector{&n.leases},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_node_refused", Help: "1 while a gateway begins no lease here, or none on some of its GPUs: /healthz says why."}, func() float64 { return flag(n.refused() != "") }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_node_waiting_records", Help: "Usage records that no gateway has yet."}, n.waiting))
	n.store = n.spool.Store
	n.leases.MeterKey, n.leases.PastKeys, n.leases.Store = n.config.MeterKey, n.config.PastKeys, n.store
	n.leases.Channel, n.leases.Share = n.spool.Channel, n.spool.Share
	n.leases.Deps = lease.Deps{
		Placer: placement.Local{Allocator: tameAllocator{n.config.Allocator, n.config.Log}}, Sick: n.leases.Offered.Quarantines(n.config.Allocator), Liveness: liveness(n.config.Log, n.config.Allocator), Source: n.config.Source, Clock: n.config.Clock, Store: n.store,
		Metrics: metrics, Log: n.config.Log, Ended: n.leases.Drop, Dropped: n.leases.Drop,
		Timing: lease.Timing{Tick: metering.DefaultTick, RecordEvery: defaultRecordEvery,
			SuspendTimeout: n.config.SuspendTimeout, AliveEvery: n.config.AliveEvery, CallTimeout: n.config.CallTimeout},
	}
}

func (n *Node) waiting() float64 {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	records, err := n.spool.Waiting(ctx)
	if err != nil {
		return -1
	}
	return float64(records)
}

// every does something at once and again and again until the node stops.
func (n *Node) every(pause time.Duration, do func(context.Context)) {
	n.leases.Go(func(ctx context.Context) {
		for do(ctx); chain.Pause(ctx, pause) == nil; {
			do(ctx)
		}
	})
}

func (n *Node) tidy(ctx context.Context) {
	if err := n.spool.Forget(ctx, time.Now().Add(-spool.Kept)); err != nil && ctx.Err() == nil {
		n.config.Log.Warn("old leases were not forgotten", "error", err)
	}
}

// Close stops metering and closes the spool. Leases are kept, as Provider.Close
// does: the next NewNode on this spool goes on with them.
func (n *Node) Close() error {
	if !n.leases.Close() {
		return nil
	}
	return n.shutFiles()
}

func (n *Node) shutFiles() error { return errors.Join(n.spool.DB.Close(), n.leases.Deps.Marks.Close()) }

// Drain ends every lease. Gateways can still fetch its records.
func (n *Node) Drain(ctx context.Context) error {
	n.leases.Drain()
	var err error
	for _, l := range n.leases.All() {
		err = errors.Join(err, l.End(ctx, lease.Stop{Reason: "the node ends all leases"}))
	}
	return err
}

// Metrics serves Prometheus metrics, for the operator.
func (n *Node) Metrics() http.Handler { return promhttp.HandlerFor(n.metrics, promhttp.HandlerOpts{}) }

// gpuCollector says how the GPUs of a node are when it is asked.
type gpuCollector struct{ h *lease.Manager }

func (c gpuCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descQuarantine, descHeldGPUs, descSource, descRestart} {
		ch <- d
	}
}

func (c gpuCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gpus := c.h.GPUs(ctx)
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	gauge(descQuarantine, float64(len(gpus.Quarantined)))
	gauge(descHeldGPUs, float64(gpus.Held))
	gauge(descSource, flag(gpus.Err == nil))
	gauge(descRestart, flag(gpus.Restart()))
}

// nodeHealth is what Health answers.
type nodeHealth struct {
	Status      string   `json:"status"`        // "ok", "degraded: " and what of, or why it answers 503
	Restart     bool     `json:"restartWanted"` // nothing can be metered before the program is restarted
	Quarantined []string `json:"quarantined,omitempty"`
	Leases      int      `json:"leases"`
	Unmetered   int      `json:"unmeteredLeases"`
	Held        int      `json:"heldLeases"` // they have ended, and their GPUs could not be taken back yet
}

// Health answers 200 while the node can keep records, write down what it signs and list its devices, 503 and
// the reason otherwise. Where some or all of its GPUs do not work, or leases cannot be metered, it answers 200 and says degraded.
func (n *Node) Health() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		leases, gpus := n.leases.All(), n.leases.GPUs(ctx)
		h, code := nodeHealth{Status: "ok", Restart: gpus.Restart(), Quarantined: gpus.Quarantined, Leases: len(leases), Unmetered: lease.Unmetered(leases), Held: gpus.Held}, http.StatusOK
		err := errors.Join(n.spool.DB.View().PingContext(ctx), gpus.Err, n.leases.Deps.Marks.Check(ctx))
		switch why := n.refused(); {
		case err != nil:
			h.Status, code = err.Error(), http.StatusServiceUnavailable
		case why != "":
			h.Status = "degraded: " + why
		case len(h.Quarantined) > 0 || h.Unmetered > 0 || h.Held > 0:
			h.Status = gpus.Degraded(h.Unmetered)
		}
		serve.JSON(w, code, h)
	})
}
