package sdk

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

// nodeTimeout bounds a question to a node that answers from memory and its disk.
const nodeTimeout = 5 * time.Second

// nodes is the placer of a gateway whose GPUs are metered by nodes: it has a
// node begin a lease, and take the devices back at its end.
type nodes struct {
	p     *Provider
	links []*nodelink.Client

	mu     sync.Mutex
	status map[string]nodelink.Status   // of the nodes that answered when they were asked last
	known  map[string][]metering.Device // of all that were ever enlisted: the offer does not change with the network
	failed map[string]string            // what was logged of the others
	rests  map[string]*nodeRest         // of those that began no lease when they were asked
	now    func() time.Time
	offers *rate.Limiter
	busy   map[string]bool // see beside
	work   sync.WaitGroup
	absent map[string]time.Time // lease -> when this process first waited for its node to say what it metered

	enlisted   map[string][]wire.OfferDevices // what each node had when its enlistment was decided last, at enlistedAt
	enlistedAt time.Time
	refused    map[string]string // and why it was refused

	outdone map[common.Hash]bool // see outpaced
}

// nodeRest is how long a node gets no new lease that could not begin one: it answers,
// and so has most free, and every lease would fail at it.
type nodeRest struct {
	until time.Time
	pace  chain.Backoff
}

// The least and the most of a node's rest.
const (
	leastNodeRest = 10 * time.Second
	mostNodeRest  = 5 * time.Minute
)

var _ placer = (*nodes)(nil)

func newNodes(p *Provider) (*nodes, error) {
	n := &nodes{p: p, status: make(map[string]nodelink.Status), known: make(map[string][]metering.Device), failed: make(map[string]string),
		rests: make(map[string]*nodeRest), busy: make(map[string]bool), now: time.Now, offers: rate.NewLimiter(rate.Every(offerPace), offerBurst), absent: make(map[string]time.Time), outdone: make(map[common.Hash]bool), enlisted: make(map[string][]wire.OfferDevices), refused: make(map[string]string)}
	if err := p.config.NodeIdentity.CheckGateway(); err != nil {
		return nil, fmt.Errorf("provider: NodeIdentity: %w", err)
	}
	for _, link := range p.config.Nodes {
		client, err := nodelink.NewClient(link.Name, link.URL, p.config.NodeIdentity)
		if err == nil && n.link(client.Name) != nil {
			err = fmt.Errorf("node %s: there are two of this name", link.Name)
		}
		if err != nil {
			return nil, fmt.Errorf("provider: Nodes: %w", err)
		}
		n.links = append(n.links, client)
	}
	return n, nil
}

func (n *nodes) link(name string) *nodelink.Client {
	i := slices.IndexFunc(n.links, func(c *nodelink.Client) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return n.links[i]
}

// ask hears from all nodes at once how they are, and enlists those that are of one
// kind.
func (n *nodes) ask(ctx context.Context) error {
	var wait sync.WaitGroup
	for _, c := range n.links {
		wait.Go(func() {
			var s nodelink.Status
			err := c.Call(ctx, nodeTimeout, "GET", "/status", nil, &s)
			if ctx.Err() == nil {
				n.note(c.Name, s, err)
			}
		})
	}
	wait.Wait()
	return n.enlist(ctx)
}

func (n *nodes) note(name string, s nodelink.Status, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		if was := n.status[name]; s.Problem != "" && was.Problem != s.Problem {
			n.p.config.Log.Warn("node begins no lease, and those that run there go on", "node", name, "problem", s.Problem)
		}
		if n.failed[name] != "" {
			n.p.config.Log.Info("node is back", "node", name)
		}
		delete(n.failed, name)
		n.status[name] = s
		return
	}
	delete(n.status, name)
	if n.failed[name] == "" { // said once
		n.p.config.Log.Warn("node is out of reach: its leases go on within their credit", "node", name, "error", err)
	}
	n.failed[name] = err.Error()
}

// devices is what all enlisted nodes rent out, in the order of their links.
func (n *nodes) devices() []metering.Device {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []metering.Device
	for _, c := range n.links {
		all = append(all, n.known[c.Name]...)
	}
	return all
}

// What nodes list makes so many new offers at once, and one in offerPace from then on: an offer that says too many GPUs
// costs a renter a refusal, and each one is kept for ever.
const (
	offerPace  = 5 * time.Minute
	offerBurst = 10
)

// publish has the offer say what nodes list now, where it does not.
func (n *nodes) publish(ctx context.Context) {
	if !n.differs(n.p.Offer().Offer) || !n.offers.Allow() {
		return
	}
	if err := n.p.renewOffer(ctx); err != nil && ctx.Err() == nil {
		n.p.config.Log.Error("offer could not be renewed", "error", err)
	}
}

// differs reports whether an offer says something else than the nodes do.
func (n *nodes) differs(o wire.Offer) bool {
	devices := n.devices()
	return !slices.Equal(o.Devices, wire.DevicesOf(devices)) || o.Simulated != simulated(devices)
}

// run asks the nodes again and again, ends there what has ended here, and has the
// offer say what there is.
func (n *nodes) run(ctx context.Context) error {
	defer n.work.Wait()
	for chain.Pause(ctx, time.Second) == nil {
		asked := n.ask(ctx)
		n.publish(ctx)
		n.reconcile(ctx)
		if err := errors.Join(asked, n.collect(ctx)); err != nil && ctx.Err() == nil {
			n.p.config.Log.Warn("what nodes have to do with the database", "error", err)
		}
	}
	return ctx.Err()
}

// reconcileMost is how many of the leases that a node lists are looked up at once.
const reconcileMost = 500

// reconcile ends at the nodes what has ended here and of which nothing is collected: this gateway was killed while one began,
// or it was given up. What is not in our database at all is not ours to end.
func (n *nodes) reconcile(ctx context.Context) {
	n.mu.Lock()
	there := make(map[string][]common.Hash)
	for name, s := range n.status {
		for _, l := range s.Leases {
			there[name] = append(there[name], l.LeaseID)
		}
	}
	n.mu.Unlock()
	for name, ids := range there {
		if more := len(ids) - reconcileMost; more > 0 { // others the next time
			ids = ids[rand.IntN(more+1):][:reconcileMost]
		}
		n.beside(ctx, "reconcile", name, func(ctx context.Context) error { return n.reconcileAt(ctx, name, ids) })
	}
}

// reconcileAt is reconcile at one node, of leases that it lists itself. The share of one that another node has is not its to
// give back.
func (n *nodes) reconcileAt(ctx context.Context, name string, ids []common.Hash) error {
	rows, err := n.p.store.Leases.ByIDs(ctx, ids)
	for id, row := range rows {
		if row.State != wire.StateEnded || row.Held != 0 {
			continue
		}
		ended := n.end(ctx, n.link(name), id, nodelink.End{Reason: row.Reason, Closed: true, Fence: nodelink.InTerm(row.Term)})
		if a, bad := row.Allocated(); ended == nil && (bad != nil || a.Node == "" || a.Node == name) {
			ended = n.p.deps.shares.end(ctx, id)
		}
		err = errors.Join(err, ended)
	}
	return err
}

// beside has a node's work done beside all else, unless the last of its kind is still under way: a node that does not answer
// holds up no other.
func (n *nodes) beside(ctx context.Context, kind, name string, work func(context.Context) error) {
	key := kind + " " + name
	n.mu.Lock()
	busy := n.busy[key]
	n.busy[key] = true
	n.mu.Unlock()
	if busy {
		return
	}
	n.work.Go(func() {
		err := work(ctx)
		n.mu.Lock()
		delete(n.busy, key)
		n.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			n.p.config.Log.Warn("what a node has to do with the database", "node", name, "error", err)
		}
	})
}

// end is the node's, of a lease that does not run here.
func (n *nodes) end(ctx context.Context, c *nodelink.Client, id common.Hash, q nodelink.End) error {
	err := c.End(ctx, n.p.config.CallTimeout, id, q)
	if errors.Is(err, &nodelink.Deposed) {
		err = n.outpaced(ctx, id, *q.Term, err)
	}
	return err
}

// answers reports whether a node did when it was asked last.
func (n *nodes) answers(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.status[name]
	return ok
}

// away are the nodes that did not answer when they were asked last, by name.
func (n *nodes) away() []string {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.failed))
}

// resting reports whether a node gets no new lease for now. n.mu is held.
func (n *nodes) resting(name string) bool {
	rest := n.rests[name]
	return rest != nil && n.now().Before(rest.until)
}

// tire has a node rest that could not begin a lease, longer each time.
func (n *nodes) tire(name string) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	rest := n.rests[name]
	if rest == nil {
		rest = &nodeRest{pace: chain.Backoff{Least: leastNodeRest, Most: mostNodeRest}}
		n.rests[name] = rest
	}
	wait := rest.pace.Next()
	rest.until = n.now().Add(wait)
	return wait
}

func (n *nodes) wakeUp(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.rests, name)
}

// Free is the most devices that one node has free: a lease is on one host.
func (n *nodes) Free() int { return n.freeBeside(nil) }

// freeBeside is Free when leases of so many devices have begun, each on the node
// that has most free, as Allocate chooses it.
func (n *nodes) freeBeside(leases []int) int {
	n.mu.Lock()
	var free []int
	for name, s := range n.status {
		if n.takes(name) {
			free = append(free, s.Free)
		}
	}
	n.mu.Unlock()
	if len(free) == 0 {
		return 0
	}
	for _, gpus := range leases {
		i := slices.Index(free, slices.Max(free))
		if free[i] >= gpus {
			free[i] -= gpus
		}
	}
	return max(slices.Max(free), 0)
}

// roomy returns the nodes with enough devices free, those with most first, so
// that leases spread over the hosts.
func (n *nodes) roomy(gpus int) []*nodelink.Client {
	n.mu.Lock()
	defer n.mu.Unlock()
	var fit []*nodelink.Client
	for _, c := range n.links {
		if n.takes(c.Name) && n.status[c.Name].Free >= gpus {
			fit = append(fit, c)
		}
	}
	slices.SortStableFunc(fit, func(a, b *nodelink.Client) int { return cmp.Compare(n.status[b.Name].Free, n.status[a.Name].Free) })
	return fit
}

// place has a node begin the lease, and returns whose key signs its records: from its answer on it meters. Where the
// answer is lost the lease ends here, and so it does there (reconcile). Its share is free at once:
// nobody was told how to reach what the node may have begun, and it is charged to nobody.
func (n *nodes) place(ctx context.Context, req placement) (gpu.Allocation, common.Address, error) {
	written, err := n.written(ctx, req)
	if err != nil {
		return gpu.Allocation{}, common.Address{}, err
	}
	q := nodelink.Start{LeaseID: req.LeaseID, WrittenAt: written, Terms: req.channel.Terms, Offer: req.offer.Document, GPUs: req.GPUs, OwedBefore: wire.NewAmount(req.channel.Spent),
		Money: nodelink.MoneyOf(req.channel.Accepted, req.channel.Deposit), Fence: nodelink.InTerm(req.Term)}
	share, err := n.makeRoom(ctx, req)
	if err != nil {
		return gpu.Allocation{}, common.Address{}, err
	}
	if share.tell.IsZero() { // see lease.limit
		q.Money = nodelink.MoneyOf(collectible(req.channel, n.p.deps.row), req.channel.Deposit)
	}
	q.Money = q.WithCredit(share.tell, share.version)
	for _, c := range n.roomy(req.GPUs) {
		var began nodelink.Lease
		err := c.Call(ctx, n.p.config.CallTimeout, "POST", "/leases", q, &began)
		if errors.Is(err, &wire.NoCapacity) {
			continue // another gateway was faster
		}
		if err == nil && (began.Allocation == nil || began.LeaseID != req.LeaseID) {
			err = &nodelink.Error{Node: c.Name, Err: fmt.Errorf("its answer is about lease %s and names no devices", began.LeaseID)}
		}
		if err == nil {
			if wrong := n.owns(c.Name, began.Allocation.Devices, req.GPUs); wrong != nil {
				err = &nodelink.Error{Node: c.Name, Err: wrong}
			}
		}
		if err == nil && (began.Meter == nil || *began.Meter == (common.Address{})) {
			err = &nodelink.Error{Node: c.Name, Err: errors.New("it does not say which key signs the lease's records: it is from before nodes had keys of their own")}
		}
		if err != nil {
			if err = n.notBegun(ctx, c, q, err); err == nil {
				continue
			}
			return gpu.Allocation{}, common.Address{}, errors.Join(err, n.p.deps.shares.end(ctx, req.LeaseID))
		}
		n.wakeUp(c.Name)
		n.took(c.Name, req.GPUs)
		a := *began.Allocation
		a.LeaseID, a.Node, a.Term = req.LeaseID, c.Name, req.Term
		return a, *began.Meter, nil
	}
	return gpu.Allocation{}, common.Address{}, errors.Join(fmt.Errorf("%w: no node has %d", gpu.ErrNoCapacity, req.GPUs), n.p.deps.shares.end(ctx, req.LeaseID))
}

// took counts what was just given away, until the node says so itself.
func (n *nodes) took(name string, gpus int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s, ok := n.status[name]; ok {
		s.Free = max(0, s.Free-gpus)
		n.status[name] = s
	}
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
	c := n.link(a.Node)
	if c == nil || !n.answers(a.Node) {
		return fmt.Errorf("node %s is out of reach: what it metered of lease %s is asked for when it is back", a.Node, a.LeaseID)
	}
	row, err := n.p.store.Leases.ByID(ctx, a.LeaseID.Hex())
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
	return n.p.deps.shares.end(ctx, a.LeaseID)
}

// Adopt goes on with a lease, whoever began it: any gateway that has a link to
// its node can.
func (n *nodes) Adopt(_ context.Context, a gpu.Allocation) error {
	if n.link(a.Node) == nil {
		return fmt.Errorf("node %q of lease %s is not among ProviderConfig.Nodes (%s)", a.Node, a.LeaseID, n.names())
	}
	return nil
}

func (n *nodes) names() string {
	names := make([]string, len(n.links))
	for i, c := range n.links {
		names[i] = c.Name
	}
	return strings.Join(names, ", ")
}
