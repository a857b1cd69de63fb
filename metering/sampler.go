package metering

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Sampler reads every device of a meter once a tick, each in its own goroutine
// under a watchdog: a driver call that never returns makes a gap on its own
// device and does not stop the others.
type Sampler struct {
	Source  Source
	Meter   *Meter
	Clock   Clock         // System if nil; the one the source stamps with
	Timeout time.Duration // after which a call counts as hung; the meter's MaxGap if zero

	// Observed, if set, is called after every reading, from several goroutines
	// at once: for logs and metrics.
	Observed func(Reading, Interval)
}

// Run describes the devices to the meter and then samples until ctx ends, or
// until the source has no more readings of any device. It returns nil when ctx
// ended. It does not wait for calls that hang: nothing can end those.
func (s *Sampler) Run(ctx context.Context) error {
	if err := s.describe(ctx); err != nil {
		return err
	}
	devices := s.Meter.Config().Devices
	errs := make([]error, len(devices))
	var wg sync.WaitGroup
	for i, uuid := range devices {
		wg.Go(func() { errs[i] = s.watch(ctx, uuid) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// describe finds every device before the first second is billed.
func (s *Sampler) describe(ctx context.Context) error {
	known, err := s.Source.Devices(ctx)
	if err != nil {
		return fmt.Errorf("list the devices of %s: %w", s.Source.Name(), err)
	}
	for _, uuid := range s.Meter.Config().Devices {
		found := false
		for _, d := range known {
			if d.UUID != uuid {
				continue
			}
			found = true
			if err := s.Meter.Describe(s.Source.Name(), d); err != nil {
				return err
			}
		}
		if !found {
			return fmt.Errorf("%w: %s has no %s; it has %d others", ErrDevice, s.Source.Name(), uuid, len(known))
		}
	}
	return nil
}

type result struct {
	reading Reading
	err     error
}

// watch samples one device. At most one call is under way at any time, hung or
// not, so that a dead driver does not eat a thread a second.
func (s *Sampler) watch(ctx context.Context, uuid string) error {
	clock := s.clock()
	tick := s.Meter.Config().Tick
	next := clock.Now().Mono
	var pending chan result
	late := false // the watchdog gave up on the pending call
	for {
		if pending == nil {
			pending = s.read(ctx, uuid)
		}
		var r Reading
		select {
		case <-ctx.Done():
			return nil
		case res := <-pending:
			pending = nil
			if ctx.Err() != nil {
				return nil
			}
			if ended(res.err) {
				return res.err
			}
			r = s.settle(uuid, res, late)
			late = false
		case <-clock.After(s.timeout()):
			r = s.stalled(uuid)
			late = true
		}
		if err := s.observe(r); err != nil {
			return err
		}
		next = s.next(next, tick)
		select {
		case <-ctx.Done():
			return nil
		case <-clock.After(time.Duration(next - clock.Now().Mono)):
		}
	}
}

// next is the following tick on the grid of the first, so that the ticks do not
// drift. Ticks that were missed are not made up for: one look at once, and then
// on with the grid.
func (s *Sampler) next(at int64, tick time.Duration) int64 {
	at += int64(tick)
	if late := s.clock().Now().Mono - at; late > 0 {
		at += late / int64(tick) * int64(tick)
	}
	return at
}

func (s *Sampler) read(ctx context.Context, uuid string) chan result {
	done := make(chan result, 1)
	go func() {
		r, err := s.Source.Read(ctx, uuid)
		done <- result{r, err}
	}()
	return done
}

// settle makes a reading of what a call returned. A call that came back after
// the watchdog gave up on it is stamped again: it is still stamped after the
// call, and what it says must not be lost.
func (s *Sampler) settle(uuid string, res result, late bool) Reading {
	if res.err != nil {
		r := s.blank(uuid, Failed)
		r.Detail = res.err.Error()
		return r
	}
	if late {
		res.reading.At = s.clock().Now()
	}
	return res.reading
}

func (s *Sampler) stalled(uuid string) Reading {
	r := s.blank(uuid, Stalled)
	r.Detail = fmt.Sprintf("no answer in %s", s.timeout())
	return r
}

func (s *Sampler) blank(uuid string, health Health) Reading {
	clock := s.clock()
	return Reading{At: clock.Now(), BootID: clock.BootID(), Device: uuid, Health: health}
}

func (s *Sampler) observe(r Reading) error {
	in, err := s.Meter.Observe(r)
	if err == nil && s.Observed != nil {
		s.Observed(r, in)
	}
	return err
}

func (s *Sampler) clock() Clock {
	if s.Clock == nil {
		return System
	}
	return s.Clock
}

func (s *Sampler) timeout() time.Duration {
	if s.Timeout == 0 {
		return s.Meter.Config().MaxGap
	}
	return s.Timeout
}

// ErrEnd says that a source has no more readings of a device: a trace is over,
// or the source was closed.
var ErrEnd = errors.New("no more readings")

func ended(err error) bool { return errors.Is(err, ErrEnd) || errors.Is(err, ErrDevice) }
