package sdk

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestSickGPUIsNotHandedOut: of two GPUs the first is lost: the second is let, and
// the first when it is back.
func TestSickGPUIsNotHandedOut(t *testing.T) {
	host := &sickHost{Source: testclock.GPUs(2)}
	h, err := NewHostAllocator(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	stale := func() { h.sick.mu.Lock(); defer h.sick.mu.Unlock(); h.sick.at = time.Now().Add(-time.Hour) }
	host.set(nil, sim.UUID(0))
	if _, err := h.Allocate(t.Context(), AllocationRequest{LeaseID: common.Hash{1}, GPUs: 2}); !errors.Is(err, ErrNoCapacity) {
		t.Errorf("both: %v", err)
	}
	if n := h.Free(); n != 1 {
		t.Errorf("%d are free", n)
	}
	a, err := h.Allocate(t.Context(), AllocationRequest{LeaseID: common.Hash{2}, GPUs: 1})
	if err != nil || a.Devices[0] != sim.UUID(1) {
		t.Fatal(a, err)
	}
	if _, err := h.Allocate(t.Context(), AllocationRequest{LeaseID: common.Hash{3}, GPUs: 1}); !errors.Is(err, ErrNoCapacity) || h.Free() != 0 {
		t.Errorf("%v, %d are free", err, h.Free())
	}
	host.set(errors.New("driver and library differ"))
	stale()
	if _, err := h.Allocate(t.Context(), AllocationRequest{LeaseID: common.Hash{4}, GPUs: 1}); !errors.Is(err, ErrNoCapacity) {
		t.Errorf("without a listing: %v", err)
	}
	host.set(nil)
	stale()
	if a, err = h.Allocate(t.Context(), AllocationRequest{LeaseID: common.Hash{5}, GPUs: 1}); err != nil || a.Devices[0] != sim.UUID(0) {
		t.Errorf("when it is back: %v %v", a, err)
	}
}

// TestHungListingHoldsNobodyUp: whoever asks what is free while a listing hangs hears
// what was known.
func TestHungListingHoldsNobodyUp(t *testing.T) {
	slow := &slowList{Source: testclock.GPUs(2), wait: make(chan struct{})}
	q := quarantine{source: slow}
	devices := []string{sim.UUID(0), sim.UUID(1)}
	slow.free()
	if fit := q.lately(devices); len(fit) != 2 {
		t.Fatal(fit)
	}
	q.at = time.Now().Add(-time.Hour)
	slow.hang()
	for range 100 {
		if fit := q.lately(devices); len(fit) != 2 {
			t.Fatal(fit)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := q.fit(ctx, devices); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	slow.free()
}

type slowList struct {
	*sim.Source
	wait chan struct{}
}

func (s *slowList) free() { close(s.wait) }
func (s *slowList) hang() { s.wait = make(chan struct{}) }

func (s *slowList) Devices(ctx context.Context) ([]metering.Device, error) {
	<-s.wait
	return s.Source.Devices(ctx)
}

// TestRestartWithAGPUAway: a lease of two GPUs goes on in the next process although
// one of them is away: the other is billed, and it is down until it is back.
func TestRestartWithAGPUAway(t *testing.T) {
	w := newWard(t, func(c *ProviderConfig) { c.Allocator = nil })
	lease := w.open(1, 500_000, "?gpus=2")
	w.step(3)
	w.host.set(nil, sim.UUID(1))
	w.shut()
	w.clock.Advance(time.Second) // billed to nobody
	w.start()
	w.step(3)
	if got := w.provider.Service(lease.terms.ID()); got != wire.StateActive {
		t.Fatalf("it is %s", got)
	}
	w.host.set(nil)
	w.step(4)
	lease.release()
	w.want(lease, metering.Nanos{Allocated: 10e9, Active: 10e9, Gap: 1e9}, metering.Nanos{Allocated: 6e9, Active: 6e9, Down: 4e9, Gap: 1e9})
	if free := w.provider.config.Allocator.(*HostAllocator).Free(); free != 2 {
		t.Errorf("%d GPUs are free", free)
	}
}
