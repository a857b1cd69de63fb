package sdk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
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
	expiry  *time.Timer           // fires when others may take our leases
	mirrors map[common.Hash]*seen // by lease
	refused map[string]time.Time  // leases that could not be taken up here, and until when not to try again
}

// seen is a lease of another gateway that is shown here.
type seen struct {
	lease *lease
	users int
	stop  func() bool // forgets that its streams end with the provider
}

// hopeless is how long a gateway does not try a lease again that it could not
// take up.
const hopeless = 30 * time.Second

// claimTime is how long a claim outlives the gateway that died with it.
const claimTime = 30 * time.Second

func newReplicas(p *Provider) *replicas {
	return &replicas{p: p, ttl: p.config.Takeover, mirrors: make(map[common.Hash]*seen), refused: make(map[string]time.Time), id: newGatewayID()}
}

func newGatewayID() string { return randomHash().Hex()[2:18] }

func (r *replicas) identity() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

func (r *replicas) poll() time.Duration { return min(r.p.config.Tick, time.Second) }

// join makes the gateway one of them: it says that it lives, takes up what
// nobody runs, and goes on doing both.
func (r *replicas) join(ctx context.Context) error {
	if a, ok := r.p.config.Allocator.(interface{ share(deviceBook) }); ok { // also where it is embedded
		a.share(r.devices())
	}
	if err := r.beat(ctx); err != nil {
		return fmt.Errorf("joining the gateways of this database: %w", err)
	}
	if err := r.sweep(ctx); err != nil {
		return fmt.Errorf("leases that nobody runs: %w", err)
	}
	r.every(r.ttl/4, "saying that this gateway lives", r.beat)
	r.every(r.poll(), "looking at the leases", r.look)
	r.every(r.ttl/4, "taking up leases that nobody runs", r.sweep)
	return nil
}

func (r *replicas) devices() deviceTable { return deviceTable{r.p.store} }

// every does something again and again until the provider stops.
func (r *replicas) every(pause time.Duration, what string, do func(context.Context) error) {
	if !r.p.begin() {
		return
	}
	go func() {
		defer r.p.wait.Done()
		for chain.Pause(r.p.life, pause) == nil {
			if err := do(r.p.life); err != nil && r.p.life.Err() == nil {
				r.p.config.Log.Warn(what, "error", err)
			}
		}
	}()
}

// beat says that this gateway lives. Its time counts from before it says so: the
// others, who count from after, never take a lease that it still believes in.
func (r *replicas) beat(ctx context.Context) error {
	began, id := time.Now(), r.identity()
	if err := r.p.store.beat(ctx, id, r.ttl); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.id != id {
		return nil // it came too late
	}
	left := r.ttl - time.Since(began)
	if r.expiry == nil {
		r.expiry = time.AfterFunc(left, r.standDown)
	} else {
		r.expiry.Reset(left)
	}
	return nil
}

// standDown lets go of every lease: the database was not reached for so long
// that others may have taken them. Under another name this gateway may take up
// what they have not.
func (r *replicas) standDown() {
	r.mu.Lock()
	r.id, r.expiry = newGatewayID(), nil
	r.mu.Unlock()
	running := r.p.allLeases()
	if r.p.life.Err() == nil {
		r.p.config.Log.Error("the database was not reached for too long: other gateways may run this one's leases now", "leases", len(running), "takeover", r.ttl)
	}
	for _, l := range running {
		l.lose()
	}
}

// leave hands what runs here to the other gateways, when nothing does any more.
func (r *replicas) leave() {
	r.mu.Lock()
	if r.expiry != nil {
		r.expiry.Stop()
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.p.store.leave(ctx, r.identity()); err != nil {
		r.p.config.Log.Warn("the other gateways will notice only after a while that this one is gone", "error", err)
	}
}

func (p *Provider) allLeases() []*lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*lease, 0, len(p.leases))
	for _, l := range p.leases {
		all = append(all, l)
	}
	return all
}

// look reads what other gateways changed: vouchers that they took, leases that
// they took over, wishes to end one, and what they say of those that are shown
// here.
func (r *replicas) look(ctx context.Context) error {
	own, shown := r.p.allLeases(), r.shown()
	var ids, channels []common.Hash
	for _, l := range append(own, shown...) {
		ids, channels = append(ids, l.id), append(channels, l.terms.ID())
	}
	rows, err := r.p.store.byIDs(ctx, ids)
	if err != nil {
		return err
	}
	list, err := r.p.db.States(ctx, channels)
	if err != nil {
		return err
	}
	states := make(map[common.Hash]channel.State, len(list))
	for _, s := range list {
		states[s.ID] = s
	}
	for _, l := range own {
		r.heed(l, rows[l.id], states[l.terms.ID()])
	}
	for _, l := range shown {
		err = errors.Join(err, r.reflect(ctx, l, rows[l.id], states[l.terms.ID()]))
	}
	return err
}

// heed tells a lease that runs here what others wrote.
func (r *replicas) heed(l *lease, row leaseRow, s channel.State) {
	if row.ID == "" || s.ID == (common.Hash{}) {
		return // it began after we looked
	}
	if row.Term != l.term {
		l.lose()
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
		if s.Accepted.Gt(&v.accepted) {
			v.accepted = s.Accepted
		}
	})
	l.wake()
}

// reflect brings a lease that is shown here to what its owner wrote.
func (r *replicas) reflect(ctx context.Context, l *lease, row leaseRow, s channel.State) error {
	if row.ID == "" {
		return nil
	}
	v, _ := l.snapshot()
	var last *metering.SignedRecord
	if uint64(row.Sequence) > v.sequence {
		var err error
		if last, err = r.p.store.last(ctx, l.id); err != nil {
			return err
		}
	}
	changed := last != nil || string(v.state) != row.State || v.reason != row.Reason ||
		uint64(row.Stream) > v.stream || s.Accepted.Gt(&v.accepted) || s.Deposit != v.deposit
	if changed {
		l.update(func(v *leaseView) { v.reflect(row, s, last) })
	}
	if now, _ := l.snapshot(); now.state == leaseActive {
		l.remind(now)
	}
	return nil
}

func (v *leaseView) reflect(row leaseRow, s channel.State, last *metering.SignedRecord) {
	v.deposit, v.stream = s.Deposit, max(v.stream, uint64(row.Stream))
	if s.Accepted.Gt(&v.accepted) {
		v.accepted = s.Accepted
	}
	if last != nil && last.Sequence > v.sequence {
		v.sequence, v.owed, v.nanos = last.Sequence, last.Owed, last.Nanos
	}
	if state := leaseState(row.State); state != v.state || row.Reason != v.reason {
		v.version++
		switch {
		case state == leaseSuspended:
			v.need++
		case state == leaseActive && v.state == leaseSuspended:
			v.need = 0
		}
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

// errElsewhere is a lease that another gateway is about to begin or to take
// over.
func errElsewhere(id common.Hash) error {
	return wire.Unavailable.With("another gateway is at work on the lease of channel %s: try again", id)
}

// serving finds the lease that runs on a channel, here or at another gateway.
// With one that is shown here only, the caller owes an unfollow.
func (p *Provider) serving(ctx context.Context, s channel.State) (*lease, error) {
	if l := p.running(s.ID); l != nil || p.replicas == nil {
		return l, nil
	}
	row, ok, err := p.store.newest(ctx, s.ID)
	switch {
	case err != nil || !ok || row.State == string(leaseEnded):
		return nil, err
	case row.State == string(leaseAllocating):
		return nil, errElsewhere(s.ID)
	}
	return p.replicas.follow(ctx, row, s)
}

// follow shows a lease of another gateway.
func (r *replicas) follow(ctx context.Context, row leaseRow, s channel.State) (*lease, error) {
	id := common.HexToHash(row.ID)
	fresh, err := r.image(ctx, row, s)
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
func (r *replicas) image(ctx context.Context, row leaseRow, s channel.State) (*lease, error) {
	a, err := row.allocation()
	if err != nil {
		return nil, err
	}
	last, err := r.p.store.last(ctx, a.LeaseID)
	if err != nil {
		return nil, err
	}
	l, err := r.p.rebuild(ctx, row, s, a, last)
	if err != nil {
		return nil, err
	}
	l.mirror = true
	l.view = leaseView{state: leaseState(row.State), reason: row.Reason, version: 1, stream: uint64(row.Stream),
		owed: l.owedBefore, accepted: s.Accepted, deposit: s.Deposit}
	if last != nil {
		l.view.sequence, l.view.owed, l.view.nanos = last.Sequence, last.Owed, last.Nanos
	}
	if l.view.state == leaseSuspended {
		l.view.need = 1
	}
	return l, nil
}

// end passes a renter's wish on to the gateway that runs the lease and waits
// until it has ended.
func (r *replicas) end(ctx context.Context, id common.Hash, reason string) error {
	if err := r.p.store.command(ctx, id, reason); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*r.ttl+r.p.config.CallTimeout)
	defer cancel()
	for {
		row, err := r.p.store.byID(ctx, id.Hex())
		if err != nil {
			return err
		}
		if row.State == string(leaseEnded) {
			return nil
		}
		if silent, err := r.p.store.silent(ctx, row.Owner); err == nil && silent > r.ttl {
			// Nobody could take it up for that long: its devices are on a host that is gone.
			if err := r.closeBooks(ctx, row, reason); err != nil {
				return err
			}
		}
		if err := chain.Pause(ctx, r.poll()/4); err != nil {
			return wire.Unavailable.With("lease %s runs at another gateway, which does not answer: try again", id)
		}
	}
}

// sweep takes up what nobody runs: leases of gateways that died, and devices of
// leases that ended without them.
func (r *replicas) sweep(ctx context.Context) error {
	rows, err := r.p.store.orphans(ctx)
	if err != nil {
		return err
	}
	for _, row := range rows {
		err = errors.Join(err, r.rescue(ctx, row))
	}
	err = errors.Join(err, r.tidy(ctx))
	stranded, failed := r.p.store.stranded(ctx)
	for _, row := range stranded {
		failed = errors.Join(failed, r.recover(ctx, row))
	}
	return errors.Join(err, failed)
}

// tidy ends leases that are ours in the table and nowhere else: the database
// failed us when they began or ended.
func (r *replicas) tidy(ctx context.Context) error {
	rows, err := r.p.store.owned(ctx, r.identity(), time.Now().Add(-2*r.p.config.CallTimeout))
	for _, row := range rows {
		err = errors.Join(err, r.forget(ctx, row))
	}
	return err
}

func (r *replicas) forget(ctx context.Context, row leaseRow) error {
	id := common.HexToHash(row.Channel)
	if r.p.running(id) != nil {
		return nil
	}
	defer r.p.starts.lock(id)() // nothing begins or closes meanwhile
	now, err := r.p.store.byID(ctx, row.ID)
	if err != nil || now.State == string(leaseEnded) || now.Term != row.Term || r.p.running(id) != nil {
		return err
	}
	return r.p.abandon(ctx, now, "the database failed when it began or ended")
}

// rescue takes up one lease if its devices can be reached from here, and leaves
// it to the others if not.
func (r *replicas) rescue(ctx context.Context, row leaseRow) error {
	if r.p.running(common.HexToHash(row.Channel)) != nil || r.refuses(row.ID) {
		return nil
	}
	before := row.Owner
	silent, err := r.p.store.silent(ctx, before)
	if err != nil {
		return err
	}
	if ok, err := r.p.store.take(ctx, &row, r.identity()); err != nil || !ok {
		return err
	}
	err = r.p.adopt(ctx, row)
	if err == nil {
		r.p.config.Log.Info("lease taken over from a gateway that is gone", "lease", row.ID, "gateway", before, "term", row.Term)
		return nil
	}
	if !errors.Is(err, errNotHere) {
		r.p.config.Log.Warn("lease of a gateway that is gone is ended", "lease", row.ID, "reason", err)
		if err = r.p.abandon(ctx, row, err.Error()); err == nil {
			return nil
		}
	}
	if silent > r.p.config.SuspendTimeout {
		return r.endBooks(ctx, row, "its host is gone")
	}
	r.refuse(row.ID)
	r.p.config.Log.Warn("lease of a gateway that is gone is left to the others", "lease", row.ID, "reason", err)
	return r.p.store.giveBack(ctx, row, before)
}

func (r *replicas) refuses(lease string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.refused[lease])
}

func (r *replicas) refuse(lease string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused[lease] = time.Now().Add(hopeless)
}

// closeBooks ends a lease whose host is gone, unless somebody else does it.
func (r *replicas) closeBooks(ctx context.Context, row leaseRow, reason string) error {
	ok, err := r.p.store.take(ctx, &row, r.identity())
	if err != nil || !ok {
		return err
	}
	return r.endBooks(ctx, row, reason)
}

// endBooks states the final record of a lease that is ours and ends it. Nothing
// is billed for the time that nobody metered. Its devices are out of reach: the
// gateway that can reach them takes them back (recover).
func (r *replicas) endBooks(ctx context.Context, row leaseRow, reason string) error {
	a, err := row.allocation()
	if err != nil {
		return err
	}
	s, err := r.p.payee.State(ctx, common.HexToHash(row.Channel))
	if err != nil {
		return err
	}
	last, err := r.p.store.last(ctx, a.LeaseID)
	if err != nil {
		return err
	}
	if len(a.Devices) > 0 && (last == nil || !last.Final) {
		l, err := r.p.rebuild(ctx, row, s, a, last)
		if err != nil {
			return err
		}
		l.meter.Pause()
		if err := l.record(ctx, true); err != nil {
			return err
		}
	}
	if err := r.p.store.setHeld(ctx, row.ID, 1); err != nil {
		return err
	}
	r.p.config.Log.Warn("lease ended without its devices: they are taken back when their host is there again", "lease", row.ID, "reason", reason)
	return r.p.store.setState(ctx, a.LeaseID, row.Term, leaseEnded, reason, time.Now().Unix())
}

// recover takes the devices of an ended lease back, if they are here.
func (r *replicas) recover(ctx context.Context, row leaseRow) error {
	if r.refuses(row.ID) {
		return nil
	}
	a, err := row.allocation()
	if err != nil {
		return err
	}
	if adopter, ok := r.p.config.Allocator.(Adopter); ok && len(a.Devices) > 0 {
		if err := adopter.Adopt(ctx, a); err != nil {
			r.refuse(row.ID)
			return nil // not here
		}
	}
	call, cancel := context.WithTimeout(ctx, r.p.config.CallTimeout)
	defer cancel()
	if err := r.p.config.Allocator.Release(call, a); err != nil {
		r.refuse(row.ID)
		return err
	}
	return r.p.store.setHeld(ctx, row.ID, 0)
}

// claim makes this gateway the only one to do what it names; without others it
// is nothing.
func (p *Provider) claim(ctx context.Context, name string) (unclaim func(), err error) {
	if p.replicas == nil {
		return func() {}, nil
	}
	owner := newGatewayID()
	for {
		ok, err := p.store.claim(ctx, name, owner, claimTime)
		if err != nil {
			return nil, err
		}
		if ok {
			break
		}
		if err := chain.Pause(ctx, p.replicas.poll()/4); err != nil {
			return nil, wire.Unavailable.With("another gateway is at work on this: %s: try again", name)
		}
	}
	return func() {
		if err := p.store.unclaim(context.WithoutCancel(ctx), name, owner); err != nil {
			p.config.Log.Warn("a claim was not given back: it ends by itself", "claim", name, "error", err)
		}
	}, nil
}

// settleRequest is the claim by which a gateway asks the leader to settle.
const settleRequest = "settle"

// leader leads the gateways where it can: one of them watches, sends and settles
// for all.
func (r *replicas) leader() *leader {
	return &leader{
		db: r.p.db, owner: r.identity(), log: r.p.config.Log, work: r.lead,
		name: fmt.Sprintf("settler %d %s %s", r.p.escrow.ChainID(), r.p.escrow.Address(), r.p.config.Key.Address()),
	}
}

// lead does a leader's work through a database that lets it write only while it
// leads.
func (r *replicas) lead(ctx context.Context, db *store.DB) error {
	txs, err := chain.OpenStore(ctx, db)
	if err != nil {
		return err
	}
	c := r.p.newCrew(db, txs)
	return together(ctx, c.run, func(ctx context.Context) error {
		for chain.Pause(ctx, 2*time.Second) == nil {
			if err := r.serve(ctx, c.settler, leaseStore{db}); err != nil && ctx.Err() == nil {
				r.p.config.Log.Warn("what other gateways want settled", "error", err)
			}
		}
		return ctx.Err()
	})
}

// serve has settled what ended at any gateway and what one of them asks for.
func (r *replicas) serve(ctx context.Context, settler *Settler, s leaseStore) error {
	now := time.Now()
	ids, err := s.endedBetween(ctx, now.Add(-closeGrace-time.Hour).Unix(), now.Add(-closeGrace).Unix())
	if err != nil {
		return err
	}
	ended := make(map[common.Hash]bool, len(ids))
	for _, id := range ids {
		ended[id] = true
	}
	unsettled, err := settler.Payee.Unsettled(ctx)
	for _, state := range unsettled {
		if ended[state.ID] {
			settler.Urgent(state.ID)
		}
	}
	asked, failed := s.claimed(ctx, settleRequest)
	if err = errors.Join(err, failed); err != nil || !asked {
		return err
	}
	err = settler.Settle(ctx)
	if ctx.Err() != nil {
		return err // the next leader does it
	}
	return errors.Join(err, s.unclaim(ctx, settleRequest, settleRequest)) // also after a failure: it would cost gas again and again
}

// settle asks the leader, whoever it is, and waits. The error names what it
// could not settle.
func (r *replicas) settle(ctx context.Context) error {
	before, err := r.p.payee.Unsettled(ctx)
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
	if _, err := r.p.store.claim(ctx, settleRequest, settleRequest, 24*time.Hour); err != nil {
		return err
	}
	for {
		asked, err := r.p.store.claimed(ctx, settleRequest)
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
		if err == nil && s.Settled.Lt(&was.Accepted) && s.Status != channel.Finalized {
			err = errUnsettled(s.ID, errors.New("the log of the gateway that leads says why"))
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// begun reports a lease that runs on the channel, here or at another gateway.
func (p *Provider) begun(ctx context.Context, id common.Hash) bool {
	if p.running(id) != nil {
		return true
	}
	if p.replicas == nil {
		return false
	}
	row, ok, err := p.store.newest(ctx, id)
	return err == nil && ok && row.State != string(leaseEnded)
}

// endLease ends the lease that runs on a channel, wherever it does.
func (p *Provider) endLease(ctx context.Context, id common.Hash, row *leaseRow, reason string) error {
	if l := p.running(id); l != nil {
		return l.end(ctx, stopRequest{reason: reason})
	}
	if p.replicas == nil || row == nil || row.State == string(leaseEnded) {
		return nil
	}
	return p.replicas.end(ctx, common.HexToHash(row.ID), reason)
}

// nextStream numbers a stream: from now on no older one of the lease writes, at
// no gateway.
func (p *Provider) nextStream(ctx context.Context, l *lease) (number uint64, err error) {
	if p.replicas != nil {
		if number, err = p.store.nextStream(ctx, l.id); err != nil {
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
