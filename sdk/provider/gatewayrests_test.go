package provider

import (
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// restingHost is a host whose first GPU is listed and cannot be metered, and what its gateways are configured with.
func restingHost(t *testing.T) (*sickHost, func(*Config)) {
	host, dir := &sickHost{Source: testclock.GPUs(2)}, t.TempDir()
	host.fail(sim.UUID(0))
	return host, func(c *Config) {
		c.Takeover, c.Records.HighWater = 20*time.Second, filepath.Join(dir, "signed")
		c.Source, c.Allocator, c.Terms.Credit = host, nil, time.Minute
	}
}

// suffers has a lease suspended for the GPU that cannot be metered.
func suffers(t *testing.T, r *rig) *tab {
	t.Helper()
	lease := r.open(1, 500_000, "")
	r.have(lease, sim.UUID(0))
	waitFor(t, func() bool { return r.provider.Service(lease.terms.ID()) == string(leasestore.Suspended) })
	return lease
}

func (r *rig) have(lease *tab, device string) {
	r.Helper()
	if l := r.provider.leases.Running(lease.terms.ID()); l == nil || !slices.Equal(l.Allocation.Devices, []string{device}) {
		r.Errorf("the lease has %+v, want %s", l, device)
	}
}

// rests waits until exactly these are in quarantine at a gateway.
func (r *rig) rests(devices ...string) {
	r.Helper()
	waitFor(r.T, func() bool { return slices.Equal(r.health().Quarantined, devices) })
}

// TestGPURestsAtAllGateways: a GPU that a lease of one gateway could not meter goes into no lease at the other gateway of the host. When
// it is metered again at that one, it is let at once by all, be it after a restart.
func TestGPURestsAtAllGateways(t *testing.T) {
	host, change := restingHost(t)
	database := pgtest.URL(t)
	shared := func(c *Config) { c.Database = database }
	a := newRig(t, change, shared)
	b := gatewayBeside(t, a, func(c *Config) { change(c); shared(c) })
	sick := suffers(t, a)
	b.rests(sim.UUID(0))
	next := b.open(2, 500_000, "")
	b.have(next, sim.UUID(1))
	next.at(b).release()
	host.fail()
	a.shut() // its lease goes on at b, which meters the GPU
	waitFor(t, func() bool { return b.provider.Service(sick.terms.ID()) == string(leasestore.Active) })
	b.rests()
	a.start()
	a.rests()
}

// TestGPURestsOverARestart: a GPU that could not be metered goes into no lease of the next process.
func TestGPURestsOverARestart(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			_, change := restingHost(t)
			r := newRig(t, change)
			suffers(t, r).release()
			r.shut()
			r.start()
			if got := r.health().Quarantined; !slices.Equal(got, []string{sim.UUID(0)}) {
				t.Errorf("the next process begins with %s in quarantine", got)
			}
			r.have(r.open(2, 500_000, ""), sim.UUID(1))
		})
	}
}

// TestGPURestsOverARestartOfItsNode: so does a node, by its spool.
func TestGPURestsOverARestartOfItsNode(t *testing.T) {
	host, _ := restingHost(t)
	o := newOutpost(t)
	o.stop()
	o.config.Source = host
	o.start()
	r := newRig(t, o.link, generousCredit)
	sick := r.open(1, 500_000, "")
	rests := func(at string) {
		t.Helper()
		eventually(t, "the GPU to rest "+at, func() bool {
			var h health
			fetched(t, o.node.Health(), &h)
			return slices.Equal(h.Quarantined, []string{sim.UUID(0)})
		})
	}
	rests("at the node")
	sick.release()
	o.stop()
	o.start()
	rests("at the next process")
	eventually(t, "the gateway to see its node", func() bool { return r.provider.nodes.Free() == 1 })
	r.have(r.open(2, 500_000, ""), sim.UUID(1))
}

// TestGPURestsWhileTheDatabaseIsAway: a gateway keeps a GPU that fails while the database is away out of its own leases, and the others
// hear of it when the database is back.
func TestGPURestsWhileTheDatabaseIsAway(t *testing.T) {
	host, change := restingHost(t)
	host.fail()
	direct := pgtest.URL(t)
	address, line := through(t, direct)
	quiet := func(c *Config) { c.Takeover, c.Log = time.Minute, slog.New(slog.DiscardHandler) }
	a := newRig(t, change, quiet, func(c *Config) { c.Database = address })
	b := gatewayBeside(t, a, func(c *Config) { change(c); quiet(c); c.Database = direct })
	lease := a.open(1, 500_000, "")
	lease.record()
	line.set(true)
	host.fail(sim.UUID(0))
	sick := a.provider.leases.Deps.Sick[1] // of the allocator
	waitFor(t, func() bool { return len(sick.Lately(nil, func() []string { return []string{sim.UUID(0)} })) == 0 })
	b.rests()
	line.set(false)
	b.rests(sim.UUID(0))
	waitFor(t, func() bool { return a.provider.Service(lease.terms.ID()) == string(leasestore.Suspended) })
}
