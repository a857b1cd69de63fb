package slots

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/merkle"
	"github.com/gpupay/gpupay/metering/usage"
)

// What a [Meter] refuses.
var (
	ErrBusy    = errors.New("all slots are taken") // ask again later
	ErrLease   = errors.New("no such lease here")
	ErrID      = errors.New("request id was used before, or is too old")
	ErrRequest = errors.New("no such request runs")
	ErrRunning = errors.New("requests still run")
	ErrBoot    = errors.New("the host was rebooted")
)

// Config is what a meter measures: a service on devices that several leases share.
type Config struct {
	Share   metering.Share
	Devices []string      // UUIDs: all that each request uses, Share.GPUs of them
	Tick    time.Duration // as in usage.Config
	MaxGap  time.Duration // as in usage.Config
}

// Meter counts what leases owe for requests to one service. At most Share.Slots
// requests hold a slot at once, whatever times it is given, so that all leases
// together are never billed more than GPUs * the time that passed. It may be used by
// several goroutines at once.
type Meter struct {
	config Config

	mu     sync.Mutex
	booted bool // a reading has said which boot of the host this is
	boot   string
	busy   int   // slots that are taken
	freed  int64 // when one was given back last: none is taken before that
	newest int64 // stamp of the readings
	leases map[common.Hash]*lease
	order  []common.Hash // of their beginnings
	known  map[string]described
}

// described is what a source says of a device.
type described struct {
	source string
	device metering.Device
}

// lease is one lease's side of a meter.
type lease struct {
	meter   *usage.Meter // of the readings, for the evidence and for which of them bill
	health  health
	ids     ids
	running map[uint64]*request
	ended   []*request // well, and their devices were not read since; in the order of their ends
	waits   int64      // what those come to at most, ns of one GPU
	total   int64      // billed: ns of one GPU
	rest    uint32     // and parts of one, of which Share.Slots make a nanosecond
	part    part
	final   bool
	saved   State
}

// request is one that runs, or has ended and is not settled.
type request struct {
	metering.Request
	before  int64 // healthy time before From
	started bool  // readings have reached From, and before is known
}

// part is what the evidence of one cut says of requests.
type part struct {
	nanos     int64 // billed: ns of one GPU
	carried   uint32
	slotNanos int64
	more      uint64
	moreNanos int64
	requests  []metering.Request
	tree      merkle.Tree
}

// New starts a meter without leases.
func New(config Config) (*Meter, error) {
	if err := config.Share.Validate(); err != nil {
		return nil, err
	}
	if len(config.Devices) != int(config.Share.GPUs) {
		return nil, fmt.Errorf("%w: a request uses %d GPUs, and the service has %d", metering.ErrDevice, config.Share.GPUs, len(config.Devices))
	}
	config.Devices = slices.Clone(config.Devices)
	if _, err := config.meter(usage.State{}); err != nil {
		return nil, err
	}
	return &Meter{config: config, leases: make(map[common.Hash]*lease), known: make(map[string]described)}, nil
}

func (c Config) meter(s usage.State) (*usage.Meter, error) {
	return usage.Restore(usage.Config{Devices: c.Devices, Tick: c.Tick, MaxGap: c.MaxGap, Keep: -1}, s)
}

// ahead is by how much a stamp may be beyond the newest reading. Whoever takes a slot after
// another one gave it back is billed from there on: one stamp from the far future would
// have nobody billed.
const ahead = int64(time.Minute)

// State is what a lease's meter needs to go on after a restart: what it owed at its
// last cut. What was not cut then, and requests that ran, stand in no record and are
// not billed.
type State struct {
	Final   bool           `json:"final,omitempty"` // that cut was its last one
	Highest uint64         `json:"highest,string"`  // id so far
	Meter   usage.State    `json:"meter"`
	Rest    uint32         `json:"rest"` // as in metering.SlotEvidence
	Share   metering.Share `json:"share"`
	Total   int64          `json:"total,string"` // ns of one GPU
}

// Begin starts a lease at zero, or goes on where Save was. Have its devices read right
// after: no time before their next readings is billed to it.
func (m *Meter) Begin(id common.Hash, s State) error {
	m.mu.Lock()
	defer m.mu.Unlock()

	if m.leases[id] != nil {
		return fmt.Errorf("%w: lease %s is there already", ErrLease, id)
	}
	if s.Total < 0 || s.Rest >= m.config.Share.Slots {
		return fmt.Errorf("%w: lease %s was saved with %d ns and %d parts of one in %d", usage.ErrReading, id, s.Total, s.Rest, m.config.Share.Slots)
	}
	if s.Share.Shared() && s.Share != m.config.Share {
		return fmt.Errorf("%w: lease %s was saved with %d slots on %d GPUs, and the service has %d on %d", usage.ErrReading, id,
			s.Share.Slots, s.Share.GPUs, m.config.Share.Slots, m.config.Share.GPUs)
	}
	meter, err := m.config.meter(s.Meter)
	if err != nil {
		return fmt.Errorf("lease %s: %w", id, err)
	}
	for _, d := range m.known {
		if err := meter.Describe(d.source, d.device); err != nil {
			return err
		}
	}
	m.leases[id] = &lease{
		meter: meter, health: newHealth(len(m.config.Devices)), ids: ids{highest: s.Highest, floor: s.Highest},
		running: make(map[uint64]*request), total: s.Total, rest: s.Rest, part: part{carried: s.Rest}, final: s.Final, saved: s,
	}
	m.order = append(m.order, id)
	return nil
}

// Forget drops a lease none of whose requests run or wait for readings. What it used since
// its last cut is billed to nobody: make the final one before.
func (m *Meter) Forget(id common.Hash) error {
	m.mu.Lock()
	defer m.mu.Unlock()

	l, err := m.lease(id)
	if err != nil {
		return err
	}
	if n := len(l.running) + len(l.ended); n > 0 {
		return fmt.Errorf("%w or wait for readings: %d of lease %s", ErrRunning, n, id)
	}
	delete(m.leases, id)
	m.order = slices.DeleteFunc(m.order, func(other common.Hash) bool { return other == id })
	return nil
}

func (m *Meter) lease(id common.Hash) (*lease, error) {
	if l := m.leases[id]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrLease, id)
}

// Describe tells the meter who a device is, for the evidence of its leases.
func (m *Meter) Describe(source string, device metering.Device) error {
	m.mu.Lock()
	defer m.mu.Unlock()

	if !slices.Contains(m.config.Devices, device.UUID) {
		return fmt.Errorf("%w: %s is not in this service", metering.ErrDevice, device.UUID)
	}
	m.known[device.UUID] = described{source, device}
	for _, id := range m.order {
		if err := m.leases[id].meter.Describe(source, device); err != nil {
			return err
		}
	}
	return nil
}

// Observe counts a reading of one of the devices, for every lease, and bills the
// requests that ended before all devices were read. A reading of another boot is on
// another clock: begin with a new Meter then.
func (m *Meter) Observe(r metering.Reading) error {
	m.mu.Lock()
	defer m.mu.Unlock()

	i := slices.Index(m.config.Devices, r.Device)
	if i < 0 {
		return fmt.Errorf("%w: a reading of %s, which is not in this service", metering.ErrDevice, r.Device)
	}
	if m.booted && r.BootID != m.boot {
		return fmt.Errorf("%w: a reading of boot %.40q, after such of %.40q: its clock began anew, and requests of before cannot be measured on it", ErrBoot, r.BootID, m.boot)
	}
	m.booted, m.boot = true, r.BootID
	m.newest = max(m.newest, r.At.Mono)
	var errs []error
	for _, id := range m.order { // what one lease comes to holds up no other
		l := m.leases[id]
		in, err := l.meter.Observe(r)
		if err == nil {
			l.health.observe(i, r.At.Mono, in)
			err = m.settle(l)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("lease %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// Take has a request of a lease take a slot. id is what its client calls it, and is
// taken once; at is when it was accepted, no more than a minute after the newest reading.
// ErrBusy: there is no slot, and nothing happened.
func (m *Meter) Take(lease common.Hash, id uint64, at int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()

	l, err := m.lease(lease)
	if err != nil {
		return err
	}
	switch {
	case l.final:
		return fmt.Errorf("%w: lease %s", usage.ErrFinal, lease)
	case at < 0:
		return fmt.Errorf("%w: request %d of lease %s is stamped before the host's boot", usage.ErrReading, id, lease)
	case at > m.latest():
		return fmt.Errorf("%w: request %d of lease %s is stamped %s after the devices were read last: its clock is not theirs, or they are read no more",
			usage.ErrReading, id, lease, time.Duration(at-m.newest))
	case m.busy >= int(m.config.Share.Slots):
		return fmt.Errorf("%w: %d of %d", ErrBusy, m.busy, m.config.Share.Slots)
	case !l.ids.take(id):
		return fmt.Errorf("%w: request %d of lease %s", ErrID, id, lease)
	}
	m.busy++
	// Clocks are read before this lock is taken: whoever comes after an end holds no slot before it.
	l.running[id] = &request{Request: metering.Request{ID: id, From: max(at, m.freed)}}
	l.start()
	return nil
}

// latest is the last stamp that is believed; before the first reading it is any.
func (m *Meter) latest() int64 {
	if !m.booted || m.newest > math.MaxInt64-ahead {
		return math.MaxInt64
	}
	return m.newest + ahead
}

// NextID is an id that is free in a lease, for a client that names none.
func (m *Meter) NextID(lease common.Hash) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()

	l, err := m.lease(lease)
	if err != nil {
		return 0, err
	}
	if id := l.ids.next(); id != 0 {
		return id, nil
	}
	return 0, fmt.Errorf("%w: lease %s has used the last one", ErrID, lease)
}

// Give ends a request and gives its slot back. at is when its last byte was sent, or
// when it was aborted or failed, or reached a limit; one that is over a minute after the
// newest reading counts as that: no reading could bill the time up to it. A request is billed
// here, once, and not while it runs: what a record states is never taken back, and of one
// that fails nothing may be billed. What it may come to is in Due.
func (m *Meter) Give(lease common.Hash, id uint64, at int64, outcome metering.Outcome) error {
	m.mu.Lock()
	defer m.mu.Unlock()

	l, err := m.lease(lease)
	if err != nil {
		return err
	}
	r := l.running[id]
	if r == nil {
		return fmt.Errorf("%w: request %d of lease %s", ErrRequest, id, lease)
	}
	if !outcome.Known() {
		return fmt.Errorf("%w: request %d of lease %s ends %.20q", ErrRequest, id, lease, outcome)
	}
	delete(l.running, id)
	m.busy--
	r.Outcome, r.To = outcome, max(min(at, m.latest()), r.From)
	m.freed = max(m.freed, r.To)
	if outcome == metering.RequestFailed {
		return l.bill(m.config.Share, r.Request)
	}
	if l.begun(r); r.To <= l.health.upTo { // the others wait for readings
		return l.measure(m.config.Share, r, r.To)
	}
	l.ended, l.waits = append(l.ended, r), m.most(l.waits, r.To-r.From)
	return nil
}

// start notes the healthy time before each request, once readings have reached its
// beginning.
func (l *lease) start() {
	for _, r := range l.running {
		l.begun(r)
	}
}

func (l *lease) begun(r *request) {
	if !r.started && r.From <= l.health.upTo {
		r.before, _ = l.health.until(r.From) // where it is not known it is at most this: it bills less
		r.started = true
	}
}

// settle bills the requests whose ends the readings of all devices have reached.
func (m *Meter) settle(l *lease) error {
	l.start()
	var errs []error
	l.ended = slices.DeleteFunc(l.ended, func(r *request) bool {
		l.begun(r)
		if r.To > l.health.upTo {
			return false
		}
		errs = append(errs, l.measure(m.config.Share, r, r.To))
		return true
	})
	l.waits = 0
	for _, r := range l.ended {
		l.waits = m.most(l.waits, r.To-r.From)
	}
	return errors.Join(errs...)
}

// measure bills a request for the healthy time from its beginning up to a moment that
// readings have reached.
func (l *lease) measure(share metering.Share, r *request, to int64) error {
	if healthy, known := l.health.until(to); known && r.started {
		r.Nanos = max(0, healthy-r.before)
	}
	return l.bill(share, r.Request)
}

// bill adds a request to what the lease owes. Sums that no number holds add nothing.
func (l *lease) bill(share metering.Share, r metering.Request) error {
	nanos, rest, err := share.Bill(r.Nanos, l.rest)
	if err == nil && (l.total > math.MaxInt64-nanos || l.part.slotNanos > math.MaxInt64-r.Nanos) {
		err = fmt.Errorf("%w: it overflows", usage.ErrReading)
	}
	if err != nil {
		return fmt.Errorf("request %d of %d ns: %w", r.ID, r.Nanos, err)
	}
	l.total, l.rest = l.total+nanos, rest
	l.part.add(r, nanos)
	return nil
}

func (p *part) add(r metering.Request, nanos int64) {
	p.nanos, p.slotNanos = p.nanos+nanos, p.slotNanos+r.Nanos
	p.tree.Add(r.Encode())
	if len(p.requests) < metering.MaxRequests {
		p.requests = append(p.requests, r)
		return
	}
	if r.Nanos > 0 { // what bills is shown before what does not
		if i := slices.IndexFunc(p.requests, func(o metering.Request) bool { return o.Nanos == 0 }); i >= 0 {
			shown := p.requests[i]
			p.requests = append(slices.Delete(p.requests, i, i+1), r)
			r = shown
		}
	}
	p.more, p.moreNanos = p.more+1, p.moreNanos+r.Nanos
}

// Owed is what a lease has used, in nanoseconds of one GPU: of the requests that have
// ended, up to the readings of all devices. It never falls.
func (m *Meter) Owed(lease common.Hash) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()

	l, err := m.lease(lease)
	if err != nil {
		return 0, err
	}
	return l.total, nil
}

// Unsettled is how many requests of a lease are not billed yet: those that run, and those that
// ended and wait for readings. The final cut bills the latter up to the readings that there are.
func (m *Meter) Unsettled(lease common.Hash) (running, ended int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()

	l, err := m.lease(lease)
	if err != nil {
		return 0, 0, err
	}
	return len(l.running), len(l.ended), nil
}

// Due is what a lease owes at most if all its requests ended well now: for the
// decision whether it may take another slot, and in no record. Where it reaches the credit while
// requests run, end them with RequestLimit. It falls when a request fails, and when its
// time turns out not to be billed.
func (m *Meter) Due(lease common.Hash, now int64) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()

	l, err := m.lease(lease)
	if err != nil {
		return 0, err
	}
	due := l.waits
	for _, r := range l.running {
		due = m.most(due, now-r.From)
	}
	return sum(due, l.total), nil
}

// most adds to an amount what a request may come to at most, which is rounded up.
func (m *Meter) most(due, slotNanos int64) int64 {
	nanos, _, err := m.config.Share.Bill(max(0, slotNanos), m.config.Share.Slots-1)
	if err != nil {
		return math.MaxInt64
	}
	return sum(due, nanos)
}

// sum is that of two amounts, or the greatest that there is.
func sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// Busy is how many slots are taken.
func (m *Meter) Busy() int {
	m.mu.Lock()
	defer m.mu.Unlock()

	return m.busy
}

// Cut ends a stretch of a lease's metering and returns its evidence. Requests that
// run, or whose last readings are not there yet, are counted whole in a later one.
// final is for a lease that is over: it needs the devices read once more before,
// since it settles what has ended by the readings that there are, and refuses while
// requests run.
func (m *Meter) Cut(id common.Hash, final bool) (metering.Evidence, error) {
	m.mu.Lock()
	defer m.mu.Unlock()

	l, err := m.lease(id)
	if err != nil {
		return metering.Evidence{}, err
	}
	if final {
		if err := l.finish(m.config.Share); err != nil {
			return metering.Evidence{}, fmt.Errorf("lease %s: %w", id, err)
		}
	}
	e := l.meter.Cut()
	p := l.part
	e.Kind, e.Nanos, e.Total = metering.KindSlots, p.nanos, l.total
	e.Slots = &metering.SlotEvidence{
		Carried: p.carried, GPUs: m.config.Share.GPUs, More: p.more, MoreNanos: p.moreNanos, Requests: p.requests,
		Rest: l.rest, Root: p.tree.Root(), SlotNanos: p.slotNanos, Slots: m.config.Share.Slots,
	}
	l.part = part{carried: l.rest}
	l.saved = State{Final: l.final, Highest: l.ids.highest, Meter: l.meter.Save(), Rest: l.rest, Share: m.config.Share, Total: l.total}
	return e, nil
}

// finish settles all that has ended.
func (l *lease) finish(share metering.Share) error {
	if len(l.running) > 0 {
		return fmt.Errorf("%w: %d", ErrRunning, len(l.running))
	}
	l.final = true
	var errs []error
	for _, r := range l.ended { // each once: who asks again does not bill it again
		errs = append(errs, l.measure(share, r, min(r.To, l.health.upTo)))
	}
	l.ended, l.waits = nil, 0
	return errors.Join(errs...)
}

// Save is a lease's state at its last cut. Store it with the record of that cut.
func (m *Meter) Save(id common.Hash) (State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()

	l, err := m.lease(id)
	if err != nil {
		return State{}, err
	}
	s := l.saved
	s.Meter.Devices = slices.Clone(s.Meter.Devices)
	return s, nil
}
