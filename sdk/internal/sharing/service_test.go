package sharing

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/wire"
)

func newService(t *testing.T, clock metering.Clock, sick []*inventory.Quarantine, devices ...string) *Service {
	t.Helper()
	s, err := New(Config{Share: metering.Share{GPUs: uint32(len(devices)), Slots: 4}, Devices: devices, Tick: time.Second, MaxGap: 3 * time.Second, Clock: clock,
		Sick: sick, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestEachServiceIsRead: a provider with two of them has the devices of both be read, or bills nothing for one.
func TestEachServiceIsRead(t *testing.T) {
	clock := sim.NewClock()
	all := Services{"a": newService(t, clock, nil, sim.UUID(0)), "b": newService(t, clock, nil, sim.UUID(1))}
	sampler := sampling.New(sim.New(2, sim.Options{Clock: clock}), clock)
	defer sampler.Close()
	if err := all.Sample(sampler); err != nil {
		t.Fatal(err)
	}
	for name, s := range all {
		if s.sampler == nil {
			t.Errorf("service %s is not read", name)
		}
	}
}

// TestDeviceThatIsAnotherKind: what a device is, and that the meter of all leases does not take it, is said to who reads it.
func TestDeviceThatIsAnotherKind(t *testing.T) {
	s := newService(t, sim.NewClock(), nil, sim.UUID(0))
	own, err := usage.NewMeter(usage.Config{Devices: []string{sim.UUID(0)}, Tick: time.Second, MaxGap: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	r := readings{own, s}
	if err := r.Describe("nvml", metering.Device{UUID: sim.UUID(1)}); err == nil {
		t.Error("a device of nobody is described")
	}
	if err := s.meter.Describe("nvml", metering.Device{UUID: sim.UUID(1)}); err == nil {
		t.Error("the meter of all leases takes it")
	}
	own, err = usage.NewMeter(usage.Config{Devices: []string{sim.UUID(0), sim.UUID(1)}, Tick: time.Second, MaxGap: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := (readings{own, s}).Describe("nvml", metering.Device{UUID: sim.UUID(1)}); err == nil {
		t.Error("a device that only one of the meters knows is described")
	}
}

// TestSickDeviceIsHeardOf: a shared device that cannot be read rests as one that is let whole does.
func TestSickDeviceIsHeardOf(t *testing.T) {
	clock, sick := sim.NewClock(), &inventory.Quarantine{}
	s := newService(t, clock, []*inventory.Quarantine{sick}, sim.UUID(0))
	for range 20 {
		clock.Advance(time.Second)
		s.Sampled(metering.Reading{Device: sim.UUID(0), At: clock.Now(), Health: metering.Lost}, usage.Interval{Class: usage.Down, Reason: "lost"})
	}
	if !s.watch.Rest() {
		t.Error("it does not rest")
	}
}

// TestOtherDevicesAreNotAdopted: a lease goes on with the GPUs that it shared, or not at all.
func TestOtherDevicesAreNotAdopted(t *testing.T) {
	s := newService(t, sim.NewClock(), nil, sim.UUID(0))
	if err := s.Adopt(gpu.Allocation{Devices: []string{sim.UUID(0)}}); err != nil {
		t.Error(err)
	}
	if err := s.Adopt(gpu.Allocation{Devices: []string{sim.UUID(1)}}); err == nil {
		t.Error("a lease of another GPU is adopted")
	}
}

// TestMeterOfNoDevice: there is no lease without a device, nor with one twice.
func TestMeterOfNoDevice(t *testing.T) {
	for _, devices := range [][]string{nil, {sim.UUID(0), sim.UUID(0)}} {
		if _, err := NewOwn(devices, wire.Offer{Tick: 1000, MaxGap: 3000}, nil); err == nil {
			t.Errorf("a meter of %v", devices)
		}
	}
}

// TestRequestWithoutALimit: an offer from before there were limits ends no request, and each may use a slot's part of the time that is asked about.
func TestRequestWithoutALimit(t *testing.T) {
	clock := sim.NewClock()
	w := &world{T: t, clock: clock, source: sim.New(1, sim.Options{Clock: clock}), share: metering.Share{GPUs: 1, Slots: 4}}
	w.start()
	w.pass(time.Second)
	s := w.service
	placed, err := s.Place(common.Hash{1}, common.Address{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.NewLease(placed.LeaseID, common.Address{}, 0, placed.Access, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Join(&payer{}); err != nil {
		t.Fatal(err)
	}
	if got, want := l.Another(4*time.Second), int64(time.Second); got != want {
		t.Errorf("another request may use %d ns of a GPU, want %d", got, want)
	}
	w.pass(time.Second)
	r, err := take(t.Context(), s, tokenOf(t, placed), 1)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.Ctx.Done():
		t.Errorf("it is ended: %v", context.Cause(r.Ctx))
	case <-time.After(50 * time.Millisecond):
	}
	if errors.Is(context.Cause(r.Ctx), ErrTime) {
		t.Error("its time is over")
	}
}
