package sdk

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// nodes is the placer of a gateway whose GPUs are metered by nodes: it has a node begin a lease, and take the devices back at its end.
type nodes struct {
	*nodelink.Pool
	config nodesConfig
	offers *rate.Limiter
	passes sync.Mutex // one look at what is held at a time: each gives up what the one before did not

	mu      sync.Mutex
	now     func() time.Time
	absent  map[string]absence   // by lease
	outdone map[common.Hash]bool // see outpaced
}

// nodesConfig is what nodes need of their gateway.
type nodesConfig struct {
	db          *store.DB
	store       leasestore.Store
	payee       *channel.Payee
	shares      *creditShares
	accounts    *payercredit.Accounts
	row         uint256.Int // base units of a channel that a settlement fetches at least
	shared      bool        // other gateways may run a lease
	log         *slog.Logger
	callTimeout time.Duration // of an allocator's command at a node
	tolerance   time.Duration // of its clock
	credit      time.Duration
	tick        time.Duration
	decimals    uint8              // of the token
	forgone     prometheus.Counter // leases that are billed no further, since their node does not say what it metered
	offer       func() wire.SignedOffer
	renew       func(context.Context) error                                                // the offer, by what nodes list
	image       func(context.Context, leasestore.Row, channel.State) (*lease.Lease, error) // of a lease that does not run here
	resolve     func(context.Context, leasestore.Row) error                                // takes back what an ended lease has, by one gateway at a time
}

var _ placement.Placer = (*nodes)(nil)

// newNodes makes the clients of a configuration's nodes. It is complete with its nodesConfig, which needs the database.
func newNodes(c ProviderConfig) (*nodes, error) {
	if err := c.NodeIdentity.CheckGateway(); err != nil {
		return nil, fmt.Errorf("provider: NodeIdentity: %w", err)
	}
	var clients []*nodelink.Client
	for _, link := range c.Nodes {
		client, err := nodelink.NewClient(link.Name, link.URL, c.NodeIdentity)
		if err != nil {
			return nil, fmt.Errorf("provider: Nodes: %w", err)
		}
		clients = append(clients, client)
	}
	p, err := nodelink.NewPool(clients, c.Log)
	if err != nil {
		return nil, fmt.Errorf("provider: Nodes: %w", err)
	}
	return &nodes{Pool: p, offers: rate.NewLimiter(rate.Every(offerPace), offerBurst), now: time.Now,
		absent: make(map[string]absence), outdone: make(map[common.Hash]bool)}, nil
}

// unfit are the nodes that begin no lease, with the reasons, and those that did not answer when they were asked last.
func (n *nodes) unfit() (refused map[string]string, away []string) {
	if n == nil {
		return nil, nil
	}
	return n.Refused(), n.Unreachable()
}

// What nodes list makes so many new offers at once, and one in offerPace from then on: an offer that says too many GPUs
// costs a renter a refusal, and each one is kept for ever.
const (
	offerPace  = 5 * time.Minute
	offerBurst = 10
)

// publish has the offer say what nodes list now, where it does not.
func (n *nodes) publish(ctx context.Context) {
	if !n.differs(n.config.offer().Offer) || !n.offers.Allow() {
		return
	}
	if err := n.config.renew(ctx); err != nil && ctx.Err() == nil {
		n.config.log.Error("offer could not be renewed", "error", err)
	}
}

// differs reports whether an offer says something else than the nodes do.
func (n *nodes) differs(o wire.Offer) bool {
	devices := n.Devices()
	return !slices.Equal(o.Devices, wire.DevicesOf(devices)) || o.Simulated != simulated(devices)
}

// run asks the nodes again and again, ends there what has ended here, and has the
// offer say what there is.
func (n *nodes) run(ctx context.Context) error {
	defer n.Wait()
	for chain.Pause(ctx, time.Second) == nil {
		asked := n.Poll(ctx, n.config.db)
		n.publish(ctx)
		n.reconcile(ctx)
		if err := errors.Join(asked, n.collect(ctx)); err != nil && ctx.Err() == nil {
			n.config.log.Warn("what nodes have to do with the database", "error", err)
		}
	}
	return ctx.Err()
}

// reconcileMost is how many of the leases that a node lists are looked up at once.
const reconcileMost = 500

// reconcile ends at the nodes what has ended here and of which nothing is collected: this gateway was killed while one began,
// or it was given up. What is not in our database at all is not ours to end.
func (n *nodes) reconcile(ctx context.Context) {
	for name, ids := range n.Leases() {
		if more := len(ids) - reconcileMost; more > 0 { // others the next time
			ids = ids[rand.IntN(more+1):][:reconcileMost]
		}
		n.Go(ctx, "reconcile", name, func(ctx context.Context) error { return n.reconcileAt(ctx, name, ids) })
	}
}

// reconcileAt is reconcile at one node, of leases that it lists itself. The share of one that another node has is not its to
// give back.
func (n *nodes) reconcileAt(ctx context.Context, name string, ids []common.Hash) error {
	known, err := n.config.store.Leases.Glimpses(ctx, ids)
	for id, now := range known {
		if now.State != wire.StateEnded || now.Held != 0 {
			continue
		}
		row, failed := n.config.store.Leases.ByID(ctx, now.ID) // has no access document any more
		if failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		ended := n.end(ctx, n.Client(name), id, nodelink.End{Reason: row.Reason, Closed: true, Fence: nodelink.InTerm(row.Term)})
		if a, bad := row.Allocated(); ended == nil && (bad != nil || a.Node == "" || a.Node == name) {
			ended = n.config.shares.end(ctx, id)
		}
		err = errors.Join(err, ended)
	}
	return err
}

// end is the node's, of a lease that does not run here.
func (n *nodes) end(ctx context.Context, c *nodelink.Client, id common.Hash, q nodelink.End) error {
	err := c.End(ctx, n.config.callTimeout, id, q)
	if errors.Is(err, &nodelink.Deposed) {
		err = n.outpaced(ctx, id, *q.Term, err)
	}
	return err
}

// Place has a node begin the lease, and returns whose key signs its records: from its answer on it meters. Where the
// answer is lost the lease ends here, and so it does there (reconcile). Its share is free at once:
// nobody was told how to reach what the node may have begun, and it is charged to nobody.
func (n *nodes) Place(ctx context.Context, req placement.Request) (gpu.Allocation, common.Address, error) {
	written, err := n.written(ctx, req)
	if err != nil {
		return gpu.Allocation{}, common.Address{}, err
	}
	q := nodelink.Start{LeaseID: req.LeaseID, WrittenAt: written, Terms: req.Channel.Terms, Offer: req.Offer.Document, GPUs: req.GPUs, OwedBefore: wire.NewAmount(req.Channel.Spent),
		Money: nodelink.MoneyOf(req.Channel.Accepted, req.Channel.Deposit), Fence: nodelink.InTerm(req.Term)}
	share, err := n.makeRoom(ctx, req)
	if err != nil {
		return gpu.Allocation{}, common.Address{}, err
	}
	if share.tell.IsZero() { // see lease.limit
		q.Money = nodelink.MoneyOf(payercredit.Collectible(req.Channel, n.config.row), req.Channel.Deposit)
	}
	q.Money = q.WithCredit(share.tell, share.version)
	a, meter, err := n.begin(ctx, req, q)
	if err != nil {
		err = errors.Join(err, n.config.shares.end(context.WithoutCancel(ctx), req.LeaseID))
	}
	return a, meter, err
}

// begin asks one node after the other for the lease.
func (n *nodes) begin(ctx context.Context, req placement.Request, q nodelink.Start) (gpu.Allocation, common.Address, error) {
	clients, slow, late := n.WithCapacity(req.GPUs), false, false
	for i, c := range clients {
		limit, asked := n.turn(ctx, len(clients)-i-1), time.Now()
		if limit <= 0 {
			break
		}
		began, err := n.beginAt(ctx, limit, c, q)
		if err == nil {
			n.EndRest(c.Name)
			n.Reserve(c.Name, req.GPUs)
			a := *began.Allocation
			a.LeaseID, a.Node, a.Term = req.LeaseID, c.Name, req.Term
			return a, *began.Meter, nil
		}
		took, hurried := time.Since(asked), slow && limit < n.config.callTimeout
		slow, late = slow || took > n.patience(), late || errors.Is(err, context.DeadlineExceeded)
		switch {
		case errors.Is(err, &wire.NoCapacity) && took <= n.patience(): // another gateway was faster
			continue
		case errors.Is(err, context.DeadlineExceeded) && hurried:
			n.config.log.Warn("node had less than CallTimeout to begin a lease, since another one was slow", "node", c.Name, "lease", q.LeaseID, "had", limit)
		default:
			if err := n.deposed(ctx, q, err); err != nil {
				return gpu.Allocation{}, common.Address{}, err
			}
			n.config.log.Error("lease could not be begun at its node", "node", c.Name, "lease", q.LeaseID, "took", took, "error", err, "rest", n.Rest(c.Name))
		}
		if errors.Is(err, &wire.NoCapacity) {
			continue
		}
		if err := n.notBegun(ctx, c, q, err); err != nil {
			return gpu.Allocation{}, common.Address{}, err
		}
	}
	if late {
		return gpu.Allocation{}, common.Address{}, wire.Unavailable.With("no node has begun the lease in time: try again")
	}
	return gpu.Allocation{}, common.Address{}, fmt.Errorf("%w: no node has %d", gpu.ErrNoCapacity, req.GPUs)
}

// turn is how long a node has to begin a lease if so many are left to be asked: half of what is left of the lease's time (see
// nodesTime), so that one that is slow leaves the others enough, and CallTimeout at most. The first and the last have CallTimeout.
func (n *nodes) turn(ctx context.Context, others int) time.Duration {
	end, bounded := ctx.Deadline()
	if !bounded {
		return n.config.callTimeout
	}
	left := time.Until(end)
	if others > 0 {
		left /= 2
	}
	return min(left, n.config.callTimeout)
}

// nodesTime is how long nodes have to begin a lease together: the first one CallTimeout, and the others as much.
func nodesTime(callTimeout time.Duration) time.Duration { return 2 * callTimeout }

// patience is how long a node may take to say that it has no capacity: one that takes longer, though it listed some, rests.
func (n *nodes) patience() time.Duration { return min(nodelink.Timeout, n.config.callTimeout/4) }

// beginAt has a node begin a lease. An answer by which nobody could use it, or be billed for it, is an error of the node's.
func (n *nodes) beginAt(ctx context.Context, limit time.Duration, c *nodelink.Client, q nodelink.Start) (began nodelink.Lease, err error) {
	if err := c.Call(ctx, limit, "POST", "/leases", q, &began); err != nil {
		return began, err
	}
	if err = began.CheckStart(q.LeaseID); err == nil {
		err = n.CheckDevices(c.Name, began.Allocation.Devices, q.GPUs)
	}
	if err != nil {
		err = &nodelink.Error{Node: c.Name, Err: err}
	}
	return began, err
}

// Suspend does nothing: a node suspends by itself, whether a gateway is there or
// not.
func (n *nodes) Suspend(context.Context, gpu.Allocation) error { return nil }

// Resume does nothing, for the same reason.
func (n *nodes) Resume(context.Context, gpu.Allocation) error { return nil }

// Release takes over what the node has metered of a lease that ends here, has it take the devices back and forget about the
// lease, and gives its share of the credit back. A node that is out of reach is asked again (collect).
func (n *nodes) Release(ctx context.Context, a gpu.Allocation) error {
	if a.Node == "" {
		return nil // none ever had it
	}
	c := n.Client(a.Node)
	if c == nil || !n.Answers(a.Node) {
		return fmt.Errorf("node %s is out of reach: what it metered of lease %s is asked for when it is back", a.Node, a.LeaseID)
	}
	row, err := n.config.store.Leases.ByID(ctx, a.LeaseID.Hex())
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if err == nil && row.Term != a.Term {
		return fmt.Errorf("lease %s: %w", a.LeaseID, leasestore.ErrNotOwner)
	}
	if err := n.takeOver(ctx, c, row); errors.Is(err, errUnfit) {
		n.forgo(row, err)
	} else if err != nil {
		return err
	}
	if err := n.end(ctx, c, a.LeaseID, nodelink.End{Reason: cmp.Or(row.Reason, "its gateway ends it"), Closed: true, Fence: nodelink.InTerm(a.Term)}); err != nil {
		return err
	}
	return n.config.shares.end(ctx, a.LeaseID)
}

// Adopt goes on with a lease, whoever began it: any gateway that has a link to
// its node can.
func (n *nodes) Adopt(_ context.Context, a gpu.Allocation) error {
	if n.Client(a.Node) == nil {
		return fmt.Errorf("node %q of lease %s is not among ProviderConfig.Nodes (%s)", a.Node, a.LeaseID, n.Names())
	}
	return nil
}
