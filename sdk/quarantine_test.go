package sdk

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

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
	if free := w.provider.config.Allocator.(*gpu.HostAllocator).Free(); free != 2 {
		t.Errorf("%d GPUs are free", free)
	}
}
