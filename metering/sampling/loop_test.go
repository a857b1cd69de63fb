package sampling_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
)

// bench drives a sampler over simulated GPUs on a clock that the test moves.
type bench struct {
	t     *testing.T
	clock *sim.Clock
	meter *usage.Meter
	stop  func() error

	mu   sync.Mutex
	last map[string]metering.Reading
}

func start(t *testing.T, n int, script ...sim.Fault) *bench {
	t.Helper()
	b := &bench{t: t, clock: sim.NewClock(), last: make(map[string]metering.Reading)}
	src := sim.New(n, sim.Options{Clock: b.clock, Script: script})
	var devices []string
	for i := range n {
		devices = append(devices, sim.UUID(i))
	}
	b.meter = rig.NewMeter(t, devices...)
	s := &sampling.Loop{Source: src, Meter: b.meter, Clock: b.clock, Observed: b.observed}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	b.stop = func() error { cancel(); return <-done }
	t.Cleanup(func() { src.Close(); cancel() })
	return b
}

func (b *bench) observed(r metering.Reading, _ usage.Interval) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last[r.Device] = r
}

// wait waits until a device was read at this very moment.
func (b *bench) wait(devices ...int) {
	b.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for _, i := range devices {
		for {
			b.mu.Lock()
			r, ok := b.last[sim.UUID(i)]
			b.mu.Unlock()
			if ok && r.At.Mono == b.clock.Now().Mono {
				break
			}
			if time.Now().After(deadline) {
				b.t.Fatalf("%s was last read at %d, it is %d", sim.UUID(i), r.At.Mono, b.clock.Now().Mono)
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
}

func (b *bench) run(seconds int, devices ...int) {
	b.t.Helper()
	for range seconds {
		for b.clock.Waiting() == 0 { // else the clock moves between a look at it and the sleep that follows
			time.Sleep(100 * time.Microsecond)
		}
		b.clock.Advance(time.Second)
		b.wait(devices...)
	}
}

// settle waits until so many timers are set, so that the clock is not moved
// under a goroutine that is about to set one.
func (b *bench) settle(timers int) {
	b.t.Helper()
	for deadline := time.Now().Add(time.Minute); b.clock.Waiting() != timers; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("%d timers are set, want %d", b.clock.Waiting(), timers)
		}
	}
}

func TestSamplerBillsHealthyTime(t *testing.T) {
	b := start(t, 2)
	b.wait(0, 1)
	b.run(10, 0, 1)
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if got := b.meter.Totals(); got.Allocated != 20e9 || got.Active != 20e9 || got.Gap != 0 {
		t.Errorf("got %+v", got)
	}
	e := b.meter.Cut()
	if !e.Simulated || e.Source != "simulated" || e.Devices[0].Device.Name != "Simulated GPU" || e.Devices[0].Device.UUID != "SIM-GPU-0" {
		t.Errorf("the evidence hides that it is simulated: %s", e.Encode())
	}
}

// TestSamplerHungDevice: device 0 does not answer from second 2 for 10 s. Its
// call comes back at second 12, and device 1 is billed throughout.
func TestSamplerHungDevice(t *testing.T) {
	b := start(t, 2, sim.Fault{Device: 0, Kind: sim.Hang, At: 2 * time.Second, For: 10 * time.Second})
	b.wait(0, 1)
	b.run(1, 0, 1)
	for range 4 { // seconds 2 to 5: device 0 hangs, at 5 the watchdog gives up on it
		b.run(1, 1)
		b.settle(2) // the call that hangs, and whoever reads device 1
	}
	b.wait(0)
	b.mu.Lock()
	if r := b.last[sim.UUID(0)]; r.Health != metering.Stalled {
		t.Errorf("after three seconds without an answer: %+v", r)
	}
	b.mu.Unlock()
	for range 6 { // to second 11
		b.run(1, 1)
		b.settle(2)
	}
	b.run(1, 0, 1)
	b.run(3, 0, 1) // second 15
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	got := b.meter.Totals()
	if n := got.Devices[sim.UUID(0)]; n.Allocated != 4e9 || n.Gap != 11e9 {
		t.Errorf("the hung device: %+v", n)
	}
	if n := got.Devices[sim.UUID(1)]; n.Allocated != 15e9 || n.Gap != 0 {
		t.Errorf("the device beside it: %+v", n)
	}
}

// early stamps before its call, and then hangs until it is released.
type early struct {
	*sim.Source
	release chan struct{}
}

func (e early) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	r, err := e.Source.Read(ctx, uuid)
	<-e.release
	r.XIDs = []metering.XID{metering.NewXID(79, r.At.Mono)}
	return r, err
}

// TestSamplerLateReading: what a call says that came back after the watchdog gave
// up on it is not lost, and is not older than the stall.
func TestSamplerLateReading(t *testing.T) {
	clock := sim.NewClock()
	src := early{sim.New(1, sim.Options{Clock: clock}), make(chan struct{})}
	seen := make(chan usage.Interval, 1)
	read := make(chan metering.Reading, 1)
	s := &sampling.Loop{Source: src, Meter: rig.NewMeter(t, sim.UUID(0)), Clock: clock, Observed: func(r metering.Reading, in usage.Interval) {
		read <- r
		seen <- in
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go s.Run(ctx)
	for clock.Waiting() < 1 {
		time.Sleep(time.Millisecond)
	}
	clock.Advance(3 * time.Second)
	if r, in := <-read, <-seen; r.Health != metering.Stalled || in.Class != usage.Opened {
		t.Fatalf("%+v, %+v", r, in)
	}
	for clock.Waiting() < 1 {
		time.Sleep(time.Millisecond)
	}
	clock.Advance(time.Second)
	close(src.release)
	if r, in := <-read, <-seen; r.At.Mono != clock.Now().Mono || len(r.XIDs) != 1 || in.Class != usage.Gap || in.Nanos != 1e9 {
		t.Errorf("%+v, %+v", r, in)
	}
}

func TestSamplerFaults(t *testing.T) {
	tests := []struct {
		name  string
		fault sim.Fault
		want  metering.Nanos // of ten seconds
	}{
		{"lost for 2 s", sim.Fault{Kind: sim.Lost, At: 3 * time.Second, For: 2 * time.Second}, metering.Nanos{Allocated: 7e9, Active: 7e9, Down: 3e9}},
		{"XID 79", sim.Fault{Kind: sim.XID, At: 3 * time.Second, Code: 79}, metering.Nanos{Allocated: 8e9, Active: 8e9, Down: 2e9}},
		{"XID 13", sim.Fault{Kind: sim.XID, At: 3 * time.Second, Code: 13}, metering.Nanos{Allocated: 10e9, Active: 10e9}},
		{"driver reload", sim.Fault{Kind: sim.Reload, At: 3 * time.Second}, metering.Nanos{Allocated: 9e9, Active: 9e9, Gap: 1e9}},
		{"suspend", sim.Fault{Kind: sim.Suspend, At: 3 * time.Second, For: time.Minute}, metering.Nanos{Allocated: 9e9, Active: 9e9, Gap: 1e9}},
		{"throttled for 1.5 s", sim.Fault{Kind: sim.Throttle, At: 3 * time.Second, For: 1500 * time.Millisecond},
			metering.Nanos{Allocated: 10e9, Active: 10e9, Throttled: 15e8}},
		{"idle for 2 s", sim.Fault{Kind: sim.Idle, At: 3 * time.Second, For: 2 * time.Second}, metering.Nanos{Allocated: 10e9, Active: 8e9}},
		{"another GPU for 2 s", sim.Fault{Kind: sim.Replace, At: 3 * time.Second, For: 2 * time.Second},
			metering.Nanos{Allocated: 7e9, Active: 7e9, Gap: 2e9, Down: 1e9}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t, 1, tt.fault)
			b.wait(0)
			b.run(10, 0)
			if err := b.stop(); err != nil {
				t.Fatal(err)
			}
			if got := b.meter.Totals().Nanos; got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestSamplerRefusesAStranger(t *testing.T) {
	s := sampling.Loop{Source: sim.New(1, sim.Options{}), Meter: rig.NewMeter(t, sim.UUID(1))}
	if err := s.Run(t.Context()); !errors.Is(err, metering.ErrDevice) {
		t.Errorf("got %v", err)
	}
}

func TestSamplerEndsWithItsSource(t *testing.T) {
	src := sim.New(1, sim.Options{})
	src.Close()
	s := sampling.Loop{Source: src, Meter: rig.NewMeter(t, sim.UUID(0))}
	if err := s.Run(t.Context()); !errors.Is(err, metering.ErrEnd) {
		t.Errorf("got %v", err)
	}
}
