package gateways

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// replicas are leases of other gateways that are shown here, each for as long as somebody looks at it.
type replicas struct {
	life func() context.Context // their streams end with it

	mu      sync.Mutex
	byLease map[common.Hash]*replica
}

type replica struct {
	lease *lease.Lease
	users int
	stop  func() bool // forgets that its streams end with the provider
}

func (r *replicas) all() []*lease.Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*lease.Lease
	for _, m := range r.byLease {
		all = append(all, m.lease)
	}
	return all
}

// follow shows a lease of another gateway, as it was read just now where it is not shown yet.
func (r *replicas) follow(fresh *lease.Lease) *lease.Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.byLease[fresh.ID]
	if m == nil {
		m = &replica{lease: fresh}
		m.stop = context.AfterFunc(r.life(), func() { close(fresh.Done) })
		if r.byLease == nil {
			r.byLease = make(map[common.Hash]*replica)
		}
		r.byLease[fresh.ID] = m
	}
	m.users++
	return m.lease
}

func (r *replicas) unfollow(l *lease.Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.byLease[l.ID]
	if m == nil {
		return
	}
	if m.users--; m.users == 0 {
		m.stop()
		delete(r.byLease, l.ID)
	}
}

// Shown is how many leases of other gateways somebody looks at here.
func (g *Gateway) Shown() int { return len(g.shown.all()) }

// look reads what other gateways changed: vouchers that they took, leases that
// they took over, wishes to end one, and what they say of those that are shown
// here.
func (g *Gateway) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, g.Takeover/2)
	defer cancel()
	began := time.Now()
	own, shown := g.leases.All(), g.shown.all()
	var ids, channels []common.Hash
	for _, l := range append(own, shown...) {
		ids, channels = append(ids, l.ID), append(channels, l.Terms.ID())
	}
	rows, err := g.leases.Store.Leases.Glimpses(ctx, ids)
	if err != nil {
		return err
	}
	list, err := g.DB.States(ctx, channels)
	if err != nil {
		return err
	}
	payers := g.leases.Deps.Accounts.Payers()
	owing, err := g.Owing(ctx, payers...)
	if err != nil {
		return err
	}
	g.saw(began)
	g.leases.Deps.Accounts.Learn(payers, owing)
	states := make(map[common.Hash]channel.State, len(list))
	for _, s := range list {
		states[s.ID] = s
	}
	for _, l := range own {
		g.heed(l, rows[l.ID], states[l.Terms.ID()])
		err = errors.Join(err, g.Notice(ctx, l))
	}
	for _, l := range shown {
		err = errors.Join(err, g.reflect(ctx, l, rows[l.ID], states[l.Terms.ID()]))
	}
	return err
}

// heed tells a lease that runs here what others wrote.
func (g *Gateway) heed(l *lease.Lease, row leasestore.Glimpse, s channel.State) {
	if row.ID == "" || row.Term != l.Term { // its row was there when it began: see lease.Manager.Drop
		l.Fence.Elsewhere.Store(row.ID != "")
		l.Relinquish()
		return
	}
	if s.ID == (common.Hash{}) {
		return
	}
	v, _ := l.Status.Snapshot()
	if uint64(row.Stream) > v.Stream {
		l.Status.Update(func(v *lease.View) { v.Stream = max(v.Stream, uint64(row.Stream)) })
	}
	if s.Accepted.Gt(&v.Accepted) || s.Deposit != v.Deposit {
		l.Balance.Observe(s)
	}
	switch {
	case row.Command == leasestore.ErrRolledBack.Error():
		l.Abort()
	case s.Status != channel.Open:
		g.changed(s)
	case row.Command != "":
		g.leases.EndSoon(l, row.Command)
	}
}

// reflect brings a lease that is shown here to what its owner wrote.
func (g *Gateway) reflect(ctx context.Context, l *lease.Lease, row leasestore.Glimpse, s channel.State) error {
	if row.ID == "" {
		return nil
	}
	v, _ := l.Status.Snapshot()
	var last *metering.SignedRecord
	if uint64(row.Sequence) > v.Sequence {
		var err error
		if last, err = g.leases.Store.Records.Last(ctx, l.ID); err != nil {
			return err
		}
	}
	changed := last != nil || string(v.State) != row.State || v.Reason != row.Reason ||
		uint64(row.Stream) > v.Stream || s.Accepted.Gt(&v.Accepted) || s.Deposit != v.Deposit
	if changed {
		l.Status.Update(func(v *lease.View) { v.Apply(row, s, last) })
	}
	if now, _ := l.Status.Snapshot(); now.State == leasestore.Active {
		l.Balance.Remind(now)
	}
	return nil
}

// Image is a lease as the table has it.
func Image(ctx context.Context, leases *lease.Manager, row leasestore.Row, s channel.State) (*lease.Lease, error) {
	a, err := row.Allocated()
	if err != nil {
		return nil, err
	}
	last, err := leases.Store.Records.Last(ctx, a.LeaseID)
	if err != nil {
		return nil, err
	}
	l, err := leases.Load(ctx, row, s, a, last)
	if err != nil {
		return nil, err
	}
	l.Mirror = true
	l.Status.Update(func(v *lease.View) {
		*v = lease.View{State: leasestore.State(row.State), Reason: row.Reason, Version: 1, Stream: uint64(row.Stream),
			Owed: l.OwedBefore, Accepted: s.Accepted, Deposit: s.Deposit}
		v.Shows(last)
		v.Ask(v.State, v.Reason)
	})
	return l, nil
}

// end passes a renter's wish on to the gateway that runs the lease and waits
// until it has ended.
func (g *Gateway) end(ctx context.Context, id common.Hash, reason string) error {
	if err := g.leases.Store.Leases.Command(ctx, id, reason); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*g.Takeover+g.CallTimeout)
	defer cancel()
	for {
		row, err := g.leases.Store.Leases.ByID(ctx, id.Hex())
		if err != nil {
			return err
		}
		if row.State == wire.StateEnded {
			return nil
		}
		if silent, err := g.members.Silent(ctx, row.Owner); err == nil && silent > g.Takeover {
			// Nobody could take it up for that long: its devices are on a host that is gone.
			if err := g.Resolve(ctx, row, reason); err != nil && !errors.Is(err, lease.ErrHeld) {
				return err
			}
		}
		if err := chain.Pause(ctx, g.Poll()/4); err != nil {
			return wire.Unavailable.With("lease %s runs at another gateway, which does not answer: try again", id)
		}
	}
}
