// Package remote is the gateway's side of leases whose GPUs nodes meter: it puts leases onto nodes, checks what nodes sign as a renter would
// before it is charged, divides a payer's credit among its leases there, and takes over what a node metered while it was away.
package remote

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Nodes is the placer of a gateway whose GPUs are metered by nodes: it has a node begin a lease, and take the devices back at its end.
type Nodes struct {
	*nodelink.Pool
	Config Config
	offers *rate.Limiter
	passes sync.Mutex // one look at what is held at a time: each gives up what the one before did not

	mu      sync.Mutex
	now     func() time.Time
	absent  map[string]absence   // by lease
	outdone map[common.Hash]bool // see outpaced
}

// Config is what nodes need of their gateway.
type Config struct {
	DB          *store.DB
	Store       leasestore.Store
	Payee       *channel.Payee
	Shares      *Shares
	Accounts    *payercredit.Accounts
	Row         uint256.Int // base units of a channel that a settlement fetches at least
	Shared      bool        // other gateways may run a lease
	Log         *slog.Logger
	CallTimeout time.Duration // of an allocator's command at a node
	Tolerance   time.Duration // of its clock
	Credit      time.Duration
	Tick        time.Duration
	Decimals    uint8              // of the token
	Forgone     prometheus.Counter // leases that are billed no further, since their node does not say what it metered

	OffersDiffer func() bool                 // they say something else than nodes list
	Renew        func(context.Context) error // the offers, by what nodes list

	Image   func(context.Context, leasestore.Row, channel.State) (*lease.Lease, error) // of a lease that does not run here
	Resolve func(context.Context, leasestore.Row) error                                // takes back what an ended lease has, by one gateway at a time
}

var _ placement.Placer = (*Nodes)(nil)

// New is complete with its Config, which needs the gateway's database: Poll can be called before.
func New(pool *nodelink.Pool) *Nodes {
	return &Nodes{Pool: pool, offers: rate.NewLimiter(rate.Every(offerPace), OfferBurst), now: time.Now,
		absent: make(map[string]absence), outdone: make(map[common.Hash]bool)}
}

// Unfit are the nodes that begin no lease, with the reasons, and those that did not answer when they were asked last.
func (n *Nodes) Unfit() (refused map[string]string, away []string) {
	if n == nil {
		return nil, nil
	}
	return n.Refused(), n.Unreachable()
}

// What nodes list makes so many new offers at once, and one in offerPace from then on: an offer that says too many GPUs
// costs a renter a refusal, and each one is kept for ever.
const (
	offerPace  = 5 * time.Minute
	OfferBurst = 10
)

// Publish has the offers say what nodes list now, where it does not.
func (n *Nodes) Publish(ctx context.Context) {
	if !n.Config.OffersDiffer() || !n.offers.Allow() {
		return
	}
	if err := n.Config.Renew(ctx); err != nil && ctx.Err() == nil {
		n.Config.Log.Error("offer could not be renewed", "error", err)
	}
}

// Run asks the nodes again and again, ends there what has ended here, and has the
// offer say what there is.
func (n *Nodes) Run(ctx context.Context) error {
	defer n.Wait()
	for chain.Pause(ctx, time.Second) == nil {
		asked := n.Poll(ctx, n.Config.DB)
		n.Publish(ctx)
		n.reconcile(ctx)
		if err := errors.Join(asked, n.Collect(ctx)); err != nil && ctx.Err() == nil {
			n.Config.Log.Warn("what nodes have to do with the database", "error", nodelink.Brief(err))
		}
	}
	return ctx.Err()
}

// reconcileMost is how many of the leases that a node lists are looked up at once.
const reconcileMost = 500

// reconcile ends at the nodes what has ended here and of which nothing is collected: this gateway was killed while one began,
// or it was given up. What is not in our database at all is not ours to end.
func (n *Nodes) reconcile(ctx context.Context) {
	for name, ids := range n.Leases() {
		if more := len(ids) - reconcileMost; more > 0 { // others the next time
			ids = ids[rand.IntN(more+1):][:reconcileMost]
		}
		n.Go(ctx, "reconcile", name, func(ctx context.Context) error { return n.reconcileAt(ctx, name, ids) })
	}
}

// reconcileAt is reconcile at one node, of leases that it lists itself. The share of one that another node has is not its to
// give back.
func (n *Nodes) reconcileAt(ctx context.Context, name string, ids []common.Hash) error {
	known, err := n.Config.Store.Leases.Glimpses(ctx, ids)
	for id, now := range known {
		if now.State != wire.StateEnded || now.Held != 0 {
			continue
		}
		row, failed := n.Config.Store.Leases.ByID(ctx, now.ID) // has no access document any more
		if failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		ended := n.End(ctx, n.Client(name), id, nodelink.End{Reason: row.Reason, Closed: true, Fence: nodelink.InTerm(row.Term)})
		if a, bad := row.Allocated(); ended == nil && (bad != nil || a.Node == "" || a.Node == name) {
			ended = n.Config.Shares.end(ctx, id)
		}
		err = errors.Join(err, ended)
	}
	return err
}

// End is the node's, of a lease that does not run here.
func (n *Nodes) End(ctx context.Context, c *nodelink.Client, id common.Hash, q nodelink.End) error {
	err := c.End(ctx, n.Config.CallTimeout, id, q)
	if errors.Is(err, &nodelink.Deposed) {
		err = n.outpaced(ctx, id, *q.Term, err)
	}
	return err
}

// Place has a node begin the lease, and returns whose key signs its records: from its answer on it meters. Where the
// answer is lost the lease ends here, and so it does there (reconcile). Its share is free at once:
// nobody was told how to reach what the node may have begun, and it is charged to nobody.
func (n *Nodes) Place(ctx context.Context, req placement.Request) (gpu.Allocation, common.Address, error) {
	written, err := n.written(ctx, req)
	if err != nil {
		return gpu.Allocation{}, common.Address{}, err
	}
	q := nodelink.Start{LeaseID: req.LeaseID, WrittenAt: written, Terms: req.Channel.Terms, Offer: req.Offer.Document, GPUs: req.GPUs, OwedBefore: wire.NewAmount(req.Channel.Spent),
		Money: nodelink.MoneyOf(req.Channel.Accepted, req.Channel.Deposit), Fence: nodelink.InTerm(req.Term)}
	share, err := n.MakeRoom(ctx, req)
	if err != nil {
		return gpu.Allocation{}, common.Address{}, err
	}
	if share.Tell.IsZero() { // see lease.limit
		q.Money = nodelink.MoneyOf(payercredit.Collectible(req.Channel, n.Config.Row), req.Channel.Deposit)
	}
	q.Money = q.WithCredit(share.Tell, share.Version)
	a, meter, err := n.begin(ctx, req, q)
	if err != nil {
		err = errors.Join(err, n.Config.Shares.end(context.WithoutCancel(ctx), req.LeaseID))
	}
	return a, meter, err
}

// begin asks one node after the other for the lease.
func (n *Nodes) begin(ctx context.Context, req placement.Request, q nodelink.Start) (gpu.Allocation, common.Address, error) {
	is := nodelink.Any
	if req.Offer.Class != nil {
		is = req.Offer.Class.Has
	}
	clients, slow, late := n.WithCapacity(req.GPUs, is), false, false
	for i, c := range clients {
		limit, asked := n.turn(ctx, len(clients)-i-1), time.Now()
		if limit <= 0 {
			break
		}
		began, err := n.beginAt(ctx, limit, c, q, is)
		if err == nil {
			n.EndRest(c.Name)
			n.Reserve(c.Name, req.GPUs)
			a := *began.Allocation
			a.LeaseID, a.Node, a.Term = req.LeaseID, c.Name, req.Term
			return a, *began.Meter, nil
		}
		took, hurried := time.Since(asked), slow && limit < n.Config.CallTimeout
		slow, late = slow || took > n.patience(), late || errors.Is(err, context.DeadlineExceeded)
		switch {
		case errors.Is(err, &wire.NoCapacity) && took <= n.patience(): // another gateway was faster
			continue
		case errors.Is(err, context.DeadlineExceeded) && hurried:
			n.Config.Log.Warn("node had less than CallTimeout to begin a lease, since another one was slow", "node", c.Name, "lease", q.LeaseID, "had", limit)
		default:
			if err := n.deposed(ctx, q, err); err != nil {
				return gpu.Allocation{}, common.Address{}, err
			}
			n.Config.Log.Error("lease could not be begun at its node", "node", c.Name, "lease", q.LeaseID, "took", took, "error", err, "rest", n.Rest(c.Name))
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
// BeginTimeout), so that one that is slow leaves the others enough, and CallTimeout at most. The first and the last have CallTimeout.
func (n *Nodes) turn(ctx context.Context, others int) time.Duration {
	end, bounded := ctx.Deadline()
	if !bounded {
		return n.Config.CallTimeout
	}
	left := time.Until(end)
	if others > 0 {
		left /= 2
	}
	return min(left, n.Config.CallTimeout)
}

// BeginTimeout is how long nodes have to begin a lease together: the first one CallTimeout, and the others as much.
func BeginTimeout(callTimeout time.Duration) time.Duration { return 2 * callTimeout }

// patience is how long a node may take to say that it has no capacity: one that takes longer, though it listed some, rests.
func (n *Nodes) patience() time.Duration { return min(nodelink.Timeout, n.Config.CallTimeout/4) }

// beginAt has a node begin a lease. An answer by which nobody could use it, or be billed for it, is an error of the node's.
func (n *Nodes) beginAt(ctx context.Context, limit time.Duration, c *nodelink.Client, q nodelink.Start, is func(metering.Device) bool) (began nodelink.Lease, err error) {
	if err := c.Call(ctx, limit, "POST", "/leases", q, &began); err != nil {
		return began, err
	}
	if err = began.CheckStart(q.LeaseID); err == nil {
		err = n.CheckDevices(c.Name, began.Allocation.Devices, q.GPUs, is)
	}
	if err != nil {
		err = &nodelink.Error{Node: c.Name, Err: err}
	}
	return began, err
}

// Suspend does nothing: a node suspends by itself, whether a gateway is there or
// not.
func (n *Nodes) Suspend(context.Context, gpu.Allocation) error { return nil }

// Resume does nothing, for the same reason.
func (n *Nodes) Resume(context.Context, gpu.Allocation) error { return nil }

// Release takes over what the node has metered of a lease that ends here, has it take the devices back and forget about the
// lease, and gives its share of the credit back. A node that is out of reach is asked again (Collect).
func (n *Nodes) Release(ctx context.Context, a gpu.Allocation) error {
	if a.Node == "" {
		return nil // none ever had it
	}
	c := n.Client(a.Node)
	if c == nil || !n.Answers(a.Node) {
		return fmt.Errorf("node %s is out of reach: what it metered of lease %s is asked for when it is back", a.Node, a.LeaseID)
	}
	row, err := n.Config.Store.Leases.ByID(ctx, a.LeaseID.Hex())
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if err == nil && row.Term != a.Term {
		return fmt.Errorf("lease %s: %w", a.LeaseID, leasestore.ErrNotOwner)
	}
	refused := n.TakeOver(ctx, c, row)
	if refused != nil && !errors.Is(refused, ErrInvalidRecord) {
		return refused
	}
	if err := n.End(ctx, c, a.LeaseID, nodelink.End{Reason: cmp.Or(row.Reason, "its gateway ends it"), Closed: true, Fence: nodelink.InTerm(a.Term)}); err != nil {
		return errors.Join(refused, err)
	}
	if refused != nil { // counted once, though a node that does not hear the end is asked again
		n.forgo(row, refused)
	}
	return n.Config.Shares.end(ctx, a.LeaseID)
}

// Adopt goes on with a lease, whoever began it: any gateway that has a link to
// its node can.
func (n *Nodes) Adopt(_ context.Context, a gpu.Allocation) error {
	if n.Client(a.Node) == nil {
		return fmt.Errorf("node %q of lease %s is not among provider.Config.Nodes (%s)", a.Node, a.LeaseID, n.Names())
	}
	return nil
}
