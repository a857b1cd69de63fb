package sdk

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// lessor runs leases and takes them up again after a restart: a provider's, or
// those that a node meters for its gateways.
type lessor struct {
	deps     leaseDeps
	meterKey metering.Signer   // signs usage records
	pastKeys []metering.Signer // sign those of leases from before meterKey
	binder   channel.Signer    // the payee's key, which binds meters to leases; nil: a node, whose gateways have it
	paidTo   common.Address    // whom channels must pay that leases go on on; zero: whomever
	store    leasestore.Store

	// channel is the channel of a lease, and remote what a gateway has of one that
	// a node meters.
	channel   func(ctx context.Context, row leasestore.Row) (channel.State, error)
	remote    func(l *lease, row leasestore.Row, terms metering.Lease, meter common.Address, last *metering.SignedRecord) (leaseEngine, error)
	owing     func(ctx context.Context, payer common.Address) ([]channel.State, error) // the channels on which a payer owes; nil: it is not known
	share     func(ctx context.Context, lease common.Hash) (*uint256.Int, error)       // what of its payer's credit a lease has; nil: it is not told
	allocated func(channel common.Hash)                                                // hears that a channel's lease has its devices; may be nil
	prepaid   func(*lease) error                                                       // makes a lease one that is paid in advance, if it is; nil: none is

	devices []metering.Device    // that the source listed at the start; none where it is not asked
	sick    inventory.Quarantine // of the devices of the source, for who asks how they are

	life   context.Context // leases run until it ends
	finish func()

	busy             keyed.Mutex // by lease: it begins, or is resolved
	mu               sync.Mutex
	leases           map[common.Hash]*lease // running, by channel
	wait             sync.WaitGroup
	closed, draining bool
}

// ready makes a lessor that has no lease yet.
func (h *lessor) ready() {
	h.leases = make(map[common.Hash]*lease)
	life, end := context.WithCancel(context.Background())
	h.life = life
	h.deps.probing = make(chan struct{}, probes)
	h.deps.leaving = make(chan struct{}, 1024) // as many as the store commits at once
	h.deps.sampling = metering.NewSampling(h.deps.source, h.deps.clock)
	h.finish = func() {
		end()
		h.deps.sampling.Close()
		for _, l := range h.allLeases() {
			l.Wake()
		}
	}
}

// shut stops all leases, which go on in the next process, and waits for all
// work. It is false the second time.
func (h *lessor) shut() bool {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return false
	}
	h.closed = true
	h.mu.Unlock()
	h.finish()
	h.wait.Wait()
	return true
}

// begin registers work that Close waits for.
func (h *lessor) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.wait.Add(1)
	return true
}

// note has what runs on this host be known outside the database: see guard.
func (h *lessor) note(database string, log *slog.Logger) (err error) {
	h.deps.placer, err = placement.Guard(h.deps.placer, h.deps.marks, h.store, database, log)
	return err
}

// done ends work that begin registered.
func (h *lessor) done() { h.wait.Done() }

// lifetime ends when the lessor stops.
func (h *lessor) lifetime() context.Context { return h.life }

// running returns the lease that runs on a channel, or nil.
func (h *lessor) running(channelID common.Hash) *lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.leases[channelID]
}

// runs is the lease of a row, if it runs.
func (h *lessor) runs(row leasestore.Row) *lease {
	l := h.running(common.HexToHash(row.Channel))
	if l == nil || l.id.Hex() != row.ID {
		return nil
	}
	return l
}

func (h *lessor) allLeases() []*lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*lease, 0, len(h.leases))
	for _, l := range h.leases {
		all = append(all, l)
	}
	return all
}

// grant allocates devices and begins a lease on an open channel. The row is on
// disk before the first command runs, so that a crash in between still
// releases what was allocated. may is asked in the row's transaction.
func (h *lessor) grant(ctx context.Context, row leasestore.Row, s channel.State, offer wire.SignedOffer, may func(*sqlx.Tx) error) (*lease, error) {
	id := common.HexToHash(row.ID)
	begun := sync.OnceFunc(h.busy.Lock(id))
	defer begun()
	if err := h.store.Leases.Guarded(may).Insert(ctx, row); err != nil {
		return nil, err
	}
	fault.Point(fault.LeaseWritten)
	// A renter that hangs up must not leave a half-made allocation behind.
	later := context.WithoutCancel(ctx) // what a failure leaves is undone also where its time was up
	call, cancel := context.WithTimeout(later, h.deps.timing.begins())
	defer cancel()
	a, meter, err := h.allocate(call, row, s, offer)
	if err != nil {
		return nil, errors.Join(err, h.notAllocated(later, row, errors.Is(err, gpu.ErrHeld)))
	}
	fault.Point(fault.LeaseAllocated)
	if h.allocated != nil {
		h.allocated(s.ID)
	}
	a.LeaseID, a.Term = id, row.Term
	text, err := json.Marshal(a)
	row.Allocation = string(text)
	if err == nil {
		err = h.bind(call, &row, s.ID, offer, meter)
	}
	if err == nil {
		err = h.store.Leases.Activate(call, row)
	}
	if err != nil {
		return nil, errors.Join(err, h.release(later, a)) // the row says that nothing is metered
	}
	fault.Point(fault.LeaseActivated)
	l, err := h.newLease(row, s, offer, a, nil)
	if err != nil {
		return nil, errors.Join(err, h.giveBack(call, row, nil, "not started"))
	}
	if l.metersHere() && l.read == nil {
		l.opened = make(chan struct{})
	}
	err = h.launch(l, leasestore.Active, s, nil)
	switch {
	case errors.Is(err, gpu.ErrNoCapacity):
		l.leaveCredit()
		return nil, errors.Join(err, h.giveBack(call, row, nil, err.Error()))
	case errors.Is(err, errMetered): // and not given back: that would take it from who has it
		l.leaveCredit()
		return nil, errors.Join(err, h.store.Leases.SetEnded(call, id, row.Term, err.Error(), false))
	}
	if err != nil || l.opened == nil {
		return l, err // after another error the next process takes the lease up
	}
	begun() // it runs; where another gateway took it, nobody waits for its readings
	// Nobody is told how the devices are reached before their first readings, from which they are billed on.
	select {
	case <-l.opened:
	case <-call.Done():
	}
	return l, nil
}

// allocate has a lease's devices chosen, as many as were asked for. What was given and is wrong is taken back, also where ctx is
// over; if that fails the error is gpu.ErrHeld.
func (h *lessor) allocate(ctx context.Context, row leasestore.Row, s channel.State, offer wire.SignedOffer) (gpu.Allocation, common.Address, error) {
	id := common.HexToHash(row.ID)
	a, meter, err := h.deps.placer.Place(ctx, placement.Request{Request: gpu.Request{LeaseID: id, Payer: s.Terms.Payer, GPUs: row.GPUs, Term: row.Term}, Channel: s, Offer: offer})
	if err == nil && len(a.Devices) != row.GPUs {
		err = fmt.Errorf("allocator gave %d devices to lease %s, %d were asked for", len(a.Devices), id, row.GPUs)
		if held := h.release(context.WithoutCancel(ctx), a); held != nil {
			err = fmt.Errorf("%w, and %w: %w", err, gpu.ErrHeld, held)
		}
	}
	return a, meter, err
}

// notAllocated has it on disk that a lease never began.
func (h *lessor) notAllocated(ctx context.Context, row leasestore.Row, held bool) error {
	write, cancel := context.WithTimeout(ctx, h.deps.timing.callTimeout)
	defer cancel()
	return h.store.Leases.SetEnded(write, common.HexToHash(row.ID), row.Term, "not allocated", held)
}

// newLease builds a lease: fresh, or as its last record and the meter's state
// left it.
func (h *lessor) newLease(row leasestore.Row, s channel.State, offer wire.SignedOffer, a gpu.Allocation, last *metering.SignedRecord) (*lease, error) {
	price, err := offer.Price()
	if err != nil {
		return nil, err
	}
	credit, err := price.Charge(offer.Credit * uint64(time.Second))
	if err != nil {
		return nil, err
	}
	before, err := channel.ParseAmount(row.OwedBefore)
	if err != nil {
		return nil, err
	}
	l := &lease{
		id: a.LeaseID, terms: s.Terms, offer: h.store.Offers.Shared(offer), price: price, maxDebt: credit, credit: postpaid{}, allocation: a, owedBefore: before,
		startedAt: row.StartedAt, term: row.Term, done: make(chan struct{}), deps: h.deps,
	}
	l.view.stream, l.view.reason = uint64(row.Stream), row.Reason
	if l.binding, err = row.MeterBinding(); err != nil {
		return nil, err
	}
	if h.deps.tenure != nil && a.Node == "" {
		l.tenure = h.deps.tenure()
	}
	l.deps.timing = l.deps.timing.of(offer.Offer)
	terms := offer.Meters(metering.Lease{
		ID: a.LeaseID, ChannelID: s.ID, OfferHash: offer.Hash, ChainID: s.Terms.ChainID, Escrow: s.Terms.Escrow,
		Price: price, OwedBefore: before, Devices: a.Devices,
	})
	if a.Node != "" {
		l.poke = make(chan struct{}, 1)
		l.remote, err = h.remote(l, row, terms, row.SigningKey(offer), last)
		return l, err
	}
	saved, record, pending, err := row.Resume(last)
	if err != nil {
		return nil, err
	}
	l.draft = pending
	if l.meter, err = newMeter(a.Devices, offer.Offer, saved); err != nil {
		return nil, err
	}
	l.watchdog.limit = l.meter.Config().MaxGap
	l.each = make([]watchdog, len(a.Devices))
	for i := range l.each {
		l.each[i].limit = l.watchdog.limit
	}
	if l.recorder, err = metering.NewRecorder(terms, h.signer(row.SigningKey(offer)), record); err != nil || h.prepaid == nil {
		return l, err
	}
	return l, h.prepaid(l)
}

// of is the timing of a lease: what its offer promises counts, and not what was
// configured since.
func (t leaseTiming) of(o wire.Offer) leaseTiming {
	t.tick = cmp.Or(time.Duration(o.Tick)*time.Millisecond, t.tick)
	t.recordEvery = cmp.Or(time.Duration(o.RecordEvery)*time.Millisecond, t.recordEvery)
	return t
}

func newMeter(devices []string, o wire.Offer, saved *metering.State) (*metering.Meter, error) {
	config := metering.Config{
		Devices: devices,
		Tick:    time.Duration(o.Tick) * time.Millisecond,
		MaxGap:  time.Duration(o.MaxGap) * time.Millisecond,
		Keep:    -1, // nobody asks a provider for samples: the root in the record tells whether two meters saw the same
	}
	if saved != nil {
		return metering.Restore(config, *saved)
	}
	return metering.NewMeter(config)
}

// launch lets a lease run. Its view starts where its last record is.
func (h *lessor) launch(l *lease, state leasestore.State, s channel.State, last *metering.SignedRecord) error {
	l.view = leaseView{state: state, reason: l.view.reason, version: 1, stream: l.view.stream, reserved: l.view.reserved, owed: l.owedBefore, deposit: s.Deposit}
	l.view.hear(s, l.deps.row)
	if last != nil {
		l.view.sequence, l.view.owed, l.view.nanos = last.Sequence, last.Owed, last.Nanos
	}
	l.view.ask(state, l.view.reason)
	l.custody.given.Store(state == leasestore.Active && l.metersHere()) // a node suspends by itself
	if state == leasestore.Suspended && l.meter != nil {
		l.meter.Pause()
		switch l.view.reason {
		case reasonUnmetered:
			l.watchdog.starve() // until its devices are read
		case reasonDead:
			l.liveness.dead.Store(h.deps.liveness != nil) // until it is asked
		}
	}
	if h.owing != nil {
		owing, err := h.owing(h.life, s.Terms.Payer)
		if err != nil {
			return err
		}
		l.joinCredit(owing)
	}
	if h.share != nil {
		share, err := h.share(h.life, l.id)
		if err != nil {
			return err
		}
		l.share.Store(share)
	}
	if !h.begin() {
		return errClosed
	}
	if err := h.enlist(l); err != nil {
		h.wait.Done()
		return err
	}
	l.run(h.life, &h.wait)
	h.deps.log.Info("lease started", "lease", l.id, "channel", s.ID, "payer", s.Terms.Payer, "devices", l.allocation.Devices, "state", string(state))
	return nil
}

// errMetered is a device that another running lease has: its time would be billed twice.
var errMetered = errors.New("it is metered for lease")

// enlist has a lease run here. One meter is on each device, whatever the allocator says; of those that a node meters the node
// sees to it. A device that the allocator gave to both leases stays the other's. Where one of them is a metered request, the
// allocator gave it to one lease at most: the error is ErrNoCapacity, and the device is given back.
func (h *lessor) enlist(l *lease) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l.metersHere() {
		device, other := h.meter(l.allocation.Devices, l.id)
		if other != nil && (placement.ForOneRequest(l.allocation) || placement.ForOneRequest(other.allocation)) {
			return fmt.Errorf("%w: device %s of lease %s: %w %s", gpu.ErrNoCapacity, device, l.id, errMetered, other.id)
		}
		if other != nil {
			return fmt.Errorf("device %s of lease %s: %w %s", device, l.id, errMetered, other.id)
		}
	}
	h.leases[l.terms.ID()] = l
	return nil
}

// meter is the lease, but for one, that has one of some devices here, and which; nil if none has. The caller holds mu.
func (h *lessor) meter(devices []string, but common.Hash) (string, *lease) {
	for _, other := range h.leases {
		if !other.metersHere() || other.id == but || other.ending.Load() || other.lost.Load() {
			continue
		}
		for _, device := range devices {
			if slices.Contains(other.allocation.Devices, device) {
				return device, other
			}
		}
	}
	return "", nil
}

// unmetered is ErrNoCapacity where a lease that runs here and is not the route's has one of the devices, whatever the allocator knows.
func (h *lessor) unmetered(devices []string, route inventory.Route) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if device, other := h.meter(devices, common.Hash{}); other != nil && !route(other.id) {
		return fmt.Errorf("%w: device %s: %w %s", gpu.ErrNoCapacity, device, errMetered, other.id)
	}
	return nil
}

// leaseDropped makes room for another lease on the channel.
func (h *lessor) leaseDropped(l *lease) {
	if !l.guarded.Load() || !l.metersHere() {
		l.leaveCredit()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leases[l.terms.ID()] == l { // it may have come back here meanwhile
		delete(h.leases, l.terms.ID())
	}
}

// takeUp resolves the leases of an earlier run.
func (h *lessor) takeUp(ctx context.Context) error {
	rows, err := h.store.Leases.Unfinished(ctx)
	if err != nil {
		return fmt.Errorf("leases of the last run: %w", err)
	}
	for i, row := range rows {
		if row.State == wire.StateEnded && row.AtNode() {
			continue // nodes.collect asks for it
		}
		if err := h.resolve(ctx, row, h.locate(ctx, row, rows[i+1:]), ""); err != nil && !errors.Is(err, errHeld) {
			return fmt.Errorf("lease %s of the last run could not be taken up, nothing of it is lost: start again: %w", row.ID, err)
		}
	}
	return placement.TakeBackForgotten(ctx, h.deps.placer, h.store.Leases, h.release)
}

// errNotHere is a lease whose devices are on another host.
var errNotHere = errors.New("its devices cannot be taken up here")

// locate looks for the devices of a lease that no process runs, and has the allocator know them: errNotHere, placement.ErrNoAdopter, or
// inventory.ErrTaken where they are in another lease, such as one of those that are known to be later. It is nil where they are here,
// or none were allocated yet.
func (h *lessor) locate(ctx context.Context, row leasestore.Row, later []leasestore.Row) error {
	a, err := row.Allocated()
	if err != nil || len(a.Devices) == 0 {
		return err
	}
	if letAgain(a, later) {
		return inventory.ErrTaken
	}
	err = h.deps.placer.Adopt(ctx, a)
	if err == nil || errors.Is(err, placement.ErrNoAdopter) || errors.Is(err, inventory.ErrTaken) {
		return err
	}
	return fmt.Errorf("%w: %w", errNotHere, err)
}

// letAgain reports whether a device of an allocation is in a later lease.
func letAgain(a gpu.Allocation, later []leasestore.Row) bool {
	return a.Node == "" && slices.ContainsFunc(later, func(row leasestore.Row) bool { // a node takes back what is in this lease
		b, err := row.Allocated()
		return err == nil && slices.ContainsFunc(a.Devices, func(device string) bool { return slices.Contains(b.Devices, device) })
	})
}

// errHeld is a lease that has ended, and whose devices are still to be taken back.
var errHeld = errors.New("its devices could not be taken back yet")

// resolve does what is next for a lease that no process runs, by its state and by where its devices are (locate):
//
//	             here                           on another host             in a later lease
//	allocating   taken back, ended              -                           -
//	active,      goes on; where it never can,   final record, ended,        ended
//	suspended    taken back, ended              held
//	ending       taken back, ended              ended, held                 ended
//	ended, held  taken back, held no more       held                        held no more
//
// What cannot be taken back is held (errHeld), and tried again. Of a process that is alone there is no other host: it takes back
// what it does not find, too. Any other error is of this moment: another try goes on from there. The reason is for a lease that
// ends because its devices are on another host; empty: that.
func (h *lessor) resolve(ctx context.Context, row leasestore.Row, where error, reason string) error {
	switch {
	case row.State == wire.StateEnding, row.State == wire.StateEnded:
		reason = cmp.Or(row.Reason, "its final record was written")
	case errors.Is(where, inventory.ErrTaken):
		reason = where.Error()
	case errors.Is(where, errNotHere):
		reason = cmp.Or(reason, where.Error())
		if err := h.closeBooks(ctx, row); err != nil {
			return err
		}
	default:
		err := where
		if err == nil {
			err = h.adopt(ctx, row)
		}
		if !isOver(err) {
			return err
		}
		reason = err.Error()
	}
	return h.giveBack(ctx, row, where, reason)
}

// giveBack ends a lease that no process runs in the two steps of expire, and has its devices taken back where they can be.
func (h *lessor) giveBack(ctx context.Context, row leasestore.Row, where error, reason string) error {
	a, err := row.Allocated()
	if err != nil {
		return err
	}
	if row.State != wire.StateEnded {
		h.deps.log.Warn("lease that does not run is ended", "lease", row.ID, "channel", row.Channel, "reason", reason)
		if err := h.store.Leases.SetState(ctx, a.LeaseID, row.Term, leasestore.Ending, reason, cmp.Or(row.EndedAt, time.Now().Unix())); err != nil {
			return err
		}
	}
	var held error
	switch {
	case errors.Is(where, inventory.ErrTaken): // they were taken back
	case errors.Is(where, errNotHere) && h.deps.tenure != nil:
		held = where
	default:
		held = h.release(ctx, a)
	}
	err = h.store.Leases.SetEnded(ctx, a.LeaseID, row.Term, reason, held != nil)
	if err != nil || held == nil {
		return err
	}
	h.deps.log.Warn("devices of an ended lease could not be taken back: it is tried again", "lease", row.ID, "error", held)
	return fmt.Errorf("lease %s: %w: %w", row.ID, errHeld, held)
}

// closeBooks states the final record of a lease whose devices are on another host. Nothing is billed for the time that nobody
// metered. What a node meters it signs itself, and what must not be signed here is not.
func (h *lessor) closeBooks(ctx context.Context, row leasestore.Row) error {
	a, err := row.Allocated()
	if err != nil || a.Node != "" {
		return err
	}
	last, err := h.store.Records.Last(ctx, a.LeaseID)
	if err != nil || last != nil && last.Final {
		return err
	}
	s, err := h.channel(ctx, row)
	if err != nil {
		return err
	}
	l, err := h.rebuild(ctx, row, s, a, last)
	if err == nil {
		err = h.mayGoOn(ctx, l, row)
	}
	switch {
	case isOver(err):
		return nil
	case err != nil:
		return err
	}
	l.meter.Pause()
	if err = l.record(ctx, true); l.muted.Load() {
		return nil
	}
	return err
}

// release takes the devices of a lease back that does not run any more, and is cut off
// when others may do so.
func (h *lessor) release(ctx context.Context, a gpu.Allocation) error {
	call, cancel := context.WithTimeout(ctx, h.deps.timing.callTimeout)
	defer cancel()
	if h.deps.tenure != nil {
		defer context.AfterFunc(h.deps.tenure(), cancel)()
	}
	return h.deps.placer.Release(call, a)
}

// overError is why a lease can go on nowhere and never: it is ended. Any other
// error of adopt is of this moment or of this host, and ends nothing.
type overError string

func (e overError) Error() string { return string(e) }

func isOver(err error) bool {
	var over overError
	return errors.As(err, &over) || errors.Is(err, placement.ErrNoAdopter) || errors.Is(err, leasestore.ErrRolledBack)
}

// adopt goes on with a lease whose devices are here.
func (h *lessor) adopt(ctx context.Context, row leasestore.Row) error {
	if row.State == wire.StateAllocating {
		return overError("it was not allocated yet")
	}
	a, err := row.Allocated()
	if err != nil {
		return err
	}
	last, err := h.store.Records.Last(ctx, a.LeaseID)
	if err != nil {
		return err
	}
	if last != nil && last.Final {
		return overError("its final record was written")
	}
	s, err := h.channel(ctx, row)
	if err != nil {
		return err
	}
	if placement.ForOneRequest(a) {
		return overError("it was one request's, which ended with the program")
	}
	over := h.overOn(s)
	if over != "" && a.Node == "" {
		return overError(over)
	}
	l, err := h.rebuild(ctx, row, s, a, last)
	if err != nil {
		return err
	}
	if err := h.mayGoOn(ctx, l, row); err != nil {
		return err
	}
	if l.unsure = l.meter != nil && row.State == wire.StateActive; l.unsure {
		l.meter.Pause()
	}
	if err := h.launch(l, leasestore.State(row.State), s, last); err != nil || over == "" {
		return err
	}
	h.endSoon(l, over) // when its node has told the rest
	return nil
}

// overOn says why no lease goes on on a channel: it closes, or who has the key that
// it pays can close it below what was vouchered. It is empty while one may.
func (h *lessor) overOn(s channel.State) string {
	if s.Status != channel.Open {
		return "its channel is " + s.Status.String()
	}
	if h.paidTo != (common.Address{}) && s.Terms.Payee != h.paidTo {
		return fmt.Sprintf("its channel pays %s, and this provider's key is %s now", s.Terms.Payee, h.paidTo)
	}
	return ""
}

// mayGoOn refuses to sign on for a lease whose later records this database has
// forgotten, or whose records another key than ours signs: no renter would take
// what we sign.
func (h *lessor) mayGoOn(ctx context.Context, l *lease, row leasestore.Row) error {
	if row.Command == leasestore.ErrRolledBack.Error() || l.muted.Load() {
		return leasestore.ErrRolledBack // another gateway knows it, or the chain
	}
	if !l.metersHere() {
		return nil // its node signs, and knows what it signed
	}
	key := l.recorder.Signer()
	if bound := row.SigningKey(*l.offer); bound != key {
		return overError(fmt.Sprintf("its records are signed with metering key %s, and this host has %s now", bound, key))
	}
	return h.unforked(ctx, l)
}

// unforked is leasestore.ErrRolledBack where more was signed of a lease than its row knows.
func (h *lessor) unforked(ctx context.Context, l *lease) error {
	mark, err := h.deps.marks.Get(ctx, l.recorder.Signer(), l.id)
	if err != nil || mark.Sequence == 0 {
		return err
	}
	last, _ := l.recorder.Last()
	newest := last
	if l.draft != nil {
		newest = l.draft.Record
	}
	switch {
	case mark.Sequence > newest.Sequence,
		mark.Sequence == newest.Sequence && mark.Digest != l.recorder.Digest(newest),
		mark.Sequence == last.Sequence && mark.Digest != l.recorder.Digest(last):
		return leasestore.ErrRolledBack
	}
	return nil
}

// rebuild is a lease as its row and its last record left it.
func (h *lessor) rebuild(ctx context.Context, row leasestore.Row, s channel.State, a gpu.Allocation, last *metering.SignedRecord) (*lease, error) {
	offer, err := h.store.Offers.Get(ctx, common.HexToHash(row.Offer))
	if err != nil {
		return nil, err
	}
	l, err := h.newLease(row, s, offer, a, last)
	if err == nil && l.metersHere() && forgets(s, l.owedBefore, last) {
		l.muted.Store(true)
	}
	if err == nil && row.Suspended > 0 {
		l.earlier = time.Unix(0, row.Suspended)
	}
	return l, err
}

// forgets reports a channel that is charged more than its lease's records say,
// with which they are charged in one step: some of them are forgotten.
func forgets(s channel.State, before uint256.Int, last *metering.SignedRecord) bool {
	if last != nil {
		before = last.Owed
	}
	return s.Spent.Gt(&before)
}

// endSoon has a lease end, once, and does not wait for it.
func (h *lessor) endSoon(l *lease, reason string) {
	if l.ending.Swap(true) {
		return
	}
	go func() {
		if err := l.end(h.life, stopRequest{reason: reason}); err != nil {
			h.deps.log.Error("lease could not be ended", "lease", l.id, "error", err)
		}
	}()
}
