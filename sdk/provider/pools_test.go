package provider

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
)

// TestClassThatComesLaterIsKept: all GPUs of a class were lost when one of two gateways of a host started, and are back. What one gateway
// keeps of them for a deposit on its way is not free at the other.
func TestClassThatComesLaterIsKept(t *testing.T) {
	database, signed := pgtest.URL(t), filepath.Join(t.TempDir(), "signed")
	var host *later
	one := newRig(t, quiet, generousCredit, twoKinds, func(c *Config) {
		c.Database, c.Takeover, c.Records.HighWater = database, 20*time.Second, signed
		host = &later{Source: c.Source.(*sim.Source)}
		c.Source = host
	})
	two := gatewayBeside(t, one, func(c *Config) {
		quiet(c)
		generousCredit(c)
		twoKinds(c)
		c.Database, c.Takeover, c.Records.HighWater = database, 20*time.Second, signed
	})
	host.all.Store(true)
	one.provider.leases.Offered.Sick.Expire()
	if err := one.provider.offers.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its GPUs to be free at both", func() bool { return *one.provider.free("a100") == 2 && *two.provider.free("a100") == 2 })
	kept, err := one.provider.reserved.Reserve(t.Context(), "a100", randomHash(), 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Release()
	also, err := two.provider.reserved.Reserve(t.Context(), "a100", randomHash(), 2, 0)
	if !errors.Is(err, gpu.ErrNoCapacity) {
		t.Errorf("two GPUs are kept for one deposit at one gateway, and for another at the other: %v", err)
	}
	also.Release()
}

// TestClassesThatComeLaterAreApart: all GPUs of two classes were lost when the gateway started, and are back. What is kept of one class is
// nothing to the other.
func TestClassesThatComeLaterAreApart(t *testing.T) {
	var host *later
	r := newRig(t, quiet, generousCredit, func(c *Config) {
		c.Source = sim.New(4, sim.Options{Clock: testclock.Process(), Models: []string{"Simulated H100", "Simulated H100", "Simulated A100", "Simulated B200"}})
		c.Classes = []Class{{ID: "h100"}, {ID: "a100"}, {ID: "b200"}}
		c.Database, c.Takeover, c.Records.HighWater = pgtest.URL(t), 20*time.Second, filepath.Join(t.TempDir(), "signed")
		host = &later{Source: c.Source.(*sim.Source)}
		c.Source = host
	})
	host.all.Store(true)
	r.provider.leases.Offered.Sick.Expire()
	if err := r.provider.offers.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its GPUs to be free", func() bool { return *r.provider.free("a100") == 1 && *r.provider.free("b200") == 1 })
	kept, err := r.provider.reserved.Reserve(t.Context(), "a100", randomHash(), 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Release()
	if free := *r.provider.free("b200"); free != 1 {
		t.Errorf("one is kept of a100, and %d are free of b200", free)
	}
}

// halved is a host that does not list one of its GPUs before it is told so.
type halved struct {
	*sim.Source
	hides string
	all   atomic.Bool
}

func (h *halved) Devices(ctx context.Context) ([]metering.Device, error) {
	all, err := h.Source.Devices(ctx)
	return slices.DeleteFunc(all, func(d metering.Device) bool { return d.UUID == h.hides && !h.all.Load() }), err
}

// TestGPUsThatComeLaterAreKept: the same without classes, where each of two gateways was started while another GPU of the host was lost.
func TestGPUsThatComeLaterAreKept(t *testing.T) {
	database, signed := pgtest.URL(t), filepath.Join(t.TempDir(), "signed")
	var hosts []*halved
	change := func(c *Config) {
		quiet(c)
		generousCredit(c)
		hosts = append(hosts, &halved{Source: testclock.GPUs(2), hides: sim.UUID(len(hosts))})
		c.Source, c.Database, c.Takeover, c.Records.HighWater = hosts[len(hosts)-1], database, 20*time.Second, signed
	}
	one := newRig(t, change)
	two := gatewayBeside(t, one, change)
	for _, h := range hosts {
		h.all.Store(true)
	}
	eventually(t, "both GPUs to be free at both", func() bool { return *one.provider.free("") == 2 && *two.provider.free("") == 2 })
	kept, err := one.provider.reserved.Reserve(t.Context(), "", randomHash(), 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Release()
	also, err := two.provider.reserved.Reserve(t.Context(), "", randomHash(), 2, 0)
	if !errors.Is(err, gpu.ErrNoCapacity) {
		t.Errorf("two GPUs are kept for one deposit at one gateway, and for another at the other: %v", err)
	}
	also.Release()
}
