package sdk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/run"
	"github.com/gpupay/gpupay/sdk/settle"
)

// replicas is one gateway's part among several that share a database. Any of
// them takes vouchers, shows streams and passes a renter's wish to end a lease
// on; one of them, its owner, meters a lease and writes its records. docs/replicas.md
// says how they keep out of each other's way.
type replicas struct {
	p   *Provider
	ttl time.Duration // how long others wait for us before they take our leases

	mu      sync.Mutex
	id      string
	said    string          // the name under which the database may have this gateway living
	past    []string        // those under which it may, too, and does not
	looked  time.Time       // when the last look that read everything began
	expiry  *time.Timer     // fires when others may take our leases
	tenure  context.Context // ends then
	depose  context.CancelFunc
	mirrors map[common.Hash]*seen // by lease
	refused map[string]time.Time  // leases that could not be taken up here, and until when not to try again
	heads   cluster.Heads
	reclaim rate.Sometimes // see sweep
}

func newReplicas(p *Provider) *replicas {
	r := &replicas{p: p, ttl: p.config.Takeover, mirrors: make(map[common.Hash]*seen), refused: make(map[string]time.Time), id: leasestore.NewName(), reclaim: rate.Sometimes{First: 1, Interval: hopeless}}
	r.heads = cluster.Heads{Members: r.members(), Name: r.identity, Within: r.ttl, Endpoint: p.escrow.Backend(), Standstill: cluster.Standstill{After: settle.Blindness}}
	r.tenure, r.depose = context.WithCancel(context.Background())
	return r
}

// tenureNow is the time in which a lease that is taken up now is ours.
func (r *replicas) tenureNow() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tenure
}

func (r *replicas) identity() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

func (r *replicas) poll() time.Duration { return min(r.p.config.Tick, time.Second, r.ttl/4) }

// join makes the gateway one of them: it says that it lives, takes up what
// nobody runs, and goes on doing both.
func (r *replicas) join(ctx context.Context) error {
	if a, ok := r.p.config.Allocator.(inventory.Keeper); ok { // also where it is embedded
		a.Inventory().Share(r.devices())
	}
	r.sees(time.Now()) // nothing runs here yet that it could be late for
	if err := r.beat(ctx); err != nil {
		return fmt.Errorf("joining the gateways of this database: %w", err)
	}
	if err := r.p.identify(ctx); err != nil { // again: from here on no other provider's is let in
		return err
	}
	if err := r.warn(ctx); err != nil {
		return fmt.Errorf("leases of a database that may have been restored: %w", err)
	}
	if err := r.sweep(ctx); err != nil {
		return fmt.Errorf("leases that nobody runs: %w", err)
	}
	r.every(r.ttl/4, "saying that this gateway lives", r.beat)
	r.every(r.ttl/4, "looking whether the database server's clock was set back", r.p.restamp)
	r.every(r.ttl/4, "telling the other gateways of the newest block", r.heads.Tell)
	r.every(r.poll(), "looking at the leases", r.look)
	r.every(r.ttl/4, "taking up leases that nobody runs", r.sweep)
	return nil
}

// warn has leases ended, whoever runs them, of which this gateway has signed more
// than the database knows.
func (r *replicas) warn(ctx context.Context) error {
	rows, err := r.p.store.Leases.Unfinished(ctx)
	if err != nil {
		return err
	}
	for _, row := range rows {
		id := common.HexToHash(row.ID)
		mark, err := r.p.leases.Deps.Marks.Get(ctx, r.p.leases.MeterKey.Address(), id)
		if err == nil && mark.Sequence > uint64(row.Sequence)+1 {
			err = r.p.store.Leases.Command(ctx, id, leasestore.ErrRolledBack.Error())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *replicas) members() cluster.Members { return cluster.Members{DB: r.p.db} }

func (r *replicas) devices() cluster.Devices { return cluster.Devices{DB: r.p.db} }

// every does something again and again until the provider stops.
func (r *replicas) every(pause time.Duration, what string, do func(context.Context) error) {
	r.p.leases.Go(func(ctx context.Context) {
		for chain.Pause(ctx, pause) == nil {
			if err := do(ctx); err != nil && ctx.Err() == nil {
				r.p.config.Log.Warn(what, "error", err)
			}
		}
	})
}

// sees notes that everything was read, from a time on.
func (r *replicas) sees(began time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looked = began
}

// beat says that this gateway lives. Its time counts from its last look, as one that
// writes and cannot read ends leases that are paid and runs those that are over;
// and so from before it says so: the others, who count from after, never take a lease
// that it still believes in.
func (r *replicas) beat(ctx context.Context) error {
	r.mu.Lock()
	id, past, until := r.id, slices.Clone(r.past), r.looked.Add(r.ttl)
	late := time.Until(until) <= 0
	if !late {
		r.said = id // also where the answer is lost
	}
	r.mu.Unlock()
	if late {
		return fmt.Errorf("what other gateways wrote could not be read for %s: others take this one's leases", r.ttl)
	}
	if err := r.members().Heartbeat(ctx, id, time.Until(until), past); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.past = slices.DeleteFunc(r.past, func(name string) bool { return slices.Contains(past, name) })
	if r.id != id {
		return nil // it came too late
	}
	left := time.Until(until)
	if r.expiry == nil {
		r.expiry = time.AfterFunc(left, r.standDown)
	} else {
		r.expiry.Reset(left)
	}
	return nil
}

// standDown lets go of every lease: the database was not written, or not read, for so
// long that others may have taken them. Under another name this gateway may take up
// what they have not.
func (r *replicas) standDown() {
	r.mu.Lock()
	if r.said == r.id { // the database may have it living for longer, as where the server's clock was set back
		r.past = append(r.past, r.id)
	}
	r.id = leasestore.NewName()
	if r.p.leases.Lifetime().Err() == nil {
		r.expiry.Reset(r.ttl) // also of what is taken up before it is known that the new name could be said
	}
	r.depose()
	r.tenure, r.depose = context.WithCancel(context.Background())
	r.mu.Unlock()
	running := slices.DeleteFunc(r.p.leases.All(), func(l *lease.Lease) bool { return l.Guarded.Swap(true) })
	if r.p.leases.Lifetime().Err() == nil && len(running) > 0 {
		r.p.config.Log.Error("the database was not written, or not read, for too long: other gateways may run this one's leases now", "leases", len(running), "takeover", r.ttl)
	}
	for _, l := range running {
		l.Relinquish()
		r.watchOver(l)
	}
}

// leave hands what runs here to the other gateways, when nothing does any more.
func (r *replicas) leave() {
	r.mu.Lock()
	if r.expiry != nil {
		r.expiry.Stop()
	}
	names := append(slices.Clone(r.past), r.id)
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.members().Deregister(ctx, names...); err != nil {
		r.p.config.Log.Warn("the other gateways will notice only after a while that this one is gone", "error", err)
	}
}

// settleRequest is the claim by which a gateway asks the leader to settle.
const settleRequest = "settle"

// leader leads the gateways where it can: one of them watches, sends and settles
// for all.
func (r *replicas) leader() *cluster.Leader {
	return &cluster.Leader{
		DB: r.p.db, Owner: r.identity(), TTL: r.ttl, Log: r.p.config.Log, Check: r.heads.See, Work: r.lead,
		Name: fmt.Sprintf("settler %d %s %s", r.p.escrow.ChainID(), r.p.escrow.Address(), r.p.config.Key.Address()),
	}
}

// lead does a leader's work through a database that lets it write only while it leads.
func (r *replicas) lead(ctx context.Context, db *store.DB) error {
	txs, err := chain.OpenStore(ctx, db)
	if err != nil {
		return err
	}
	c := r.p.newSettlement(db, txs)
	c.Blind = settle.Blindness
	r.p.atWork.Store(c)
	defer r.p.atWork.Store(nil)
	parts := []func(context.Context) error{c.Run}
	for _, do := range []func(context.Context, *settle.Service, leasestore.Store) error{r.serve, r.answer} {
		parts = append(parts, func(ctx context.Context) error {
			for chain.Pause(ctx, 2*time.Second) == nil {
				if err := do(ctx, c, leasestore.New(db)); err != nil && ctx.Err() == nil {
					r.p.config.Log.Warn("what other gateways want settled", "error", err)
				}
			}
			return ctx.Err()
		})
	}
	return run.Together(ctx, parts...)
}

// serve has settled what ended at any gateway. A channel on which another lease
// runs waits for that one's end, or for the policy: it would be settled as often as a voucher comes.
func (r *replicas) serve(ctx context.Context, c *settle.Service, s leasestore.Store) error {
	now := time.Now()
	ids, err := s.Leases.IdleSince(ctx, now.Add(-closeGrace-time.Hour).Unix(), now.Add(-closeGrace).Unix())
	if err != nil {
		return err
	}
	ended := make(map[common.Hash]bool, len(ids))
	for _, id := range ids {
		ended[id] = true
	}
	unsettled, err := r.p.db.Payee().Unsettled(ctx)
	for _, state := range unsettled {
		if ended[state.ID] && state.Terms.Scheme == channel.Session {
			c.Urgent(state.Terms)
		}
	}
	return err
}

// answer has settled what one of the gateways asks for, and waits for it.
func (r *replicas) answer(ctx context.Context, c *settle.Service, s leasestore.Store) error {
	asked, err := s.Locks.Taken(ctx, settleRequest)
	if err != nil || !asked {
		return err
	}
	c.Reload()
	err = c.Settle(ctx)
	if ctx.Err() != nil {
		return err // the next leader does it
	}
	return errors.Join(err, s.Locks.Drop(ctx, settleRequest, settleRequest)) // also after a failure: it would cost gas again and again
}

// settle asks the leader, whoever it is, and waits. The error names what it could not settle.
func (r *replicas) settle(ctx context.Context) error {
	before, err := r.p.db.Payee().Unsettled(ctx)
	if err != nil {
		return err
	}
	for range 2 { // the first may have been under way for somebody who asked earlier
		if err = r.request(ctx); err != nil {
			return err
		}
		if err = r.unsettled(ctx, before); err == nil {
			return nil
		}
	}
	return err
}

// request has the leader settle once.
func (r *replicas) request(ctx context.Context) error {
	if _, err := r.p.store.Locks.Try(ctx, settleRequest, settleRequest, 24*time.Hour); err != nil {
		return err
	}
	for {
		asked, err := r.p.store.Locks.Taken(ctx, settleRequest)
		if err != nil || !asked {
			return err
		}
		if err := chain.Pause(ctx, r.poll()/4); err != nil {
			return fmt.Errorf("settling: no gateway that leads has done it yet: %w", err)
		}
	}
}

// unsettled says which of the channels are still not settled as they were to be.
func (r *replicas) unsettled(ctx context.Context, before []channel.State) error {
	var failed error
	for _, was := range before {
		s, err := r.p.payee.State(ctx, was.ID)
		wanted := was.Payable()
		if err == nil && s.Settled.Lt(&wanted) && s.Status != channel.Finalized {
			err = settle.Unsettled(s.ID, errors.New("the log of the gateway that leads says why"))
		}
		failed = errors.Join(failed, err)
	}
	return failed
}
