package provider

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
)

// TestForgottenGPUStopsNoOther: a GPU of a lease that a server's database has forgotten cannot be taken back. The host's other GPU is let,
// and the first one, too, once it could be: where the database falls back under a gateway that runs, and at a start.
func TestForgottenGPUStopsNoOther(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"running", "start"} {
		t.Run(name, func(t *testing.T) {
			address := pgtest.Database(t)
			change, calls, fails := handingOverOf(t, &address, testclock.GPUs(2))
			r := newRig(t, change)
			var first *tab
			if name == "running" {
				first = r.open(1, 300_000, "")
				first.record()
				fails(true)
				first.forget()
				eventually(t, "the lease to be let go", func() bool { return r.provider.leases.Running(first.terms.ID()) == nil })
			} else {
				first = r.opensWithout(&address, change)
				fails(true)
				r.start()
			}
			second := r.nextRenter(2)
			second.record()
			r.refusesLease(3)
			fails(false)
			if err := r.provider.leases.Forgotten.TakeBack(t.Context()); err != nil { // as it does each half minute
				t.Fatal(err)
			}
			first.takenBackBefore(r.nextRenter(4), calls())
		})
	}
}

// shrinking is a source of whose GPUs one falls off the bus.
type shrinking struct {
	metering.Source
	gone *string
}

func (s shrinking) Devices(ctx context.Context) ([]metering.Device, error) {
	all, err := s.Source.Devices(ctx)
	return inventory.Those(all, func(d metering.Device) bool { return d.UUID != *s.gone }), err
}

// TestForgottenGPUThatIsGone: the GPU of a forgotten lease fell off the bus, and cannot be taken back for that. The GPU that is left is let.
func TestForgottenGPUThatIsGone(t *testing.T) {
	address, gone := pgtest.Database(t), ""
	change, _, fails := handingOverOf(t, &address, shrinking{testclock.GPUs(2), &gone})
	r := newRig(t, change)
	first := r.opensWithout(&address, change)
	gone = first.lease.Devices[0]
	change(&r.config)
	fails(true)
	r.start()
	r.nextRenter(2).record()
}

// TestForgottenGPUIsLetAtOnce: the database falls back when the gateway that ran a lease is gone. Who wants its GPU has it taken back, and gets it.
func TestForgottenGPUIsLetAtOnce(t *testing.T) {
	address := pgtest.URL(t)
	behind, line := through(t, address)
	change, calls, _ := handingOver(t, &address)
	b := newRig(t, change)
	a := gatewayBeside(t, b, func(c *Config) { change(c); c.Database = behind })
	first := a.open(1, 300_000, "")
	first.record()
	a.kill(line)
	first.rig = b
	first.forget()
	first.takenBackBefore(b.nextRenter(2), calls())
}

// TestMeteredRouteOnAForgottenGPU: no deposit moves for a metered request whose GPU the renter of a forgotten lease still has, of gateways
// and of a lone provider, also where its allocator can be told of no lease.
func TestMeteredRouteOnAForgottenGPU(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"gateway", "lone", "adopts nothing"} {
		t.Run(name, func(t *testing.T) {
			address := ""
			if name == "gateway" {
				address = pgtest.URL(t)
			}
			over, _, fails := handingOverOf(t, &address, testclock.GPUs(2))
			change := func(c *Config) {
				database, takeover := c.Database, c.Takeover
				if over(c); name != "gateway" {
					c.Database, c.Takeover = database, takeover
				}
				if name == "adopts nothing" {
					c.Allocator = struct{ gpu.Allocator }{c.Allocator}
				}
			}
			r := newPayRig(t, change)
			fails(true)
			a := r.buyer("/tick")
			a.isServed(a.opens())
			var id string
			if err := r.provider.db.View().Get(&id, `SELECT id FROM leases`); err != nil {
				t.Fatal(err)
			}
			if name == "gateway" {
				forgetLease(t, r.provider, id, func(*sqlx.Tx) error { return nil })
				eventually(t, "the lease to be let go", func() bool { return len(r.provider.leases.All()) == 0 })
			} else {
				r.shut()
				lose(t, r.config.Database)
				change(&r.config)
				r.start()
			}
			g := newGate()
			close(g.end)
			routed(r, map[string]http.Handler{"/infer": g})
			r.buyer("/infer").isFull()
		})
	}
}

// TestBeginningLeaseKeepsItsGPU: who takes back what a lease had, and comes when that was done and the next one begins on it, leaves it alone.
func TestBeginningLeaseKeepsItsGPU(t *testing.T) {
	fresh, calls, _ := handing(t)
	r := newRig(t, quiet, func(c *Config) { c.Allocator = fresh() })
	first := r.open(1, 300_000, "")
	had := r.provider.leases.Running(first.terms.ID()).Allocation
	first.release()
	book := r.config.Allocator.(inventory.Keeper).Inventory().Book()
	if err := book.Keep(t.Context(), randomHash(), had.Devices, nil, time.Minute); err != nil {
		t.Fatal(err)
	}
	before := calls()
	if err := placement.Reclaim(t.Context(), r.provider.leases.Deps.Placer, had); !errors.Is(err, inventory.ErrTaken) || calls() != before {
		t.Errorf("%v, after\n%s", err, calls())
	}
}

// TestCutOffGatewayLeavesALaterLeaseAlone: a gateway is cut off from the database, which forgets its lease. Another gateway of the host takes the
// GPU back and lets it anew: the first one does nothing to it, neither when the old lease's credit is used up nor when it is back.
func TestCutOffGatewayLeavesALaterLeaseAlone(t *testing.T) {
	address := pgtest.URL(t)
	behind, line := through(t, address)
	change, calls, _ := handingOver(t, &address)
	short := func(c *Config) { change(c); c.Terms.Credit = 8 * time.Second }
	b := newRig(t, short)
	a := gatewayBeside(t, b, func(c *Config) { short(c); c.Database = behind })
	first := a.open(1, 300_000, "")
	first.record()
	had := a.provider.leases.Running(first.terms.ID()).Allocation
	line.set(true)
	first.rig = b
	first.forget()
	if err := b.provider.leases.Forgotten.TakeBack(t.Context()); err != nil { // as it does each half minute
		t.Fatal(err)
	}
	second := b.nextRenter(2)
	second.record()
	later := strings.Count(calls(), first.lease.LeaseID.Hex())
	suspended := "suspend " + second.lease.Devices[0] + " " + second.lease.LeaseID.Hex()
	eventually(t, "the next lease's credit to be used up, and so the first one's", func() bool { return strings.Contains(calls(), suspended) })
	time.Sleep(time.Second)
	line.set(false)
	eventually(t, "the first gateway to let go", func() bool { return a.provider.leases.Running(first.terms.ID()) == nil })
	time.Sleep(time.Second)
	if err := a.provider.leases.Deps.Placer.Suspend(t.Context(), had); !errors.Is(err, leasestore.ErrNotOwner) {
		t.Errorf("suspending what was taken back: %v", err)
	}
	if lines := strings.Split(calls(), "\n"); strings.Count(calls(), first.lease.LeaseID.Hex()) > later {
		t.Errorf("the GPU is lease %s's, and a command of lease %s is run on it:\n%s", second.lease.LeaseID, first.lease.LeaseID, strings.Join(slices.Compact(lines), "\n"))
	}
}
