package provider

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

// oneGPU is an allocator that gives the same device to every lease.
type oneGPU struct{ released chan gpu.Allocation }

func (oneGPU) Allocate(_ context.Context, req gpu.Request) (gpu.Allocation, error) {
	return gpu.Allocation{LeaseID: req.LeaseID, Devices: []string{sim.UUID(0)}}, nil
}
func (oneGPU) Suspend(context.Context, gpu.Allocation) error { return nil }
func (oneGPU) Resume(context.Context, gpu.Allocation) error  { return nil }
func (o oneGPU) Release(_ context.Context, a gpu.Allocation) error {
	o.released <- a
	return nil
}
func (oneGPU) Adopt(context.Context, gpu.Allocation) error { return nil }

// TestOneMeterOnADevice: a device that an allocator gives to a second lease is billed to the first alone, which keeps it.
func TestOneMeterOnADevice(t *testing.T) {
	gpu := oneGPU{make(chan gpu.Allocation, 8)}
	r := newRig(t, quiet, generousCredit, func(c *Config) { c.Allocator = gpu })
	first := r.open(1, 300_000, "")
	first.record()
	second := r.terms(r.payer.Address(), 2)
	if resp := r.do("GET", "", r.openCredential(r.payer, second, 300_000, 0)); resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("a second lease of one device: %v", wire.ParseProblem(resp))
	}
	first.record()
	if len(gpu.released) != 0 || r.provider.leases.Running(second.ID()) != nil {
		t.Errorf("the first lease lost its device: %d released, the second runs: %v", len(gpu.released), r.provider.leases.Running(second.ID()))
	}
	first.release()
	<-gpu.released
	(&tab{rig: r, key: r.payer, terms: second}).attachNow()
}

// attachNow begins a lease on a channel that is open.
func (t *tab) attachNow() {
	t.Helper()
	resp := t.comeBack(0)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(wire.ParseProblem(resp))
	}
	t.attach(resp)
}

// TestRestartWithTwoLeasesOnADevice: of two leases that a database has on one device, as an allocator that does not look would
// leave them, the later one goes on, which keeps the device, and nothing is billed for the other any more.
func TestRestartWithTwoLeasesOnADevice(t *testing.T) {
	gpu := oneGPU{make(chan gpu.Allocation, 8)}
	r := newRig(t, quiet, generousCredit, func(c *Config) { c.Allocator = gpu })
	first := r.open(1, 300_000, "")
	first.record()
	r.provider.leases.Running(first.terms.ID()).Ending.Store(true) // the second is let in
	second := r.open(2, 300_000, "")
	second.record()
	r.restart()
	if row := first.row(); row.State != wire.StateEnded || !strings.Contains(row.Reason, "later lease") {
		t.Errorf("the first is %s: %s", row.State, row.Reason)
	}
	spent := first.spent()
	if r.provider.leases.Running(first.terms.ID()) != nil || r.provider.leases.Running(second.terms.ID()) == nil || len(gpu.released) != 0 {
		t.Errorf("%d released", len(gpu.released))
	}
	before := second.spent()
	waitFor(t, func() bool { return second.spent() > before })
	if got := first.spent(); got != spent {
		t.Errorf("the first is billed on: %d, then %d", spent, got)
	}
}
