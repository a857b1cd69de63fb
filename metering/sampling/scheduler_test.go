package sampling_test

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
)

// counted is a source that counts what it is asked.
type counted struct {
	*sim.Source
	listings atomic.Int64
}

func (c *counted) Devices(ctx context.Context) ([]metering.Device, error) {
	c.listings.Add(1)
	return c.Source.Devices(ctx)
}

// heard counts the readings of one meter.
type heard struct {
	readings atomic.Int64
	ended    chan error
}

func (h *heard) Sampled(metering.Reading, usage.Interval) { h.readings.Add(1) }
func (h *heard) SamplingEnded(err error)                  { h.ended <- err }

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// TestSamplingOfManyMeters: a thousand leases take a handful of goroutines, and
// those whose devices hang hold up none of the others.
func TestSamplingOfManyMeters(t *testing.T) {
	const meters, hung, seconds = 1000, 20, 7
	clock := sim.NewClock()
	var script []sim.Fault
	for i := range hung {
		script = append(script, sim.Fault{Device: i * meters / hung, Kind: sim.Hang, At: 2 * time.Second, For: time.Hour})
	}
	src := &counted{Source: sim.New(meters, sim.Options{Clock: clock, Script: script})}
	defer src.Close()
	s := sampling.New(src, clock)
	defer s.Close()
	before := runtime.NumGoroutine()
	var all [meters]struct {
		heard
		meter *usage.Meter
		on    *sampling.Task
	}
	for i := range all {
		m := &all[i]
		m.meter, m.ended = rig.NewMeter(t, sim.UUID(i)), make(chan error, 1)
		var err error
		if m.on, err = s.Add(t.Context(), m.meter, 0, m); err != nil {
			t.Fatal(err)
		}
	}
	if n := src.listings.Load(); n > meters/10 {
		t.Errorf("the source was asked %d times for its devices", n)
	}
	healthy := func(i int) bool { return i%(meters/hung) != 0 }
	stopped := int64(0) // readings of the first healthy one when it was stopped
	for second := range seconds + 1 {
		until(t, "a healthy device waits for one that hangs", func() bool {
			for i := range all {
				if healthy(i) && all[i].readings.Load() < int64(second+1) && (i != 1 || stopped == 0) {
					return false
				}
			}
			return true
		})
		if n := runtime.NumGoroutine() - before; n > hung+20 {
			t.Errorf("%d goroutines for %d meters, %d of which hang", n, meters, hung)
		}
		if second == 4 {
			all[1].on.Stop()
			stopped = all[1].readings.Load()
		}
		if second >= 2 {
			until(t, "the calls that hang were not relieved", func() bool { return clock.Waiting() > hung })
		}
		if second < seconds {
			clock.Advance(time.Second)
		}
	}
	until(t, "a device that hangs is not given up", func() bool {
		for i := range hung {
			if all[i*meters/hung].readings.Load() < 3 {
				return false
			}
		}
		return true
	})
	for i := range all {
		got := all[i].meter.Totals()
		switch {
		case i == 1:
			if all[i].readings.Load() != stopped || got.Allocated != 4e9 {
				t.Errorf("meter 1 was stopped at second 4: %+v, %d readings after %d", got, all[i].readings.Load(), stopped)
			}
		case healthy(i) && got.Allocated != seconds*1e9:
			t.Errorf("meter %d: %+v", i, got)
		case !healthy(i) && (got.Allocated != 1e9 || got.Gap < 4e9):
			t.Errorf("meter %d, whose device hangs: %+v", i, got)
		}
	}
}

// tardy is a source whose calls take their time.
type tardy struct{ *sim.Source }

func (s tardy) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	time.Sleep(3 * time.Millisecond)
	return s.Source.Read(ctx, uuid)
}

// TestSamplingOfASlowSource: where the calls of a tick take longer than the tick,
// others help.
func TestSamplingOfASlowSource(t *testing.T) {
	const devices = 200 // 0.6 s of calls in a tick of 0.2 s
	src := tardy{sim.New(devices, sim.Options{})}
	s := sampling.New(src, nil)
	defer s.Close()
	var names []string
	for i := range devices {
		names = append(names, sim.UUID(i))
	}
	m, err := usage.NewMeter(usage.Config{Devices: names, Tick: 200 * time.Millisecond, MaxGap: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	var h heard
	if _, err := s.Add(t.Context(), m, 0, &h); err != nil {
		t.Fatal(err)
	}
	until(t, "the devices are not read in turn", func() bool { return h.readings.Load() >= 5*devices })
	for uuid, n := range m.Totals().Devices {
		if n.Allocated == 0 {
			t.Errorf("%s was read once at most", uuid)
		}
	}
}

// TestSamplingEnds: a meter hears once that its last device is read no more.
func TestSamplingEnds(t *testing.T) {
	src := sim.New(2, sim.Options{})
	s := sampling.New(src, nil)
	defer s.Close()
	m, err := usage.NewMeter(usage.Config{Devices: []string{sim.UUID(0), sim.UUID(1)}, Tick: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	h := &heard{ended: make(chan error, 2)}
	if _, err := s.Add(t.Context(), m, 0, h); err != nil {
		t.Fatal(err)
	}
	until(t, "nothing is read", func() bool { return h.readings.Load() > 4 })
	src.Close()
	if err := <-h.ended; !errors.Is(err, metering.ErrEnd) {
		t.Error(err)
	}
	if _, err := s.Add(t.Context(), rig.NewMeter(t, sim.UUID(7)), 0, h); !errors.Is(err, metering.ErrDevice) {
		t.Errorf("a device that it has not: %v", err)
	}
}
