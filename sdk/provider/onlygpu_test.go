package provider

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/node"
	"github.com/gpupay/gpupay/sdk/wire"
)

// counted is a host's allocator that counts what it does to devices.
type counted struct {
	*gpu.HostAllocator
	suspended, released *atomic.Int64
}

func (c counted) Suspend(ctx context.Context, a gpu.Allocation) error {
	c.suspended.Add(1)
	return c.HostAllocator.Suspend(ctx, a)
}

func (c counted) Release(ctx context.Context, a gpu.Allocation) error {
	c.released.Add(1)
	return c.HostAllocator.Release(ctx, a)
}

// rebooted is a host whose allocator is made anew, from what it lists then.
type rebooted struct {
	*testing.T
	*sickHost
	suspended, released atomic.Int64
}

func newRebooted(t *testing.T) *rebooted {
	return &rebooted{T: t, sickHost: &sickHost{Source: testclock.GPUs(2)}}
}

func (b *rebooted) allocator() gpu.Allocator {
	h, err := gpu.NewHostAllocator(b.Context(), b.sickHost)
	if err != nil {
		b.Fatal(err)
	}
	return counted{h, &b.suspended, &b.released}
}

// TestRestartWithItsOnlyGPUAway: a lease whose only GPU is not listed as its process starts goes on: its devices are suspended, and are not
// taken from a renter who pays; when the GPU is listed again it is billed. Of a provider, and of one over a server's database.
func TestRestartWithItsOnlyGPUAway(t *testing.T) {
	t.Parallel()
	for name, database := range map[string]func(t *testing.T) string{
		"sqlite": func(t *testing.T) string { return filepath.Join(t.TempDir(), "provider.db") }, "postgres": func(t *testing.T) string { return pgtest.URL(t) },
	} {
		t.Run(name, func(t *testing.T) {
			host, signed := newRebooted(t), filepath.Join(t.TempDir(), "signed")
			r := newRig(t, quiet, generousCredit, func(c *Config) {
				c.Database, c.Records.HighWater, c.Takeover = database(t), signed, 2*time.Second
				c.Source, c.Allocator = host.sickHost, host.allocator()
			})
			lease := r.open(1, 500_000, "")
			lease.record()
			device := r.provider.leases.Running(lease.terms.ID()).Allocation.Devices
			r.shut()
			host.set(nil, device...)
			r.config.Allocator = host.allocator()
			host.suspended.Store(0)
			r.start()
			eventually(t, "the lease to be suspended", func() bool { return lease.row().State == wire.StateSuspended && host.suspended.Load() > 0 })
			before := lease.spent()
			host.set(nil)
			eventually(t, "the lease to go on", func() bool { return lease.row().State == wire.StateActive && lease.spent() > before })
			if n := host.released.Load(); n != 0 {
				t.Errorf("it was released %d times", n)
			}
			if free := r.config.Allocator.(counted).Free(); free != 1 {
				t.Errorf("%d GPUs are free", free)
			}
			lease.release()
		})
	}
}

// TestNodeRestartsWithItsOnlyGPUAway: the same of a lease on a node.
func TestNodeRestartsWithItsOnlyGPUAway(t *testing.T) {
	o, host := newOutpost(t), newRebooted(t)
	o.stop()
	o.config.Source, o.config.Allocator = host.sickHost, host.allocator()
	o.start()
	r := newRig(t, o.link, generousCredit, quiet)
	lease := r.open(1, 300_000, "")
	lease.record()
	device := r.provider.leases.Running(lease.terms.ID()).Allocation.Devices
	o.stop()
	host.set(nil, device...)
	o.config.Allocator = host.allocator()
	o.start()
	o.wait(lease.lease.LeaseID, leasestore.Suspended)
	host.set(nil)
	o.wait(lease.lease.LeaseID, leasestore.Active)
	lease.record()
	if n := host.released.Load(); n != 0 {
		t.Errorf("it was released %d times", n)
	}
}

// TestGatewaysOfAHostShareReservations: of two gateways of a host, one of which was started while a GPU was lost, one takes a deposit
// for the last one.
func TestGatewaysOfAHostShareReservations(t *testing.T) {
	database, signed := pgtest.URL(t), filepath.Join(t.TempDir(), "signed")
	var hosts []*sickHost
	change := func(away ...string) func(c *Config) {
		return func(c *Config) {
			h := &sickHost{Source: testclock.GPUs(2)}
			h.set(nil, away...)
			hosts = append(hosts, h)
			c.Database, c.Records.HighWater, c.Takeover, c.Source, c.Allocator = database, signed, 20*time.Second, h, nil
		}
	}
	one := newPayRig(t, change())
	two := payRigOn(t, one.chain, change(sim.UUID(1)))
	hosts[0].set(nil, sim.UUID(1)) // it is lost for both; GPU 0 is the last one
	eventually(t, "the loss to be seen", func() bool { return one.provider.config.Allocator.(*gpu.HostAllocator).Free() == 1 })
	a, b := one.buyer("/tick"), two.buyer("/tick")
	mine, theirs := a.depositing(a.next(), 20_000), b.depositing(b.next(), 20_000)
	one.chain.Automine(t, false)
	served := make(chan *http.Response, 1)
	go func() { served <- a.pay(mine) }()
	one.underWay(a)
	refused := b.pay(theirs)
	if err := problemIn(wire.NoCapacity, refused); err != nil {
		t.Error(err)
	}
	one.chain.Automine(t, true)
	one.chain.Mine(t, 1)
	if resp := <-served; resp.StatusCode != http.StatusOK || b.holds() != 0 {
		t.Errorf("the first got %s, the second holds %d", resp.Status, b.holds())
	}
}

// TestNodeStartsWithoutItsGPUs: a node that cannot list its GPUs, or lists none, as it starts, suspends its leases and has them given back and paid;
// when they are listed again it goes on and begins others. One that has no lease is refused.
func TestNodeStartsWithoutItsGPUs(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]struct {
		broken  error
		missing []string
	}{"no listing": {broken: errors.New("driver and library differ")}, "an empty one": {missing: []string{sim.UUID(0), sim.UUID(1), sim.UUID(2)}}} {
		t.Run(name, func(t *testing.T) {
			o, host := newOutpost(t), &sickHost{Source: testclock.GPUs(3)}
			o.stop()
			o.config.Source = host
			start := func() { o.config.Allocator = gpu.HostOf(t.Context(), host); o.start() }
			host.set(away.broken, away.missing...)
			if n, err := node.New(t.Context(), o.config); err == nil {
				t.Error("it starts with nothing to do", n.Close())
			}
			host.set(nil)
			start()
			r := newRig(t, o.link, generousCredit, quiet)
			ends, stays := r.open(1, 300_000, ""), r.open(2, 300_000, "")
			ends.record()
			stays.record()
			o.stop()
			host.set(away.broken, away.missing...)
			start()
			o.wait(stays.lease.LeaseID, leasestore.Suspended)
			final := ends.release()
			ends.pay(final.Owed.Uint64())
			o.same(r, ends.lease.LeaseID)
			host.set(nil)
			o.wait(stays.lease.LeaseID, leasestore.Active)
			stays.record()
			eventually(t, "one that was in no lease to be free", func() bool { return r.provider.nodes.Free() >= 1 })
			r.open(3, 300_000, "").record()
		})
	}
}
