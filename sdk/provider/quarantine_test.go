package provider

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestRestartWithAGPUAway: a lease of two GPUs goes on in the next process although
// one of them is away: the other is billed, and it is down until it is back.
func TestRestartWithAGPUAway(t *testing.T) {
	w := newWard(t, func(c *Config) { c.Allocator = nil })
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
	if free := w.provider.config.Allocator.(*gpu.HostAllocator).Free(); free != 2 {
		t.Errorf("%d GPUs are free", free)
	}
}

// TestGPUThatCannotBeReadIsNotLetAgain: of two GPUs one is listed, and no reading of it works: one lease is suspended for it, the
// next one has the other, and the operator is told.
func TestGPUThatCannotBeReadIsNotLetAgain(t *testing.T) {
	w := newWard(t, func(c *Config) { c.Allocator = nil })
	w.host.fail(sim.UUID(0))
	first := w.open(1, 500_000, "")
	w.step(3)
	w.in(first, leasestore.Suspended)
	if code, h := w.health(); code != http.StatusOK || !strings.HasPrefix(h.Status, "degraded") || !slices.Equal(h.Quarantined, []string{sim.UUID(0)}) {
		t.Errorf("%d %+v", code, h)
	}
	first.release()
	second := w.open(2, 500_000, "")
	w.step(4)
	w.in(second, leasestore.Active)
	if got := w.provider.leases.Running(second.terms.ID()).Allocation.Devices; !slices.Equal(got, []string{sim.UUID(1)}) {
		t.Errorf("the next lease has %s", got)
	}
	if free := w.provider.config.Allocator.(*gpu.HostAllocator).Free(); free != 0 {
		t.Errorf("%d are free", free)
	}
	if got := w.metric("gpupay_quarantined_gpus"); got != "1" {
		t.Errorf("%s are in quarantine", got)
	}
}

// TestGPUThatIsReadAgainIsLet: a GPU that could not be read for a while in its lease, and can be at its end, goes into the next.
func TestGPUThatIsReadAgainIsLet(t *testing.T) {
	w := newWard(t, func(c *Config) { c.Allocator = nil })
	w.host.fail(sim.UUID(0))
	first := w.open(1, 500_000, "?gpus=2")
	w.step(4)
	w.host.fail()
	w.step(2)
	first.release()
	if _, h := w.health(); len(h.Quarantined) != 0 {
		t.Errorf("%s are in quarantine", h.Quarantined)
	}
	if free := w.provider.config.Allocator.(*gpu.HostAllocator).Free(); free != 2 {
		t.Errorf("%d are free", free)
	}
}

// TestGPUThatIsLostAtTheStartComesBack: a GPU that is away when the provider starts is let, offered and looked after when it is there.
func TestGPUThatIsLostAtTheStartComesBack(t *testing.T) {
	w := newWard(t, func(c *Config) { c.Allocator = nil; c.Source.(*sickHost).set(nil, sim.UUID(1)) })
	if got := w.provider.Offer().Devices[0].Count; got != 1 {
		t.Errorf("%d are offered", got)
	}
	w.host.set(nil)
	if _, h := w.health(); len(h.Quarantined) != 0 || h.Status != "ok" {
		t.Errorf("back: %+v", h)
	}
	w.provider.config.Allocator.(inventory.Keeper).Inventory().Quarantine().Expire()
	lease := w.open(1, 500_000, "?gpus=2")
	w.step(2)
	lease.release()
	w.want(lease, busy(2e9), busy(2e9))
	if err := w.provider.offers.Renew(t.Context()); err != nil || w.provider.Offer().Devices[0].Count != 2 {
		t.Errorf("%+v are offered, %v", w.provider.Offer().Devices, err)
	}
	w.host.set(nil, sim.UUID(1))
	if _, h := w.health(); !slices.Equal(h.Quarantined, []string{sim.UUID(1)}) {
		t.Errorf("away again: %+v", h)
	}
}
