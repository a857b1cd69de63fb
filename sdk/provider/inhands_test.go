package provider

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
)

// lose has a database be gone, and leaves what is beside it.
func lose(t *testing.T, path string) {
	t.Helper()
	for _, end := range []string{"", "-wal", "-shm", ".lock"} {
		if err := os.Remove(path + end); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

// handing is a host of one GPU whose commands are written down.
func handing(t *testing.T) (fresh func() *gpu.HostAllocator, calls func() string, fails func(bool)) {
	return handingOf(t, testclock.GPUs(1))
}

// handingOf is handing of a host that has a source's GPUs.
func handingOf(t *testing.T, source metering.Source) (fresh func() *gpu.HostAllocator, calls func() string, fails func(bool)) {
	command, calls := script(t, `[ "$1" != release ] || [ ! -e $0.fails ]`)
	fresh = func() *gpu.HostAllocator {
		host, err := gpu.NewHostAllocator(t.Context(), source)
		if err != nil {
			t.Fatal(err)
		}
		host.AllocateCommand, host.SuspendCommand, host.ReleaseCommand = append(command, "allocate"), append(command[:1:1], "suspend"), append(command[:1:1], "release")
		return host
	}
	return fresh, calls, func(on bool) {
		if err := os.WriteFile(command[0]+".fails", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if !on {
			_ = os.Remove(command[0] + ".fails")
		}
	}
}

// TestLostSpoolGivesNoGPUAwayTwice: a node begins with an empty spool while the renter of a lease that this has forgotten has its GPU:
// it is taken back before the next renter gets it. Where that fails it stays taken, and the next start tries again.
func TestLostSpoolGivesNoGPUAwayTwice(t *testing.T) {
	o := newOutpost(t)
	o.stop()
	fresh, calls, fails := handing(t)
	host := fresh()
	o.config.Source, o.config.Allocator, o.config.Log = host.Source, host, slog.New(slog.DiscardHandler)
	o.start()
	r := newRig(t, o.link, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	first := r.open(1, 300_000, "")
	first.record()
	device := host.Devices[0]
	o.stop()
	lose(t, o.config.Database)
	fails(true)
	again := fresh()
	o.config.Allocator = again
	o.start()
	if !strings.Contains(calls(), fmt.Sprintf("release %s %s", device, first.lease.LeaseID)) || again.Free() != 0 {
		t.Errorf("with a release that fails %d are free, after\n%s", again.Free(), calls())
	}
	o.stop()
	fails(false)
	last := fresh()
	o.config.Allocator = last
	o.start()
	if last.Free() != 1 || strings.Count(calls(), "release") != 2 {
		t.Errorf("%d are free, after\n%s", last.Free(), calls())
	}
	eventually(t, "the lease to end at the gateway", func() bool { return r.provider.leases.Running(first.terms.ID()) == nil })
	eventually(t, "the node to be back", func() bool { return r.provider.nodes.Free() == 1 })
	second := r.open(2, 300_000, "")
	second.release()
	o.stop()
	before := calls()
	o.config.Allocator = fresh()
	o.start()
	if after := calls(); after != before {
		t.Errorf("what was given back is taken back once more:\n%s", after)
	}
}

// TestLostDatabaseGivesNoGPUAwayTwice: the same of a provider that meters by itself.
func TestLostDatabaseGivesNoGPUAwayTwice(t *testing.T) {
	fresh, calls, _ := handing(t)
	r := newRig(t, func(c *Config) { c.Allocator, c.Log = fresh(), slog.New(slog.DiscardHandler) })
	lease := r.open(1, 300_000, "")
	lease.record()
	r.shut()
	r.config.Allocator = fresh()
	r.start()
	if strings.Contains(calls(), "release") || r.provider.leases.Running(lease.terms.ID()) == nil {
		t.Fatalf("a lease that is known does not go on:\n%s", calls())
	}
	r.shut()
	lose(t, r.config.Database)
	host := fresh()
	r.config.Allocator = host
	r.start()
	if want := fmt.Sprintf("release %s %s", host.Devices[0], lease.lease.LeaseID); strings.Count(calls(), want) != 1 || host.Free() != 1 {
		t.Errorf("%d are free, after\n%s", host.Free(), calls())
	}
}
