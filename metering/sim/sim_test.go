package sim_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
)

func TestSaysThatItIsSimulated(t *testing.T) {
	src := sim.New(2, sim.Options{})
	devices, err := src.Devices(t.Context())
	if err != nil || len(devices) != 2 {
		t.Fatalf("%v, %v", devices, err)
	}
	for i, d := range devices {
		r, err := src.Read(t.Context(), d.UUID)
		if err != nil || !r.Simulated || !d.Simulated || d.UUID != sim.UUID(i) || !strings.HasPrefix(d.UUID, "SIM-") || d.Name != "Simulated GPU" {
			t.Errorf("%+v, %+v, %v", d, r, err)
		}
	}
	if src.Name() != "simulated" {
		t.Errorf("the source is called %q", src.Name())
	}
	if _, err := src.Read(t.Context(), sim.UUID(2)); !errors.Is(err, metering.ErrDevice) {
		t.Errorf("a GPU that it has not: %v", err)
	}
}

func TestInject(t *testing.T) {
	clock := sim.NewClock()
	src := sim.New(1, sim.Options{Clock: clock})
	clock.Advance(time.Minute)
	src.Inject(sim.Fault{Device: -1, Kind: sim.Lost, At: time.Second, For: time.Second})
	for second, want := range []metering.Health{metering.Healthy, metering.Lost, metering.Healthy} {
		if r, err := src.Read(t.Context(), sim.UUID(0)); err != nil || r.Health != want {
			t.Errorf("second %d: %s, %v", second, r.Health, err)
		}
		clock.Advance(time.Second)
	}
}

// TestHangEnds: a call that hangs is ended by its context, and by Close.
func TestHangEnds(t *testing.T) {
	src := sim.New(1, sim.Options{Clock: sim.NewClock(), Script: []sim.Fault{{Kind: sim.Hang, For: time.Hour}}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := src.Read(ctx, sim.UUID(0)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := src.Read(t.Context(), sim.UUID(0))
		done <- err
	}()
	src.Close()
	if err := <-done; !errors.Is(err, metering.ErrEnd) {
		t.Errorf("got %v", err)
	}
}

func TestClock(t *testing.T) {
	c := sim.NewClock()
	before := c.Now()
	fired := c.After(2 * time.Second)
	c.Advance(time.Second)
	c.Sleep(time.Minute) // a timer does not count sleep
	select {
	case <-fired:
		t.Error("fired too early")
	default:
	}
	c.Advance(time.Second)
	<-fired
	now := c.Now()
	if now.Mono-before.Mono != 2e9 || now.Boot-before.Boot != 62e9 || now.Wall-before.Wall != 62e9 || c.Waiting() != 0 {
		t.Errorf("%+v after %+v", now, before)
	}
}

// TestNames: what looks like one of its GPUs' names and is none is a stranger.
func TestNames(t *testing.T) {
	src := sim.New(12, sim.Options{})
	for _, uuid := range []string{"", "SIM-GPU-", "SIM-GPU-12", "SIM-GPU--1", "SIM-GPU-+1", "SIM-GPU-01", "SIM-GPU-00", "1", "SIM-GPU-1 ", "sim-gpu-1"} {
		if _, err := src.Read(t.Context(), uuid); !errors.Is(err, metering.ErrDevice) {
			t.Errorf("%q: %v", uuid, err)
		}
	}
	for i := range 12 {
		if r, err := src.Read(t.Context(), sim.UUID(i)); err != nil || r.Device != sim.UUID(i) || r.Seen != r.Device {
			t.Errorf("%d: %+v, %v", i, r, err)
		}
	}
}
