package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/run"
	"github.com/gpupay/gpupay/sdk/internal/sharing"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Manager runs leases and takes them up again after a restart: a provider's, or those that a node meters for its gateways.
type Manager struct {
	Deps     Deps
	MeterKey metering.Signer   // signs usage records
	PastKeys []metering.Signer // sign those of leases from before MeterKey
	Binder   channel.Signer    // the payee's key, which binds meters to leases; nil: a node, whose gateways have it
	PaidTo   common.Address    // whom channels must pay that leases go on on; zero: whomever
	Store    leasestore.Store

	// Channel is the channel of a lease, and Remote what a gateway has of one that a node meters.
	Channel   func(ctx context.Context, row leasestore.Row) (channel.State, error)
	Remote    func(l *Lease, row leasestore.Row, terms metering.Lease, meter common.Address, last *metering.SignedRecord) (Engine, error)
	Owing     func(ctx context.Context, payer common.Address) ([]channel.State, error) // the channels on which a payer owes; nil: it is not known
	Share     func(ctx context.Context, lease common.Hash) (*uint256.Int, error)       // what of its payer's credit a lease has; nil: it is not told
	Allocated func(channel common.Hash)                                                // hears that a channel's lease has its devices; may be nil
	Scheme    func(*Lease) error                                                       // has a lease, new or restored, run as it is paid; nil: on its payer's credit

	Offered inventory.Offered // the devices of the source, for who asks how they are

	Services sharing.Services // devices that leases share

	run.Works // leases run until it ends
	Finish    func()

	Busy   keyed.Mutex // by lease: it begins, or is resolved
	mu     sync.Mutex
	leases map[common.Hash]*Lease // running, by channel
	undone sync.Map               // leases that did not begin, by what a row names them: see undo

	Forgotten *placement.Forgotten // leases that the database has lost
}

// Init makes a manager that has no lease yet, and knows which devices rest: see keepRests.
func (h *Manager) Init(ctx context.Context) {
	h.leases = make(map[common.Hash]*Lease)
	running := func() map[common.Hash]bool {
		ids := make(map[common.Hash]bool)
		for _, l := range h.All() {
			ids[l.ID] = true
		}
		return ids
	}
	h.Forgotten = &placement.Forgotten{Placer: h.Deps.Placer, Store: h.Store, Busy: &h.Busy, Running: running, Go: h.Go, Within: h.Deps.Timing.CallTimeout, Tenure: h.Deps.Tenure, Log: h.Deps.Log, Pace: rate.Sometimes{Interval: h.Deps.Timing.CallTimeout}}
	life, end := context.WithCancel(context.Background())
	h.Live(life)
	h.Deps.probing = make(chan struct{}, placement.AskedAtOnce)
	h.Deps.leaving = make(chan struct{}, 1024) // as many as the store commits at once
	h.Deps.sampling = sampling.New(h.Deps.Source, h.Deps.Clock)
	_ = h.Services.Sample(h.Deps.sampling) // each was configured as its meter takes it
	h.Finish = func() {
		end()
		h.Deps.sampling.Close()
		for _, l := range h.All() {
			l.Inbox.Wake()
		}
	}
	h.keepRests(ctx)
}

// Close stops all leases, which go on in the next process, and waits for all work. It is false the second time.
func (h *Manager) Close() bool { return h.Shut(func() { h.Finish() }) }

// Running returns the lease that runs on a channel, or nil.
func (h *Manager) Running(channelID common.Hash) *Lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.leases[channelID]
}

// Runs is the lease of a row, if it runs.
func (h *Manager) Runs(row leasestore.Row) *Lease {
	l := h.Running(common.HexToHash(row.Channel))
	if l == nil || l.ID.Hex() != row.ID {
		return nil
	}
	return l
}

// All are those that run.
func (h *Manager) All() []*Lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Values(h.leases))
}

// Start allocates devices and begins a lease on an open channel. The row is on disk before the first command runs, so that a crash in
// between still releases what was allocated. may is asked in the row's transaction.
func (h *Manager) Start(ctx context.Context, row leasestore.Row, s channel.State, offer wire.SignedOffer, may func(*sqlx.Tx) error) (*Lease, error) {
	id := common.HexToHash(row.ID)
	begun := sync.OnceFunc(h.Busy.Lock(id))
	defer begun()
	if err := h.Store.Leases.Guarded(may).Insert(ctx, row); err != nil {
		return nil, err
	}
	fault.Point(fault.LeaseWritten)
	// A renter that hangs up must not leave a half-made allocation behind.
	later := context.WithoutCancel(ctx) // what a failure leaves is undone also where its time was up
	call, cancel := context.WithTimeout(later, h.Deps.Timing.Begins())
	defer cancel()
	a, meter, err := h.allocate(call, row, s, offer)
	if err != nil {
		return nil, errors.Join(err, h.notAllocated(later, row, errors.Is(err, gpu.ErrHeld)))
	}
	fault.Point(fault.LeaseAllocated)
	if h.Allocated != nil {
		h.Allocated(s.ID)
	}
	l, err := h.place(call, &row, s, offer, a, meter)
	if err != nil && a.Node == "" {
		return nil, errors.Join(err, h.release(later, a)) // the row says that nothing is metered
	}
	if err == nil {
		err = h.launch(l, leasestore.Active, s, nil, func() error { return h.Store.Leases.Activate(call, id, row.Term) })
	}
	switch {
	case errors.Is(err, ErrMetered) && !errors.Is(err, gpu.ErrNoCapacity): // and not given back: that would take it from who has it
		return nil, errors.Join(err, h.Store.Leases.SetEnded(call, id, row.Term, err.Error(), false))
	case err != nil: // the row may say that it has begun
		return nil, errors.Join(err, h.undo(later, row, nil))
	case l.opened == nil:
		return l, nil
	}
	begun() // it runs; where another gateway took it, nobody waits for its readings
	// Nobody is told how the devices are reached before their first readings, from which they are billed on.
	select {
	case <-l.opened:
	case <-call.Done():
	}
	return l, nil
}

// place has it on disk what was allocated to a lease, which begins when it is launched.
func (h *Manager) place(ctx context.Context, row *leasestore.Row, s channel.State, offer wire.SignedOffer, a gpu.Allocation, meter common.Address) (*Lease, error) {
	err := row.Allocate(&a)
	if err == nil {
		err = row.Bind(ctx, h.Binder, s.ID, offer, cmp.Or(meter, h.MeterKey.Address()))
	}
	if err == nil {
		err = h.Store.Leases.Place(ctx, *row)
	}
	if err != nil {
		return nil, err
	}
	l, err := h.newLease(*row, s, offer, a, nil)
	if err == nil && l.MetersHere() && l.Read == nil {
		l.opened = make(chan struct{})
	}
	return l, err
}

// allocate has a lease's devices chosen, as many as were asked for and of the class that its offer sells. What was given and is wrong is
// taken back, also where ctx is over; if that fails the error is gpu.ErrHeld.
func (h *Manager) allocate(ctx context.Context, row leasestore.Row, s channel.State, offer wire.SignedOffer) (gpu.Allocation, common.Address, error) {
	id := common.HexToHash(row.ID)
	req := gpu.Request{LeaseID: id, Payer: s.Terms.Payer, GPUs: row.GPUs, Term: row.Term}
	if offer.Class != nil {
		h.Offered.Look(ctx, h.Deps.Source) // what came since the start is let, too
		req.Class, req.Devices = offer.Class.ID, inventory.Names(inventory.Those(h.Offered.List(), offer.Class.Has))
	}
	a, meter, err := h.Deps.Placer.Place(ctx, placement.Request{Request: req, Channel: s, Offer: offer})
	if err != nil {
		return a, meter, err
	}
	if err = placement.Fits(a, req); err != nil {
		if held := h.release(context.WithoutCancel(ctx), a); held != nil {
			err = fmt.Errorf("%w, and %w: %w", err, gpu.ErrHeld, held)
		}
	}
	return a, meter, err
}

// notAllocated has it on disk that a lease never began.
func (h *Manager) notAllocated(ctx context.Context, row leasestore.Row, held bool) error {
	write, cancel := context.WithTimeout(ctx, h.Deps.Timing.CallTimeout)
	defer cancel()
	return h.Store.Leases.SetEnded(write, common.HexToHash(row.ID), row.Term, "not allocated", held)
}

// newLease builds a lease: fresh, or as its last record and the meter's state left it.
func (h *Manager) newLease(row leasestore.Row, s channel.State, offer wire.SignedOffer, a gpu.Allocation, last *metering.SignedRecord) (*Lease, error) {
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
	l := New(Spec{
		ID: a.LeaseID, Terms: s.Terms, Offer: h.Store.Offers.Shared(offer), Price: price, MaxDebt: credit, Credit: Postpaid{}, Allocation: a, OwedBefore: before,
		startedAt: row.StartedAt, Term: row.Term, Deps: h.Deps,
	}, View{Stream: uint64(row.Stream), Reason: row.Reason})
	if l.Binding, err = row.MeterBinding(); err != nil {
		return nil, err
	}
	if h.Deps.Tenure != nil && a.Node == "" {
		l.Fence.Tenure = h.Deps.Tenure()
	}
	l.Deps.Timing = l.Deps.Timing.of(offer.Offer)
	terms := offer.Meters(metering.Lease{
		ID: a.LeaseID, ChannelID: s.ID, OfferHash: offer.Hash, ChainID: s.Terms.ChainID, Escrow: s.Terms.Escrow,
		Price: price, OwedBefore: before, Devices: a.Devices,
	})
	if a.Node != "" {
		l.Inbox.Notify = make(chan struct{}, 1)
		l.Remote, err = h.Remote(l, row, terms, row.SigningKey(offer), last)
		return l, err
	}
	saved, record, pending, err := row.Resume(last)
	if err != nil {
		return nil, err
	}
	l.Records.draft = pending
	if err = l.meterOf(h.Services, a, offer.Offer, saved); err != nil {
		return nil, err
	}
	l.health.watchdog.Limit = time.Duration(offer.MaxGap) * time.Millisecond
	l.health.devices = inventory.NewWatch(a.Devices, l.health.watchdog.Limit, h.Deps.Sick)
	if l.Records.recorder, err = usage.NewRecorder(terms, h.Signer(row.SigningKey(offer)), record); err != nil || h.Scheme == nil {
		return l, err
	}
	return l, h.Scheme(l)
}

// launch lets a lease run, from where its last record is. A new one begins on disk when nothing else can fail that needs one.
func (h *Manager) launch(l *Lease, state leasestore.State, s channel.State, last *metering.SignedRecord, begins func() error) error {
	reason := l.Status.Look().Reason
	l.Status.Update(func(v *View) {
		*v = View{State: state, Reason: reason, Version: 1, Stream: v.Stream, Reserved: v.Reserved, Owed: l.OwedBefore, Deposit: s.Deposit}
		v.hear(s, l.Deps.Row)
		v.Shows(last)
		v.Ask(state, reason)
	})
	l.Devices.Given.Store(l.MetersHere() && l.slots == nil && (state == leasestore.Active || state == leasestore.Suspended && reason == ReasonDead)) // a node suspends by itself; of what is dead the command may have failed
	if state == leasestore.Suspended && l.Meter != nil {
		l.Meter.Pause()
		switch reason {
		case ReasonUnmetered:
			l.health.watchdog.Expire() // until its devices are read
		case ReasonDead:
			l.health.liveness.Dead.Store(h.Deps.Liveness != nil) // until it is asked
		}
	}
	if h.Owing != nil {
		owing, err := h.Owing(h.Lifetime(), s.Terms.Payer)
		if err != nil {
			return err
		}
		l.Balance.join(owing)
	}
	if err := h.admit(l, begins); err != nil {
		l.Balance.Leave() // it will not run, and takes none of the credit of its payer's others
		return err
	}
	l.run(h.Lifetime(), h.Done)
	h.Deps.Log.Info("lease started", "lease", l.ID, "channel", s.ID, "payer", s.Terms.Payer, "devices", l.Allocation.Devices, "state", string(state))
	return nil
}

// admit takes a lease among those that run here, its slots and its share of its payer's credit, or leaves nothing of it.
func (h *Manager) admit(l *Lease, begins func() error) error {
	if h.Share != nil {
		share, err := h.Share(h.Lifetime(), l.ID)
		if err != nil {
			return err
		}
		l.Balance.Share.Store(share)
	}
	if err := l.join(); err != nil {
		return err
	}
	if err := begins(); err != nil || !h.Begin() {
		l.leave()
		return cmp.Or(err, error(ErrClosed))
	}
	if err := h.Enlist(l); err != nil {
		l.leave()
		h.Done()
		return err
	}
	return nil
}

// ErrMetered is a device that another running lease has: its time would be billed twice.
var ErrMetered = errors.New("it is metered for lease")

// Enlist has a lease run here. One meter is on each device, whatever the allocator says; of those that a node meters the node sees to it. A device that
// the allocator gave to both leases stays the other's. Where one of them is a metered request: ErrNoCapacity, and the device is given back.
func (h *Manager) Enlist(l *Lease) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l.MetersHere() && l.slots == nil {
		device, other := h.meter(l.Allocation.Devices, l.ID)
		if other != nil && (placement.ForOneRequest(l.Allocation) || placement.ForOneRequest(other.Allocation)) {
			return fmt.Errorf("%w: device %s of lease %s: %w %s", gpu.ErrNoCapacity, device, l.ID, ErrMetered, other.ID)
		}
		if other != nil {
			return fmt.Errorf("device %s of lease %s: %w %s", device, l.ID, ErrMetered, other.ID)
		}
	}
	h.leases[l.Terms.ID()] = l
	return nil
}

// meter is the lease, but for one, that has one of some devices here, and which; nil if none has. The caller holds mu.
func (h *Manager) meter(devices []string, but common.Hash) (string, *Lease) {
	for _, other := range h.leases {
		if !other.MetersHere() || other.slots != nil || other.ID == but || other.Ending.Load() || other.Fence.Lost.Load() {
			continue
		}
		if i := slices.IndexFunc(devices, func(d string) bool { return slices.Contains(other.Allocation.Devices, d) }); i >= 0 {
			return devices[i], other
		}
	}
	return "", nil
}

// CheckFree is ErrNoCapacity where a lease that runs here and is not the route's has one of the devices, whatever the allocator knows, or
// one that the database has forgotten.
func (h *Manager) CheckFree(ctx context.Context, devices []string, route inventory.Route) error {
	h.mu.Lock()
	device, other := h.meter(devices, common.Hash{})
	h.mu.Unlock()
	if other != nil && !route(other.ID) {
		return fmt.Errorf("%w: device %s: %w %s", gpu.ErrNoCapacity, device, ErrMetered, other.ID)
	}
	return h.Forgotten.Vacant(ctx, devices)
}

// Drop makes room for another lease on the channel.
func (h *Manager) Drop(l *Lease) {
	if !l.Guarded.Load() || !l.MetersHere() {
		l.Balance.Leave()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leases[l.Terms.ID()] == l { // it may have come back here meanwhile
		delete(h.leases, l.Terms.ID())
	}
}

func (e OverError) Error() string { return string(e) }

// Load is a lease as its row and its last record left it.
func (h *Manager) Load(ctx context.Context, row leasestore.Row, s channel.State, a gpu.Allocation, last *metering.SignedRecord) (*Lease, error) {
	offer, err := h.Store.Offers.Get(ctx, common.HexToHash(row.Offer))
	if err != nil {
		return nil, err
	}
	l, err := h.newLease(row, s, offer, a, last)
	if err == nil && l.MetersHere() && leasestore.Forgets(s, l.OwedBefore, last) {
		l.Fence.Aborted.Store(true)
	}
	if err == nil && row.Suspended > 0 {
		l.Suspension.Earlier = time.Unix(0, row.Suspended)
	}
	return l, err
}

// EndSoon has a lease end, once, and does not wait for it.
func (h *Manager) EndSoon(l *Lease, reason string) {
	if l.Ending.Swap(true) {
		return
	}
	go func() {
		if err := l.End(h.Lifetime(), Stop{Reason: reason}); err != nil {
			h.Deps.Log.Error("lease could not be ended", "lease", l.ID, "error", err)
		}
	}()
}

// Signer is the metering key of an address, and our newest one where that is not here.
func (h *Manager) Signer(meter common.Address) metering.Signer {
	for _, past := range h.PastKeys {
		if past.Address() == meter {
			return past
		}
	}
	return h.MeterKey
}

// ErrClosed refuses to begin a lease.
var ErrClosed = errors.New("the provider is closed")

// RunsAgain reports whether a lease that was let go runs here again.
func (h *Manager) RunsAgain(l *Lease) bool {
	now := h.Running(l.Terms.ID())
	return now != nil && now != l || l.Balance.account != nil && !l.Balance.account.Has(&l.Balance)
}

// GPUs looks at those that are offered here.
func (h *Manager) GPUs(ctx context.Context) inventory.GPUs {
	gpus := h.Offered.Look(ctx, h.Deps.Source)
	held, err := h.Store.Leases.StillHeld(ctx)
	held = slices.DeleteFunc(held, leasestore.Row.AtNode)
	forgotten, failed := h.Forgotten.StillHave(ctx)
	if err = errors.Join(err, failed); err != nil {
		gpus.Err = errors.Join(gpus.Err, fmt.Errorf("leases whose GPUs could not be taken back: %w", err))
	}
	gpus.Held = len(held) + forgotten
	return gpus
}
