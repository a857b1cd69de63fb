package sampling

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
)

// Scheduler reads the devices of many meters, each once a tick of its meter. A
// device whose driver call does not return makes a gap on that device and holds
// up no other; at most one call for it is under way, hung or not, so that a dead
// driver does not eat a thread a second.
//
// The devices wait in the order in which they are due, and one goroutine reads
// them; it is relieved by another one when a call takes longer than relieveAfter,
// and helped where it falls behind. So a meter costs some hundred bytes and a
// reading little more than the call itself, however many there are.
type Scheduler struct {
	source metering.Source
	clock  metering.Clock
	life   context.Context // of the calls
	end    context.CancelFunc
	known  listing
	line   line
}

// Listener hears what a Scheduler makes of one meter's devices. Its methods are
// called by whoever reads the device, several at once for several meters: they
// must be quick, and must not call Stop.
type Listener interface {
	Sampled(metering.Reading, usage.Interval)
	// SamplingEnded says that none of the meter's devices is read any more.
	SamplingEnded(error)
}

// Meter is what the readings are for: a [usage.Meter], or one that more hangs on.
type Meter interface {
	Config() usage.Config
	Describe(source string, device metering.Device) error
	Observe(r metering.Reading) (usage.Interval, error)
}

// New makes a Scheduler of a source that stamps with a clock; System if
// nil.
func New(source metering.Source, clock metering.Clock) *Scheduler {
	if clock == nil {
		clock = metering.System
	}
	s := &Scheduler{source: source, clock: clock, known: listing{source: source}}
	s.life, s.end = context.WithCancel(context.Background())
	s.line.wake = make(chan struct{}, 1)
	return s
}

// Close ends all sampling. It does not wait for calls that hang: nothing can end
// those.
func (s *Scheduler) Close() { s.end() }

// Task is one meter whose devices are read.
type Task struct {
	s       *Scheduler
	meter   Meter
	to      Listener
	tick    time.Duration
	timeout time.Duration

	mu      sync.Mutex // held while something is observed
	stopped bool
	left    int // devices that are still read
	err     error
	until   *metering.Instant // nothing is observed with a later stamp; nil: no end
	devices []turn
	unread  int           // devices of which nothing was observed yet
	looked  chan struct{} // closed when there is none
}

// Looked is closed when something is known of every device: it was read, or it did
// not answer within the timeout. What is used before that is billed to nobody.
func (o *Task) Looked() <-chan struct{} { return o.looked }

// turn is one device and when it is read next.
type turn struct {
	of      *Task
	device  string
	next    int64         // monotonic time on the grid of the first reading
	due     atomic.Int64  // where it stands in the line; 0: nowhere
	pending bool          // a call is under way
	late    bool          // and was given up
	known   bool          // who it is was told to the meter; for who makes the call that is under way
	over    bool          // it is read no more
	seen    bool          // something was observed of it
	looking bool          // it is out of turn, and has a time-out of its own
	done    chan struct{} // closed when it is over; nil: nobody waits for it
}

// Add describes a meter's devices to it, every one of them before the first
// second is billed, and has them read from now on. A call that takes longer than
// timeout counts as hung; the meter's MaxGap if zero.
func (s *Scheduler) Add(ctx context.Context, m Meter, timeout time.Duration, to Listener) (*Task, error) {
	one, err := s.described(ctx, m, timeout, to)
	if err != nil {
		return nil, err
	}
	one.begin()
	return one, nil
}

// Attend is Add for a meter that must begin whatever state its devices are in: each
// is described by itself when it first can be, and is down until then. A device
// that is missing, or a driver that fails, holds up no other device and is asked
// again at every turn.
func (s *Scheduler) Attend(m Meter, timeout time.Duration, to Listener) *Task {
	one := s.sampled(m, timeout, to)
	one.begin()
	return one
}

// described is a meter whose devices are described to it, and not read yet.
func (s *Scheduler) described(ctx context.Context, m Meter, timeout time.Duration, to Listener) (*Task, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	for _, uuid := range m.Config().Devices {
		if err := s.describe(ctx, m, uuid); err != nil {
			return nil, err
		}
	}
	one := s.sampled(m, timeout, to)
	for i := range one.devices {
		one.devices[i].known = true
	}
	return one, nil
}

func (s *Scheduler) sampled(m Meter, timeout time.Duration, to Listener) *Task {
	config := m.Config()
	if timeout == 0 {
		timeout = config.MaxGap
	}
	one := &Task{s: s, meter: m, to: to, tick: config.Tick, timeout: timeout, left: len(config.Devices), unread: len(config.Devices), looked: make(chan struct{})}
	one.devices = make([]turn, one.left)
	now := s.clock.Now().Mono
	for i, uuid := range config.Devices {
		t := &one.devices[i]
		t.of, t.device, t.next = one, uuid, now
	}
	return one
}

// begin has the devices read from now on.
func (o *Task) begin() {
	l := &o.s.line
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range o.devices {
		o.s.queue(&o.devices[i], o.devices[i].next)
	}
}

// Stop ends the sampling of one meter. Nothing is observed after it returns.
func (o *Task) Stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stopped = true
}

// begin reports whether a device is to be called now. Where the call before
// still hangs, that it does is what there is to observe.
func (t *turn) begin() bool {
	o := t.of
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped || t.looking || t.due.Load() != 0 { // its call came back meanwhile, and it stands in the line again, or will
		return false
	}
	if t.pending {
		t.late = true
		t.observe(o.stalled(t.device))
		o.s.put(t, o.s.clock.Now().Mono+int64(o.timeout))
		return false
	}
	t.pending = true
	return true
}

// read is one call for the device: who it is, until that is known, and how it is.
func (t *turn) read() (metering.Reading, error) {
	s := t.of.s
	if !t.known {
		ctx, cancel := context.WithTimeout(s.life, describeTimeout)
		defer cancel()
		if err := s.describe(ctx, t.of.meter, t.device); err != nil {
			return metering.Reading{}, err
		}
		t.known = true
	}
	return s.source.Read(s.life, t.device)
}

// finish takes what a call returned. A call that came back after it was given up
// is stamped again: it is still stamped after the call, and what it says must not
// be lost.
func (t *turn) finish(r metering.Reading, err error) {
	o := t.of
	o.mu.Lock()
	defer o.mu.Unlock()
	late := t.late
	t.pending, t.late, t.looking = false, false, false
	if t.done != nil {
		defer close(t.done)
		t.done = nil
	}
	switch {
	case o.stopped || o.s.life.Err() != nil:
		return
	case errors.Is(err, metering.ErrEnd):
		t.end(err)
		return
	case err != nil: // also where the source has no such device now: it may come back
		r = o.failed(t.device, err)
	case late:
		r.At = o.s.clock.Now()
	}
	if t.observe(r) {
		t.schedule()
	}
}

// schedule is the following tick on the grid of the first, so that the ticks do
// not drift. Ticks that were missed are not made up for: one look at once, and
// then on with the grid. A stamp that is not of our clock does not move the grid.
func (t *turn) schedule() {
	tick := int64(t.of.tick)
	t.next += tick
	if late := t.of.s.clock.Now().Mono - t.next; late > 0 {
		t.next += late / tick * tick
	}
	t.of.s.put(t, t.next)
}

func (t *turn) observe(r metering.Reading) bool {
	defer t.see()
	if end := t.of.until; end != nil && r.At.Mono > end.Mono {
		r.At = *end
	}
	in, err := t.of.meter.Observe(r)
	if err != nil { // of another device, or with a stamp that is none: no look at this one
		r = t.of.failed(t.device, err)
		in, err = t.of.meter.Observe(r)
	}
	if err != nil {
		t.end(err)
		return false
	}
	t.of.to.Sampled(r, in)
	return true
}

// see notes that something is known of a device.
func (t *turn) see() {
	if t.seen {
		return
	}
	t.seen = true
	if t.of.unread--; t.of.unread == 0 {
		close(t.of.looked)
	}
}

// end notes that a device is read no more.
func (t *turn) end(err error) {
	o := t.of
	t.over = true
	t.see()
	o.err = errors.Join(o.err, err)
	if o.left--; o.left == 0 {
		o.stopped = true
		o.to.SamplingEnded(o.err)
	}
}

func (o *Task) stalled(device string) metering.Reading {
	r := o.blank(device, metering.Stalled)
	r.Detail = fmt.Sprintf("no answer in %s", o.timeout)
	return r
}

func (o *Task) failed(device string, err error) metering.Reading {
	r := o.blank(device, metering.Failed)
	r.Detail = err.Error()
	return r
}

func (o *Task) blank(device string, health metering.Health) metering.Reading {
	return metering.Reading{At: o.s.clock.Now(), BootID: o.s.clock.BootID(), Device: device, Health: health}
}

// describeTimeout bounds how long a source is asked who the devices of a lease are.
const describeTimeout = 10 * time.Second

// describe tells the meter who one of its devices is: by itself where the source can, so that a device of another lease
// that hangs holds this one up in nothing.
func (s *Scheduler) describe(ctx context.Context, m Meter, uuid string) error {
	ask := s.known.find
	if one, ok := s.source.(metering.Describer); ok {
		ask = one.Describe
	}
	d, err := ask(ctx, uuid)
	if err != nil {
		return fmt.Errorf("describe a device of %s: %w", s.source.Name(), err)
	}
	return m.Describe(s.source.Name(), d)
}

// listing is what a source says its devices are. Leases that begin together, as
// they do at a start, share one, and so do those that are told of a failure: one
// is under way at most.
type listing struct {
	source metering.Source
	asked  singleflight.Group

	mu    sync.Mutex
	at    time.Time
	known map[string]metering.Device
	err   error
}

// listingAge is for how long a listing is as good as a new one.
const listingAge = time.Second

func (l *listing) find(ctx context.Context, uuid string) (metering.Device, error) {
	if d, ok := l.fresh(uuid); ok {
		return d, nil
	}
	answer := l.asked.DoChan("", func() (any, error) { return nil, l.renew() })
	select {
	case <-answer:
	case <-ctx.Done():
		return metering.Device{}, fmt.Errorf("list the devices: %w", ctx.Err())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d, ok := l.known[uuid]
	switch {
	case ok:
		return d, nil
	case l.err != nil:
		return metering.Device{}, fmt.Errorf("list the devices: %w", l.err)
	}
	return metering.Device{}, fmt.Errorf("%w: there is no %s among %d", metering.ErrDevice, uuid, len(l.known))
}

// fresh is a device of a listing that is not old.
func (l *listing) fresh(uuid string) (metering.Device, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, ok := l.known[uuid]
	return d, ok && time.Since(l.at) < listingAge
}

// renew lists the devices anew, unless somebody has just tried. It outlives who
// asks: others wait for the same answer.
func (l *listing) renew() error {
	l.mu.Lock()
	tried := time.Since(l.at) < listingAge
	l.mu.Unlock()
	if tried {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), describeTimeout)
	defer cancel()
	all, err := l.source.Devices(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known, l.err, l.at = make(map[string]metering.Device, len(all)), err, time.Now()
	for _, d := range all {
		l.known[d.UUID] = d
	}
	time.AfterFunc(listingAge, l.forget)
	return nil
}

// forget lets go of a listing that is old: of a large host it is large.
func (l *listing) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.at) >= listingAge {
		l.known = nil
	}
}
