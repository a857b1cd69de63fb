package sampling_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
)

// patchy is a source that cannot say who some of its devices are, nor read them,
// for a while.
type patchy struct {
	*sim.Source
	mu      sync.Mutex
	missing string // not listed, and unknown when it is read
	broken  bool   // lists nothing at all
}

func (p *patchy) set(missing string, broken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.missing, p.broken = missing, broken
}

func (p *patchy) Describe(ctx context.Context, uuid string) (metering.Device, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken {
		return metering.Device{}, errors.New("the driver is being reloaded")
	}
	if uuid == p.missing {
		return metering.Device{}, fmt.Errorf("%w: %s", metering.ErrDevice, uuid)
	}
	all, err := p.Source.Devices(ctx)
	for _, d := range all {
		if d.UUID == uuid {
			return d, nil
		}
	}
	return metering.Device{}, errors.Join(err, metering.ErrDevice)
}

func (p *patchy) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	p.mu.Lock()
	missing := uuid == p.missing
	p.mu.Unlock()
	if missing {
		return metering.Reading{}, fmt.Errorf("%w: %s", metering.ErrDevice, uuid)
	}
	return p.Source.Read(ctx, uuid)
}

// attended is the meter of two devices after ten seconds, and what became of it.
func attended(t *testing.T, missing string, broken bool, from, to int) *usage.Meter {
	t.Helper()
	b := &bench{t: t, clock: sim.NewClock(), last: make(map[string]metering.Reading)}
	src := &patchy{Source: sim.New(2, sim.Options{Clock: b.clock})}
	b.meter = rig.NewMeter(t, sim.UUID(0), sim.UUID(1))
	all := sampling.New(src, b.clock)
	t.Cleanup(all.Close)
	if from == 0 {
		src.set(missing, broken)
	}
	all.Attend(b.meter, 0, observer{b})
	b.wait(0, 1)
	for second := 1; second <= 10; second++ {
		switch second {
		case from:
			src.set(missing, broken)
		case to:
			src.set("", false)
		}
		b.run(1, 0, 1)
	}
	return b.meter
}

type observer struct{ *bench }

func (o observer) Sampled(r metering.Reading, in usage.Interval) { o.observed(r, in) }
func (o observer) SamplingEnded(err error)                       { o.t.Errorf("sampling ended: %v", err) }

// TestAttend: a lease whose devices cannot be described when it begins, or are
// missing later, is billed from when they are there, and its other device all the
// while.
func TestAttend(t *testing.T) {
	const all = 10e9
	tests := []struct {
		name          string
		missing       string
		broken        bool
		from, to      int
		first, second metering.Nanos
	}{
		{"one is missing when it begins", sim.UUID(1), false, 0, 4, metering.Nanos{Allocated: all, Active: all}, metering.Nanos{Allocated: 6e9, Active: 6e9, Down: 4e9}},
		{"one is missing for ever", sim.UUID(1), false, 0, 99, metering.Nanos{Allocated: all, Active: all}, metering.Nanos{Down: all}},
		{"one is missing for three seconds", sim.UUID(1), false, 3, 6, metering.Nanos{Allocated: all, Active: all}, metering.Nanos{Allocated: 6e9, Active: 6e9, Down: 4e9}},
		{"none can be described when it begins", "", true, 0, 2, metering.Nanos{Allocated: 8e9, Active: 8e9, Down: 2e9}, metering.Nanos{Allocated: 8e9, Active: 8e9, Down: 2e9}},
		{"none can be described later", "", true, 3, 6, metering.Nanos{Allocated: all, Active: all}, metering.Nanos{Allocated: all, Active: all}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := attended(t, tt.missing, tt.broken, tt.from, tt.to)
			got := m.Totals().Devices
			if got[sim.UUID(0)] != tt.first || got[sim.UUID(1)] != tt.second {
				t.Errorf("got %+v and %+v, want %+v and %+v", got[sim.UUID(0)], got[sim.UUID(1)], tt.first, tt.second)
			}
			e := m.Cut()
			if err := e.Validate(); err != nil {
				t.Error(err)
			}
			for _, d := range e.Devices {
				if d.Nanos.Allocated > 0 && d.Device.Name != "Simulated GPU" {
					t.Errorf("%s was billed, and nothing says who it is: %+v", d.Device.UUID, d.Device)
				}
			}
		})
	}
}

// TestListingIsShared: a source that hangs when it lists its devices holds up who
// asks for no longer than they wait, and is asked once at a time.
func TestListingIsShared(t *testing.T) {
	src := &hanging{Source: sim.New(2, sim.Options{}), asked: make(chan struct{}, 100), release: make(chan struct{})}
	all := sampling.New(src, nil)
	defer all.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var wait sync.WaitGroup
	for i := range 20 {
		wait.Go(func() {
			if _, err := all.Add(ctx, rig.NewMeter(t, sim.UUID(i%2)), 0, &heard{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
	wait.Wait()
	if n := len(src.asked); n != 1 {
		t.Errorf("it was asked %d times at once", n)
	}
	close(src.release)
	if _, err := all.Add(t.Context(), rig.NewMeter(t, sim.UUID(1)), 0, &heard{}); err != nil {
		t.Error(err)
	}
}

type hanging struct {
	*sim.Source
	asked   chan struct{}
	release chan struct{}
}

func (h *hanging) Devices(ctx context.Context) ([]metering.Device, error) {
	h.asked <- struct{}{}
	<-h.release
	return h.Source.Devices(ctx)
}
