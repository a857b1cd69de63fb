package sdk

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
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
	store    leaseStore

	// channel is the channel of a lease, and remote what a gateway has of one that
	// a node meters.
	channel   func(ctx context.Context, row leaseRow) (channel.State, error)
	remote    func(row leaseRow, terms metering.Lease, node string, meter common.Address, last *metering.SignedRecord) (*remoteLease, error)
	owing     func(ctx context.Context, payer common.Address) ([]channel.State, error) // the channels on which a payer owes; nil: it is not known
	share     func(ctx context.Context, lease common.Hash) (*uint256.Int, error)       // what of its payer's credit a lease has; nil: it is not told
	allocated func(channel common.Hash)                                                // hears that a channel's lease has its devices; may be nil
	prepaid   func(*lease) error                                                       // makes a lease one that is paid in advance, if it is; nil: none is

	sick inventory.Quarantine // of the devices of the source, for who asks how they are

	life   context.Context // leases run until it ends
	finish func()

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
			l.wake()
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

// running returns the lease that runs on a channel, or nil.
func (h *lessor) running(channelID common.Hash) *lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.leases[channelID]
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
// releases what was allocated.
func (h *lessor) grant(ctx context.Context, row leaseRow, s channel.State, offer wire.SignedOffer) (*lease, error) {
	id := common.HexToHash(row.ID)
	if err := h.store.insert(ctx, row); err != nil {
		return nil, err
	}
	fault.Point(fault.LeaseWritten)
	// A renter that hangs up must not leave a half-made allocation behind.
	later := context.WithoutCancel(ctx) // what a failure leaves is undone also where its time was up
	call, cancel := context.WithTimeout(later, h.deps.timing.callTimeout)
	defer cancel()
	a, meter, err := h.deps.placer.place(call, placement{gpu.Request{LeaseID: id, Payer: s.Terms.Payer, GPUs: row.GPUs, Term: row.Term}, s, offer})
	if err == nil && len(a.Devices) != row.GPUs {
		err = errors.Join(fmt.Errorf("allocator gave %d devices to lease %s, %d were asked for", len(a.Devices), id, row.GPUs),
			h.release(later, a))
	}
	if err != nil {
		return nil, errors.Join(err, h.notAllocated(later, row))
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
		err = h.store.activate(call, row)
	}
	if err != nil {
		return nil, errors.Join(err, h.release(later, a)) // the row says that nothing is metered
	}
	fault.Point(fault.LeaseActivated)
	l, err := h.newLease(row, s, offer, a, nil)
	if err != nil {
		return nil, errors.Join(err, h.giveBack(call, row, a, "not started"))
	}
	if l.remote == nil && l.read == nil {
		l.opened = make(chan struct{})
	}
	err = h.launch(l, leaseActive, s, nil)
	switch {
	case errors.Is(err, gpu.ErrNoCapacity):
		h.deps.accounts.leave(l)
		return nil, errors.Join(err, h.giveBack(call, row, a, err.Error()))
	case errors.Is(err, errMetered): // and not given back: that would take it from who has it
		h.deps.accounts.leave(l)
		return nil, errors.Join(err, h.store.setEnded(call, id, row.Term, err.Error(), false))
	}
	if err != nil || l.opened == nil {
		return l, err // after another error the next process takes the lease up
	}
	// Nobody is told how the devices are reached before their first readings, from which they are billed on.
	select {
	case <-l.opened:
	case <-call.Done():
	}
	return l, nil
}

// notAllocated has it on disk that a lease never began.
func (h *lessor) notAllocated(ctx context.Context, row leaseRow) error {
	write, cancel := context.WithTimeout(ctx, h.deps.timing.callTimeout)
	defer cancel()
	return h.store.setEnded(write, common.HexToHash(row.ID), row.Term, "not allocated", false)
}

// newLease builds a lease: fresh, or as its last record and the meter's state
// left it.
func (h *lessor) newLease(row leaseRow, s channel.State, offer wire.SignedOffer, a gpu.Allocation, last *metering.SignedRecord) (*lease, error) {
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
		id: a.LeaseID, terms: s.Terms, offer: h.store.offers.one(offer), price: price, credit: credit, allocation: a, owedBefore: before,
		startedAt: row.StartedAt, term: row.Term, done: make(chan struct{}), deps: h.deps,
	}
	l.view.stream, l.view.reason = uint64(row.Stream), row.Reason
	if l.binding, err = row.binding(); err != nil {
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
		l.remote, err = h.remote(row, terms, a.Node, row.meter(offer), last)
		return l, err
	}
	saved, record, pending, err := row.metered(last)
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
	if l.recorder, err = metering.NewRecorder(terms, h.signer(row.meter(offer)), record); err != nil || h.prepaid == nil {
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
func (h *lessor) launch(l *lease, state leaseState, s channel.State, last *metering.SignedRecord) error {
	l.view = leaseView{state: state, reason: l.view.reason, version: 1, stream: l.view.stream, reserved: l.view.reserved, owed: l.owedBefore, deposit: s.Deposit}
	l.view.hear(s, l.deps.row)
	if last != nil {
		l.view.sequence, l.view.owed, l.view.nanos = last.Sequence, last.Owed, last.Nanos
	}
	l.view.ask(state, l.view.reason)
	if state == leaseSuspended && l.meter != nil {
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
		h.deps.accounts.join(l, owing)
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
	if l.remote == nil {
		device, other := h.meter(l.allocation.Devices, l.id)
		if other != nil && (forOneRequest(l.allocation) || forOneRequest(other.allocation)) {
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
		if other.remote != nil || other.id == but || other.ending.Load() || other.lost.Load() {
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
	h.deps.accounts.leave(l)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leases[l.terms.ID()] == l { // it may have come back here meanwhile
		delete(h.leases, l.terms.ID())
	}
}

// takeUp goes on with the leases of an earlier run.
func (h *lessor) takeUp(ctx context.Context) error {
	rows, err := h.store.unfinished(ctx)
	if err != nil {
		return fmt.Errorf("leases of the last run: %w", err)
	}
	for i, row := range rows {
		again := letAgain(row, rows[i+1:])
		err := error(overError("its devices are in a later lease"))
		if !again || row.State == wire.StateEnding {
			err = h.adopt(ctx, row)
		}
		switch {
		case err == nil:
			continue
		case !isOver(err) && !errors.Is(err, errNotHere):
			return fmt.Errorf("lease %s of the last run could not be taken up, nothing of it is lost: start again: %w", row.ID, err)
		}
		h.deps.log.Warn("lease of the last run is ended", "lease", row.ID, "reason", err)
		if again {
			err = h.store.setEnded(ctx, common.HexToHash(row.ID), row.Term, err.Error(), false)
		} else {
			err = h.abandon(ctx, row, err.Error())
		}
		if err != nil {
			return fmt.Errorf("ending lease %s of the last run: %w", row.ID, err)
		}
	}
	return h.recoverHeld(ctx)
}

// letAgain reports whether a device of a lease is in one that began later: it was
// given back, and to do so once more would take it from the next renter.
func letAgain(row leaseRow, later []leaseRow) bool {
	a, err := row.allocation()
	if err != nil || a.Node != "" { // a node takes back what is in this lease
		return false
	}
	for _, other := range later {
		b, err := other.allocation()
		if err == nil && slices.ContainsFunc(a.Devices, func(device string) bool { return slices.Contains(b.Devices, device) }) {
			return true
		}
	}
	return false
}

// recoverHeld takes back what could not be when its lease ended.
func (h *lessor) recoverHeld(ctx context.Context) error {
	rows, err := h.store.stillHeld(ctx)
	if err != nil {
		return fmt.Errorf("devices that an ended lease still holds: %w", err)
	}
	for _, row := range rows {
		if row.atNode() {
			continue // nodes.collect asks for it
		}
		if err := h.recover(ctx, row); err != nil {
			h.deps.log.Error("devices of an ended lease could not be taken back: it is tried again at the next start", "lease", row.ID, "error", err)
		}
	}
	return nil
}

// recover takes the devices of an ended lease back, if they are here.
func (h *lessor) recover(ctx context.Context, row leaseRow) error {
	a, err := row.allocation()
	if err != nil {
		return err
	}
	if err := h.reachable(ctx, a); errors.Is(err, inventory.ErrTaken) {
		return h.store.setHeld(ctx, row.ID, 0)
	} else if err != nil {
		return err
	}
	if err := h.release(ctx, a); err != nil {
		return err
	}
	return h.store.setHeld(ctx, row.ID, 0)
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
	return errors.As(err, &over) || errors.Is(err, errNoAdopter) || errors.Is(err, errRolledBack)
}

// reachable is errNotHere where an allocation's devices cannot be taken up here.
func (h *lessor) reachable(ctx context.Context, a gpu.Allocation) error {
	if len(a.Devices) == 0 {
		return nil
	}
	if err := h.deps.placer.Adopt(ctx, a); err != nil && !errors.Is(err, errNoAdopter) {
		return fmt.Errorf("%w: %w", errNotHere, err)
	}
	return nil
}

// adopt goes on with a lease.
func (h *lessor) adopt(ctx context.Context, row leaseRow) error {
	id := common.HexToHash(row.ID)
	switch leaseState(row.State) {
	case leaseAllocating:
		return overError("it was not allocated yet")
	case leaseEnding:
		return overError(cmp.Or(row.Reason, "its final record was written"))
	}
	last, err := h.store.last(ctx, id)
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
	a, err := row.allocation()
	if err != nil {
		return err
	}
	if forOneRequest(a) {
		return overError("it was one request's, which ended with the program")
	}
	over := h.overOn(s)
	if over != "" && a.Node == "" {
		return overError(over)
	}
	if err := h.deps.placer.Adopt(ctx, a); err != nil {
		return fmt.Errorf("%w: %w", errNotHere, err)
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
	if err := h.launch(l, leaseState(row.State), s, last); err != nil || over == "" {
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
func (h *lessor) mayGoOn(ctx context.Context, l *lease, row leaseRow) error {
	if row.Command == errRolledBack.Error() || l.muted.Load() {
		return errRolledBack // another gateway knows it, or the chain
	}
	if l.remote != nil {
		return nil // its node signs, and knows what it signed
	}
	key := l.recorder.Signer()
	if bound := row.meter(*l.offer); bound != key {
		return overError(fmt.Sprintf("its records are signed with metering key %s, and this host has %s now", bound, key))
	}
	return h.unforked(ctx, l)
}

// unforked is errRolledBack where more was signed of a lease than its row knows.
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
		return errRolledBack
	}
	return nil
}

var errNoAdopter = errors.New("the allocator cannot adopt it")

// errNotHere is a lease whose devices cannot be taken up here.
var errNotHere = errors.New("its devices cannot be taken up here")

// rebuild is a lease as its row and its last record left it.
func (h *lessor) rebuild(ctx context.Context, row leaseRow, s channel.State, a gpu.Allocation, last *metering.SignedRecord) (*lease, error) {
	offer, err := h.store.offer(ctx, common.HexToHash(row.Offer))
	if err != nil {
		return nil, err
	}
	l, err := h.newLease(row, s, offer, a, last)
	if err == nil && l.remote == nil && forgets(s, l.owedBefore, last) {
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

// abandon ends a lease that nobody runs.
func (h *lessor) abandon(ctx context.Context, row leaseRow, reason string) error {
	a, err := row.allocation()
	if err != nil {
		return err
	}
	_ = h.reachable(ctx, a) // so that Release knows its devices; it is released whether or not this works
	return h.giveBack(ctx, row, a, reason)
}

// giveBack ends a lease in the two steps of expire.
func (h *lessor) giveBack(ctx context.Context, row leaseRow, a gpu.Allocation, reason string) error {
	id := common.HexToHash(row.ID)
	if err := h.store.setState(ctx, id, row.Term, leaseEnding, reason, cmp.Or(row.EndedAt, time.Now().Unix())); err != nil {
		return err
	}
	err := h.release(ctx, a)
	if err != nil && a.Node == "" {
		return err
	}
	if err != nil {
		h.deps.log.Warn("lease ends without its node, which is asked again", "lease", row.ID, "node", a.Node, "error", err)
	}
	return h.store.setEnded(ctx, id, row.Term, reason, err != nil)
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
