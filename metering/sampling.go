package metering

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Sampling reads the devices of many meters, each once a tick of its meter. A
// device whose driver call does not return makes a gap on that device and holds
// up no other; at most one call for it is under way, hung or not, so that a dead
// driver does not eat a thread a second.
//
// The devices wait in the order in which they are due, and one goroutine reads
// them; it is relieved by another one when a call takes longer than relieveAfter,
// and helped where it falls behind. So a meter costs some hundred bytes and a
// reading little more than the call itself, however many there are.
type Sampling struct {
	source Source
	clock  Clock
	life   context.Context // of the calls
	end    context.CancelFunc
	known  listing
	line   line
}

// Listener hears what a Sampling makes of one meter's devices. Its methods are
// called by whoever reads the device, several at once for several meters: they
// must be quick, and must not call Stop.
type Listener interface {
	Sampled(Reading, Interval)
	// SamplingEnded says that none of the meter's devices is read any more.
	SamplingEnded(error)
}

// NewSampling makes a Sampling of a source that stamps with a clock; System if
// nil.
func NewSampling(source Source, clock Clock) *Sampling {
	if clock == nil {
		clock = System
	}
	s := &Sampling{source: source, clock: clock, known: listing{source: source}}
	s.life, s.end = context.WithCancel(context.Background())
	s.line.wake = make(chan struct{}, 1)
	return s
}

// Close ends all sampling. It does not wait for calls that hang: nothing can end
// those.
func (s *Sampling) Close() { s.end() }

// Sampled is one meter whose devices are read.
type Sampled struct {
	s       *Sampling
	meter   *Meter
	to      Listener
	timeout time.Duration

	mu      sync.Mutex // held while something is observed
	stopped bool
	left    int // devices that are still read
	err     error
	until   *Instant // nothing is observed with a later stamp; nil: no end
	devices []turn
}

// turn is one device and when it is read next.
type turn struct {
	of      *Sampled
	device  string
	next    int64         // monotonic time on the grid of the first reading
	due     atomic.Int64  // where it stands in the line; 0: nowhere
	pending bool          // a call is under way
	late    bool          // and was given up
	over    bool          // it is read no more
	looking bool          // it is out of turn, and has a time-out of its own
	done    chan struct{} // closed when it is over; nil: nobody waits for it
}

// Add describes a meter's devices to it, every one of them before the first
// second is billed, and has them read from now on. A call that takes longer than
// timeout counts as hung; the meter's MaxGap if zero.
func (s *Sampling) Add(ctx context.Context, m *Meter, timeout time.Duration, to Listener) (*Sampled, error) {
	one, err := s.sampled(ctx, m, timeout, to)
	if err != nil {
		return nil, err
	}
	s.line.mu.Lock()
	defer s.line.mu.Unlock()
	for i := range one.devices {
		s.queue(&one.devices[i], one.devices[i].next)
	}
	return one, nil
}

// sampled is a meter whose devices are described to it, and not read yet.
func (s *Sampling) sampled(ctx context.Context, m *Meter, timeout time.Duration, to Listener) (*Sampled, error) {
	if timeout == 0 {
		timeout = m.config.MaxGap
	}
	if err := s.describe(ctx, m); err != nil {
		return nil, err
	}
	one := &Sampled{s: s, meter: m, to: to, timeout: timeout, left: len(m.config.Devices)}
	one.devices = make([]turn, one.left)
	now := s.clock.Now().Mono
	for i, uuid := range m.config.Devices {
		t := &one.devices[i]
		t.of, t.device, t.next = one, uuid, now
	}
	return one, nil
}

// Stop ends the sampling of one meter. Nothing is observed after it returns.
func (o *Sampled) Stop() {
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

// finish takes what a call returned. A call that came back after it was given up
// is stamped again: it is still stamped after the call, and what it says must not
// be lost.
func (t *turn) finish(r Reading, err error) {
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
	case ended(err):
		t.end(err)
		return
	case err != nil:
		r = o.blank(t.device, Failed)
		r.Detail = err.Error()
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
	tick := int64(t.of.meter.config.Tick)
	t.next += tick
	if late := t.of.s.clock.Now().Mono - t.next; late > 0 {
		t.next += late / tick * tick
	}
	t.of.s.put(t, t.next)
}

func (t *turn) observe(r Reading) bool {
	if end := t.of.until; end != nil && r.At.Mono > end.Mono {
		r.At = *end
	}
	in, err := t.of.meter.Observe(r)
	if err != nil {
		t.end(err)
		return false
	}
	t.of.to.Sampled(r, in)
	return true
}

// end notes that a device is read no more.
func (t *turn) end(err error) {
	o := t.of
	t.over = true
	o.err = errors.Join(o.err, err)
	if o.left--; o.left == 0 {
		o.stopped = true
		o.to.SamplingEnded(o.err)
	}
}

func (o *Sampled) stalled(device string) Reading {
	r := o.blank(device, Stalled)
	r.Detail = fmt.Sprintf("no answer in %s", o.timeout)
	return r
}

func (o *Sampled) blank(device string, health Health) Reading {
	return Reading{At: o.s.clock.Now(), BootID: o.s.clock.BootID(), Device: device, Health: health}
}

// describeTimeout bounds how long a source is asked who the devices of a lease are.
const describeTimeout = 10 * time.Second

// describe tells the meter who its devices are: each by itself where the source can, so that a device of another lease
// that hangs holds this one up in nothing.
func (s *Sampling) describe(ctx context.Context, m *Meter) error {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	one, ok := s.source.(Describer)
	if !ok {
		return s.known.describe(ctx, m)
	}
	for _, uuid := range m.config.Devices {
		d, err := one.Describe(ctx, uuid)
		if err != nil {
			return fmt.Errorf("describe a device of %s: %w", s.source.Name(), err)
		}
		if err := m.Describe(s.source.Name(), d); err != nil {
			return err
		}
	}
	return nil
}

// listing is what a source says its devices are. Leases that begin together, as
// they do at a start, share one.
type listing struct {
	source Source

	mu    sync.Mutex
	at    time.Time
	known map[string]Device
}

// listingAge is for how long a listing is as good as a new one.
const listingAge = time.Second

func (l *listing) describe(ctx context.Context, m *Meter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, uuid := range m.config.Devices {
		d, err := l.find(ctx, uuid)
		if err != nil {
			return err
		}
		if err := m.Describe(l.source.Name(), d); err != nil {
			return err
		}
	}
	return nil
}

// find is for who holds mu.
func (l *listing) find(ctx context.Context, uuid string) (Device, error) {
	d, ok := l.known[uuid]
	if ok && time.Since(l.at) < listingAge {
		return d, nil
	}
	all, err := l.source.Devices(ctx)
	if err != nil {
		return Device{}, fmt.Errorf("list the devices of %s: %w", l.source.Name(), err)
	}
	l.known, l.at = make(map[string]Device, len(all)), time.Now()
	for _, d := range all {
		l.known[d.UUID] = d
	}
	time.AfterFunc(listingAge, l.forget)
	if d, ok = l.known[uuid]; !ok {
		return Device{}, fmt.Errorf("%w: %s has no %s; it has %d others", ErrDevice, l.source.Name(), uuid, len(all))
	}
	return d, nil
}

// forget lets go of a listing that is old: of a large host it is large.
func (l *listing) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.at) >= listingAge {
		l.known = nil
	}
}
