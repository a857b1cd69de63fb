package sdk

import (
	"context"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// seen is a lease of another gateway that is shown here.
type seen struct {
	lease *lease.Lease
	users int
	stop  func() bool // forgets that its streams end with the provider
}

// look reads what other gateways changed: vouchers that they took, leases that
// they took over, wishes to end one, and what they say of those that are shown
// here.
func (r *replicas) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.ttl/2)
	defer cancel()
	began := time.Now()
	own, shown := r.p.leases.All(), r.shown()
	var ids, channels []common.Hash
	for _, l := range append(own, shown...) {
		ids, channels = append(ids, l.ID), append(channels, l.Terms.ID())
	}
	rows, err := r.p.store.Leases.Glimpses(ctx, ids)
	if err != nil {
		return err
	}
	list, err := r.p.db.States(ctx, channels)
	if err != nil {
		return err
	}
	payers := r.p.leases.Deps.Accounts.Payers()
	owing, err := r.p.owing(ctx, payers...)
	if err != nil {
		return err
	}
	r.sees(began)
	r.p.leases.Deps.Accounts.Learn(payers, owing)
	states := make(map[common.Hash]channel.State, len(list))
	for _, s := range list {
		states[s.ID] = s
	}
	for _, l := range own {
		r.heed(l, rows[l.ID], states[l.Terms.ID()])
		err = errors.Join(err, r.p.x402.Notice(ctx, l))
	}
	for _, l := range shown {
		err = errors.Join(err, r.reflect(ctx, l, rows[l.ID], states[l.Terms.ID()]))
	}
	return err
}

// heed tells a lease that runs here what others wrote.
func (r *replicas) heed(l *lease.Lease, row leasestore.Glimpse, s channel.State) {
	if row.ID == "" || row.Term != l.Term { // its row was there when it began: see drop
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
		r.p.channelChanged(s)
	case row.Command != "":
		r.p.leases.EndSoon(l, row.Command)
	}
}

// reflect brings a lease that is shown here to what its owner wrote.
func (r *replicas) reflect(ctx context.Context, l *lease.Lease, row leasestore.Glimpse, s channel.State) error {
	if row.ID == "" {
		return nil
	}
	v, _ := l.Status.Snapshot()
	var last *metering.SignedRecord
	if uint64(row.Sequence) > v.Sequence {
		var err error
		if last, err = r.p.store.Records.Last(ctx, l.ID); err != nil {
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

func (r *replicas) shown() []*lease.Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*lease.Lease
	for _, m := range r.mirrors {
		all = append(all, m.lease)
	}
	return all
}

// Serving finds the lease that runs on a channel, here or at another gateway.
// With one that is shown here only, the caller owes a Detach.
func (d leaseDirectory) Serving(ctx context.Context, s channel.State) (*lease.Lease, error) {
	if l := d.Running(s.ID); l != nil || d.p.replicas == nil {
		return l, nil
	}
	row, ok, err := d.p.store.Leases.Newest(ctx, s.ID)
	switch {
	case err != nil || !ok || row.State == wire.StateEnded:
		return nil, err
	case row.State == wire.StateAllocating, row.State == wire.StateEnding:
		return nil, leasestore.Elsewhere(s.ID)
	}
	return d.p.replicas.follow(ctx, row, s)
}

// follow shows a lease of another gateway.
func (r *replicas) follow(ctx context.Context, row leasestore.Row, s channel.State) (*lease.Lease, error) {
	id := common.HexToHash(row.ID)
	fresh, err := image(ctx, r.p, row, s)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.mirrors[id]
	if m == nil {
		m = &seen{lease: fresh}
		m.stop = context.AfterFunc(r.p.leases.Lifetime(), func() { close(fresh.Done) })
		r.mirrors[id] = m
	}
	m.users++
	return m.lease, nil
}

func (r *replicas) unfollow(l *lease.Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.mirrors[l.ID]
	if m == nil {
		return
	}
	if m.users--; m.users == 0 {
		m.stop()
		delete(r.mirrors, l.ID)
	}
}

// image is a lease as the table has it.
func image(ctx context.Context, p *Provider, row leasestore.Row, s channel.State) (*lease.Lease, error) {
	a, err := row.Allocated()
	if err != nil {
		return nil, err
	}
	last, err := p.store.Records.Last(ctx, a.LeaseID)
	if err != nil {
		return nil, err
	}
	l, err := p.leases.Load(ctx, row, s, a, last)
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
func (r *replicas) end(ctx context.Context, id common.Hash, reason string) error {
	if err := r.p.store.Leases.Command(ctx, id, reason); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*r.ttl+r.p.config.CallTimeout)
	defer cancel()
	for {
		row, err := r.p.store.Leases.ByID(ctx, id.Hex())
		if err != nil {
			return err
		}
		if row.State == wire.StateEnded {
			return nil
		}
		if silent, err := r.members().Silent(ctx, row.Owner); err == nil && silent > r.ttl {
			// Nobody could take it up for that long: its devices are on a host that is gone.
			if err := r.resolve(ctx, row, reason); err != nil && !errors.Is(err, lease.ErrHeld) {
				return err
			}
		}
		if err := chain.Pause(ctx, r.poll()/4); err != nil {
			return wire.Unavailable.With("lease %s runs at another gateway, which does not answer: try again", id)
		}
	}
}

// Begun reports a lease that runs on the channel, here or at another gateway.
func (d leaseDirectory) Begun(ctx context.Context, id common.Hash) bool {
	if d.Running(id) != nil {
		return true
	}
	if d.p.replicas == nil {
		return false
	}
	row, ok, err := d.p.store.Leases.Newest(ctx, id)
	return err == nil && ok && row.State != wire.StateEnded
}

// EndLease ends the lease that runs on a channel, wherever it does.
func (d leaseDirectory) EndLease(ctx context.Context, id common.Hash, row *leasestore.Row, reason string) error {
	if l := d.Running(id); l != nil {
		if err := l.End(ctx, lease.Stop{Reason: reason}); err != nil || l.Status.State() == leasestore.Ended {
			return err
		}
		if !l.Fence.Lost.Load() {
			return wire.Unavailable.With("the provider stops and lease %s goes on: try again", l.ID)
		}
		// It was let go while it was asked: it goes on at another gateway.
	}
	if d.p.replicas == nil || row == nil || row.State == wire.StateEnded {
		return nil
	}
	return d.p.replicas.end(ctx, common.HexToHash(row.ID), reason)
}

// NextStream numbers a stream: from now on no older one of the lease writes, at
// no gateway.
func (d leaseDirectory) NextStream(ctx context.Context, l *lease.Lease) (number uint64, err error) {
	if d.p.replicas != nil {
		if number, err = d.p.store.Leases.NextStream(ctx, l.ID); err != nil {
			return 0, err
		}
	}
	l.Status.Update(func(v *lease.View) {
		if d.p.replicas == nil {
			number = v.Stream + 1
		}
		v.Stream = max(v.Stream, number)
	})
	return number, nil
}
