package sdk

import (
	"context"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// seen is a lease of another gateway that is shown here.
type seen struct {
	lease *lease
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
	own, shown := r.p.allLeases(), r.shown()
	var ids, channels []common.Hash
	for _, l := range append(own, shown...) {
		ids, channels = append(ids, l.id), append(channels, l.terms.ID())
	}
	rows, err := r.p.store.Leases.Glimpses(ctx, ids)
	if err != nil {
		return err
	}
	list, err := r.p.db.States(ctx, channels)
	if err != nil {
		return err
	}
	payers := r.p.deps.accounts.Payers()
	owing, err := r.p.owing(ctx, payers...)
	if err != nil {
		return err
	}
	r.sees(began)
	r.p.deps.accounts.Learn(payers, owing)
	states := make(map[common.Hash]channel.State, len(list))
	for _, s := range list {
		states[s.ID] = s
	}
	for _, l := range own {
		r.heed(l, rows[l.id], states[l.terms.ID()])
		err = errors.Join(err, r.p.x402.notice(ctx, l))
	}
	for _, l := range shown {
		err = errors.Join(err, r.reflect(ctx, l, rows[l.id], states[l.terms.ID()]))
	}
	return err
}

// heed tells a lease that runs here what others wrote.
func (r *replicas) heed(l *lease, row leasestore.Glimpse, s channel.State) {
	if row.ID == "" || row.Term != l.term { // its row was there when it began: see drop
		l.elsewhere.Store(row.ID != "")
		l.lose()
		return
	}
	if s.ID == (common.Hash{}) {
		return
	}
	v, _ := l.snapshot()
	if uint64(row.Stream) > v.stream {
		l.update(func(v *leaseView) { v.stream = max(v.stream, uint64(row.Stream)) })
	}
	if s.Accepted.Gt(&v.accepted) || s.Deposit != v.deposit {
		l.learn(s)
	}
	switch {
	case row.Command == leasestore.ErrRolledBack.Error():
		l.mute()
	case s.Status != channel.Open:
		r.p.channelChanged(s)
	case row.Command != "":
		r.p.endSoon(l, row.Command)
	}
}

// learn takes what the table says. A voucher that was taken here since it was
// read counts.
func (l *lease) learn(s channel.State) {
	l.update(func(v *leaseView) {
		v.deposit = s.Deposit
		v.hear(s, l.deps.row)
	})
	l.tally()
	l.Wake()
}

// reflect brings a lease that is shown here to what its owner wrote.
func (r *replicas) reflect(ctx context.Context, l *lease, row leasestore.Glimpse, s channel.State) error {
	if row.ID == "" {
		return nil
	}
	v, _ := l.snapshot()
	var last *metering.SignedRecord
	if uint64(row.Sequence) > v.sequence {
		var err error
		if last, err = r.p.store.Records.Last(ctx, l.id); err != nil {
			return err
		}
	}
	changed := last != nil || string(v.state) != row.State || v.reason != row.Reason ||
		uint64(row.Stream) > v.stream || s.Accepted.Gt(&v.accepted) || s.Deposit != v.deposit
	if changed {
		l.update(func(v *leaseView) { v.reflect(row, s, last) })
	}
	if now, _ := l.snapshot(); now.state == leasestore.Active {
		l.remind(now)
	}
	return nil
}

func (v *leaseView) reflect(row leasestore.Glimpse, s channel.State, last *metering.SignedRecord) {
	v.deposit, v.stream = s.Deposit, max(v.stream, uint64(row.Stream))
	if s.Accepted.Gt(&v.accepted) {
		v.accepted = s.Accepted
	}
	if last != nil && last.Sequence > v.sequence {
		v.sequence, v.owed, v.nanos = last.Sequence, last.Owed, last.Nanos
	}
	if state := leasestore.State(row.State); state != leasestore.Ending && (state != v.state || row.Reason != v.reason) {
		v.version++
		v.ask(state, row.Reason)
		v.state, v.reason = state, row.Reason
	}
}

func (r *replicas) shown() []*lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*lease
	for _, m := range r.mirrors {
		all = append(all, m.lease)
	}
	return all
}

// errElsewhere is a lease that another gateway is about to begin, to take over or
// to end.
func errElsewhere(id common.Hash) error {
	return wire.Unavailable.With("another gateway is at work on the lease of channel %s: try again", id)
}

// serving finds the lease that runs on a channel, here or at another gateway.
// With one that is shown here only, the caller owes an unfollow.
func (p *Provider) serving(ctx context.Context, s channel.State) (*lease, error) {
	if l := p.running(s.ID); l != nil || p.replicas == nil {
		return l, nil
	}
	row, ok, err := p.store.Leases.Newest(ctx, s.ID)
	switch {
	case err != nil || !ok || row.State == wire.StateEnded:
		return nil, err
	case row.State == wire.StateAllocating, row.State == wire.StateEnding:
		return nil, errElsewhere(s.ID)
	}
	return p.replicas.follow(ctx, row, s)
}

// follow shows a lease of another gateway.
func (r *replicas) follow(ctx context.Context, row leasestore.Row, s channel.State) (*lease, error) {
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
		m.stop = context.AfterFunc(r.p.life, func() { close(fresh.done) })
		r.mirrors[id] = m
	}
	m.users++
	return m.lease, nil
}

func (r *replicas) unfollow(l *lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.mirrors[l.id]
	if m == nil {
		return
	}
	if m.users--; m.users == 0 {
		m.stop()
		delete(r.mirrors, l.id)
	}
}

// image is a lease as the table has it.
func image(ctx context.Context, p *Provider, row leasestore.Row, s channel.State) (*lease, error) {
	a, err := row.Allocated()
	if err != nil {
		return nil, err
	}
	last, err := p.store.Records.Last(ctx, a.LeaseID)
	if err != nil {
		return nil, err
	}
	l, err := p.rebuild(ctx, row, s, a, last)
	if err != nil {
		return nil, err
	}
	l.mirror = true
	l.view = leaseView{state: leasestore.State(row.State), reason: row.Reason, version: 1, stream: uint64(row.Stream),
		owed: l.owedBefore, accepted: s.Accepted, deposit: s.Deposit}
	if last != nil {
		l.view.sequence, l.view.owed, l.view.nanos = last.Sequence, last.Owed, last.Nanos
	}
	l.view.ask(l.view.state, l.view.reason)
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
			if err := r.resolve(ctx, row, reason); err != nil && !errors.Is(err, errHeld) {
				return err
			}
		}
		if err := chain.Pause(ctx, r.poll()/4); err != nil {
			return wire.Unavailable.With("lease %s runs at another gateway, which does not answer: try again", id)
		}
	}
}

// begun reports a lease that runs on the channel, here or at another gateway.
func (p *Provider) begun(ctx context.Context, id common.Hash) bool {
	if p.running(id) != nil {
		return true
	}
	if p.replicas == nil {
		return false
	}
	row, ok, err := p.store.Leases.Newest(ctx, id)
	return err == nil && ok && row.State != wire.StateEnded
}

// endLease ends the lease that runs on a channel, wherever it does.
func (p *Provider) endLease(ctx context.Context, id common.Hash, row *leasestore.Row, reason string) error {
	if l := p.running(id); l != nil {
		if err := l.end(ctx, stopRequest{reason: reason}); err != nil || l.State() == leasestore.Ended {
			return err
		}
		if !l.lost.Load() {
			return wire.Unavailable.With("the provider stops and lease %s goes on: try again", l.id)
		}
		// It was let go while it was asked: it goes on at another gateway.
	}
	if p.replicas == nil || row == nil || row.State == wire.StateEnded {
		return nil
	}
	return p.replicas.end(ctx, common.HexToHash(row.ID), reason)
}

// nextStream numbers a stream: from now on no older one of the lease writes, at
// no gateway.
func (p *Provider) nextStream(ctx context.Context, l *lease) (number uint64, err error) {
	if p.replicas != nil {
		if number, err = p.store.Leases.NextStream(ctx, l.id); err != nil {
			return 0, err
		}
	}
	l.update(func(v *leaseView) {
		if p.replicas == nil {
			number = v.stream + 1
		}
		v.stream = max(v.stream, number)
	})
	return number, nil
}
