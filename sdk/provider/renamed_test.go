package provider

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// endsUnsigned is that a lease ends, as its GPU is of the wrong model now, with no record that says so: all that there are fit its offer.
func (t *tab) endsUnsigned(offer wire.SignedOffer, model string) {
	t.Helper()
	eventually(t.T, "the lease to end", func() bool { return t.row().State == wire.StateEnded && t.row().Held == 0 })
	if row := t.row(); !strings.Contains(row.Reason, model) {
		t.Errorf("it ended because %q", row.Reason)
	}
	records, err := t.provider.store.Records.After(t.Context(), t.lease.LeaseID, 0, 100)
	if err != nil || len(records) == 0 {
		t.Fatal(len(records), err)
	}
	of := offer.Meters(metering.Lease{})
	for _, rec := range records {
		for _, d := range rec.Evidence.Devices {
			if d.Device.Name == "" { // nobody had described it by then
				continue
			}
			if err := of.Sells(d.Device); err != nil || rec.Final {
				t.Errorf("record %d, final %t: %v", rec.Sequence, rec.Final, err)
			}
		}
	}
	eventually(t.T, "no lease to run", func() bool { return t.provider.leases.Running(t.terms.ID()) == nil })
}

// TestDriverRenamesTheModel: a driver is upgraded while a lease runs, and the next process finds the same GPU by another name. The lease ends
// at its last record and says why: each further one would convict its provider of selling another GPU than it offered.
func TestDriverRenamesTheModel(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		class  string
		models []string
		now    string
	}{
		"a longer name of its class": {"a100", []string{"Simulated H100", "Simulated H100", "Simulated A100 PCIe"}, "Simulated A100 PCIe"},
		"the other class":            {"a100", []string{"Simulated A100", "Simulated A100", "Simulated H100"}, "Simulated H100"},
		"no class":                   {"", []string{"Simulated GPU PCIe"}, "Simulated GPU PCIe"},
	} {
		t.Run(name, func(t *testing.T) {
			kinds := quiet
			if c.class != "" {
				kinds = twoKinds
			}
			r := newRig(t, quiet, generousCredit, kinds)
			lease := r.inClass(c.class).open(1, 300_000, "")
			lease.record()
			offer, err := r.provider.offers.Of(c.class)
			if err != nil {
				t.Fatal(err)
			}
			r.shut()
			r.config.Allocator, r.config.Source = nil, sim.New(4, sim.Options{Clock: testclock.Process(), Models: c.models})
			r.start()
			if r.provider.leases.Running(lease.terms.ID()) != nil {
				t.Error("it goes on")
			}
			lease.endsUnsigned(offer, c.now)
		})
	}
}

// TestNodesDriverRenamesTheModel: the same of a node, which tells its gateway.
func TestNodesDriverRenamesTheModel(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, quiet, generousCredit)
	lease := r.open(1, 300_000, "")
	lease.record()
	offer := r.provider.Offer()
	o.stop()
	o.config.Source = cheap{testclock.GPUs(2)}
	o.start()
	lease.endsUnsigned(offer, "Cheap GPU")
}

// renaming is a host whose driver names its GPUs otherwise once it was away.
type renaming struct {
	*sim.Source
	away, renamed atomic.Bool
}

func (h *renaming) Devices(ctx context.Context) ([]metering.Device, error) {
	all, err := h.Source.Devices(ctx)
	for i := range all {
		if h.renamed.Load() {
			all[i].Name += " PCIe"
		}
	}
	return all, err
}

func (h *renaming) Describe(ctx context.Context, uuid string) (metering.Device, error) {
	all, err := h.Devices(ctx)
	for _, d := range all {
		if d.UUID == uuid {
			return d, nil
		}
	}
	return metering.Device{}, err
}

func (h *renaming) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	if h.away.Load() {
		return metering.Reading{}, metering.ErrEnd
	}
	return h.Source.Read(ctx, uuid)
}

// TestDriverRenamesTheModelOfALeaseThatRuns: a driver is exchanged under a process, which goes on with its readings and hears of another name
// of the GPU. A lease on it ends as over a restart, and where it has a class the GPU goes into no new one that pays for the class of before.
func TestDriverRenamesTheModelOfALeaseThatRuns(t *testing.T) {
	host := &renaming{}
	r := newRig(t, quiet, generousCredit, twoKinds, func(c *Config) {
		host.Source = c.Source.(*sim.Source)
		c.Source = host
	})
	on := r.inClass("a100").open(1, 300_000, "")
	on.record()
	offer, err := r.provider.offers.Of("a100")
	if err != nil {
		t.Fatal(err)
	}
	host.renamed.Store(true)
	host.away.Store(true)
	eventually(t, "it not to be metered", func() bool { return lease.Unmetered(r.provider.leases.All()) == 1 })
	host.away.Store(false)
	on.endsUnsigned(offer, "Simulated A100 PCIe")
	r.provider.leases.Offered.Sick.Expire()
	r.provider.leases.GPUs(t.Context())
	if free := *r.provider.free("a100"); free != 0 {
		t.Errorf("%d are free", free)
	}
	r.payer = r.fund(t, 1_000_000)
	if err := problemIn(wire.NoCapacity, r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 300_000, 0))); err != nil {
		t.Error(err)
	}
	if has := r.balance(r.payer.Address()); has != 1_000_000 {
		t.Errorf("its payer has %d left", has)
	}
}

// TestHonestProviderStartsOtherwise: an honest provider is started again with another price, other classes, or a driver that names its GPUs
// otherwise, while a renter of the SDK has a lease. The renter pays the old price for what was metered, and accuses nobody.
func TestHonestProviderStartsOtherwise(t *testing.T) {
	t.Parallel()
	named := func(models ...string) func(*Config) {
		return func(c *Config) {
			c.Source = sim.New(4, sim.Options{Clock: testclock.Process(), Models: models})
		}
	}
	for name, then := range map[string]func(*Config){
		"as before":     named("Simulated H100", "Simulated H100", "Simulated A100"),
		"another price": func(c *Config) { c.Classes[1].PricePerGPUHour = "3.00" },
		"other names": func(c *Config) {
			c.Classes = []Class{{ID: "big", Model: "h100"}, {ID: "small", Model: "a100", PricePerGPUHour: "3.00"}}
		},
		"the name is another's": func(c *Config) { c.Classes = []Class{{ID: "a100", Model: "h100"}, {ID: "old", Model: "a100"}} },
		"no classes": func(c *Config) {
			c.Classes = nil
			named("Simulated H100", "Simulated H100", "Simulated H100")(c)
		},
		"the driver renames": named("Simulated H100", "Simulated H100", "Simulated A100 PCIe"),
	} {
		t.Run(name, func(t *testing.T) {
			p := newPairWith(t, renter.Options{Class: "a100", Deposit: "0.3", PayEvery: 50 * time.Millisecond}, func(c *Config) {
				generousCredit(c)
				twoKinds(c)
			})
			id := p.rental.ID()
			p.goOn(3)
			p.down()
			then(&p.config)
			p.resume()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			before, ends := p.rental.Snapshot().Sequence, p.provider.leases.Running(id) == nil
			if err := p.rental.Run(ctx); ends != (err == nil) {
				t.Errorf("it ended %t, and Run says %v", ends, err)
			}
			if kept, err := p.renter.Evidence(t.Context(), id); err != nil || len(kept) != 0 {
				t.Errorf("the renter accuses an honest provider: %v, %v", reasons(kept), err)
			}
			closing, cancelled := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancelled()
			closed, err := p.rental.Close(closing)
			if err != nil {
				t.Fatal(err)
			}
			records, err := p.renter.Records(t.Context(), id)
			if err != nil || len(records) == 0 {
				t.Fatal(err)
			}
			last := records[len(records)-1]
			if got, want := closed.Settled.Uint64(), last.Nanos*500/1e9; got != want || last.Sequence <= before && !ends {
				t.Errorf("%d is settled for %d ns, want %d; record %d after %d", got, last.Nanos, want, last.Sequence, before)
			}
			if row, _, err := p.provider.store.Leases.Newest(t.Context(), id); err != nil || row.State != string(leasestore.Ended) || uint64(row.Sequence) != last.Sequence {
				t.Errorf("the provider has %d records of it, which the renter has to %d, and its state is %s (%v)", row.Sequence, last.Sequence, row.State, err)
			}
		})
	}
}
