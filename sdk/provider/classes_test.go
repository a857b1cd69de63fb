package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// twoKinds is a host of two GPUs of each of two kinds, each with a price: 1000 base units a second for the first, and 500 for the other.
func twoKinds(c *Config) {
	c.Source = sim.New(4, sim.Options{Clock: testclock.Process(), Models: []string{"Simulated H100", "Simulated H100", "Simulated A100"}})
	c.PricePerGPUHour = "3.60"
	c.Classes = []Class{{ID: "h100"}, {ID: "a100", PricePerGPUHour: "1.80"}}
}

// kindOf are the GPUs of each class of that host.
var kindOf = map[string][]string{"h100": {sim.UUID(0), sim.UUID(1)}, "a100": {sim.UUID(2), sim.UUID(3)}}

// TestEachRenterGetsItsClass: of a host with two kinds of GPUs each of two renters gets what it asked for, at the price of that, and it
// is settled to the base unit.
func TestEachRenterGetsItsClass(t *testing.T) {
	r := newRig(t, quiet, generousCredit, twoKinds)
	before := r.balance(r.config.Key.Address())
	var owed uint64
	for id, price := range map[string]uint64{"h100": 1000, "a100": 500} {
		client := r.renter(t, filepath.Join(t.TempDir(), "renter.db"), func(c *renter.Config) { c.Key = r.fund(t, 1_000_000); c.MaxCredit = 2 * 3600e9 })
		l, err := client.Rent(t.Context(), r.server.URL, renter.Options{GPUs: 2, Class: id, Deposit: "0.3"})
		if err != nil {
			t.Fatal(err)
		}
		ran := make(chan error, 1)
		go func() { ran <- l.Run(t.Context()) }()
		state := awaitRecord(t, l, 3)
		if devices := slices.Sorted(slices.Values(state.Devices)); !slices.Equal(devices, kindOf[id]) {
			t.Errorf("%s: it has %v", id, devices)
		}
		closing, err := l.Close(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		records, err := client.Records(t.Context(), l.ID())
		if err != nil {
			t.Fatal(err)
		}
		last := records[len(records)-1]
		if want := last.Nanos * price / 1e9; last.Owed.Uint64() != want || closing.Settled.Uint64() != want || want == 0 {
			t.Errorf("%s: %d ns cost %s, and %s is settled; want %d", id, last.Nanos, last.Owed.Dec(), closing.Settled.Dec(), want)
		}
		owed += closing.Settled.Uint64()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}
	if got := r.balance(r.config.Key.Address()) - before; got != owed {
		t.Errorf("the payee has %d more, %d was owed", got, owed)
	}
}

// inClass has the rig's requests be for a class from here on.
func (r *rig) inClass(id string) *rig {
	r.class = id
	return r
}

// TestClassesAreAskedFor: a request that does not say which of two classes it is for is told of both, and of one that there is not of
// those that there are; neither gets a challenge. The offers are had by class, and by their hash.
func TestClassesAreAskedFor(t *testing.T) {
	r := newRig(t, quiet, twoKinds)
	for id, want := range map[string]wire.Problem{"": wire.NoClass, "b200": wire.NoSuchClass} {
		resp := r.inClass(id).do("GET", "", nil)
		problem := wire.ParseProblem(resp)
		if !errors.Is(problem, &want) || !slices.Equal(problem.Classes, []string{"h100", "a100"}) || !strings.Contains(problem.Detail, "h100, a100") || resp.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("class %q: %+v", id, problem)
		}
		offer, err := http.Get(r.server.URL + "/offer?class=" + id)
		if err != nil || offer.StatusCode != want.Status {
			t.Errorf("class %q: its offer: %s, %v", id, offer.Status, err)
		}
	}
	for i, offer := range r.provider.Offers() {
		id := []string{"h100", "a100"}[i]
		challenge := r.inClass(id).challenge()
		asked, err := challenge.Decode()
		if err != nil || asked.ExternalID != offer.Hash.Hex() || offer.ClassID() != id || asked.Amount != offer.Amount || offer.Devices[0].Count != 2 || len(offer.Devices) != 1 {
			t.Errorf("class %s: %+v of %+v: %v", id, asked, offer.Offer, err)
		}
		if parsed, err := wire.ParseOffer(offer.Document); err != nil || parsed.Version != 2 || parsed.Meter == (wire.Address{}) {
			t.Errorf("class %s: %+v %v", id, parsed.Offer, err)
		}
		for _, path := range []string{"/offer?class=" + id, "/offer/" + offer.Hash.Hex()} {
			resp, err := http.Get(r.server.URL + path)
			if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(resp.Header.Get("ETag"), offer.Hash.Hex()) {
				t.Errorf("%s: %s, %v", path, resp.Status, err)
			}
		}
	}
}

// TestClassesAreCountedApart: what is free of one class, and what is kept of it, is nothing to the other.
func TestClassesAreCountedApart(t *testing.T) {
	r := newRig(t, quiet, generousCredit, twoKinds)
	free := func() string { return fmt.Sprint(*r.provider.free("h100"), *r.provider.free("a100")) }
	kept, err := r.provider.reserved.Reserve(t.Context(), "a100", randomHash(), 1, 0)
	if err != nil || free() != "2 1" {
		t.Errorf("one is kept of a100: %s are free (%v)", free(), err)
	}
	if problem := wire.ParseProblem(r.inClass("a100").do("GET", "", nil)); problem.FreeGPUs == nil || *problem.FreeGPUs != 1 {
		t.Errorf("%+v", problem)
	}
	lease := r.inClass("h100").open(1, 300_000, "?gpus=2")
	if free() != "0 1" {
		t.Errorf("h100 is let: %s are free", free())
	}
	if err := problemIn(wire.NoCapacity, r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, 0))); err != nil {
		t.Error(err)
	}
	r.inClass("a100")
	if err := problemIn(wire.NoCapacity, r.do("GET", "?gpus=2", r.openCredential(r.payer, r.terms(r.payer.Address(), 3), 100_000, 0))); err != nil {
		t.Error(err)
	}
	kept.Release()
	if second := r.open(4, 300_000, "?gpus=2"); free() != "0 0" || !slices.Equal(slices.Sorted(slices.Values(second.lease.Devices)), kindOf["a100"]) {
		t.Errorf("%s are free, %v are let", free(), second.lease.Devices)
	}
	r.inClass("h100")
	lease.release()
	eventually(t, "h100 to be free", func() bool { return free() == "2 0" })
}

// TestCredentialOfAnotherClass: a challenge for one class begins no lease of another, whatever the request says.
func TestCredentialOfAnotherClass(t *testing.T) {
	r := newRig(t, quiet, generousCredit, twoKinds)
	cred := r.inClass("a100").openCredential(r.payer, r.terms(r.payer.Address(), 1), 300_000, 0)
	if err := problemIn(wire.MalformedCredential, r.inClass("h100").do("GET", "", cred)); err != nil {
		t.Error(err)
	}
	lease := &tab{rig: r, key: r.payer, terms: r.terms(r.payer.Address(), 1)}
	lease.attach(r.inClass("").do("GET", "", cred)) // that does not say is for what it has a challenge for
	if !slices.Contains(kindOf["a100"], lease.lease.Devices[0]) {
		t.Errorf("it has %v", lease.lease.Devices)
	}
}

// TestLeaseOfAClassGoesOn: a lease goes on under the offer that it began with over a restart, at its price and on its GPU, and is paid
// to its end, whatever classes the provider was started with since. None begins any more under an offer of before.
func TestLeaseOfAClassGoesOn(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]func(*Config){
		"the same classes": func(*Config) {},
		"another price":    func(c *Config) { c.Classes[1].PricePerGPUHour = "3.00" },
		"other names":      func(c *Config) { c.Classes = []Class{{ID: "big", Model: "h100"}, {ID: "small", Model: "a100"}} },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, quiet, generousCredit, twoKinds)
			lease := r.inClass("a100").open(1, 300_000, "")
			device := lease.lease.Devices[0]
			stale := r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, 0)
			lease.record()
			then(&r.config)
			r.restart()
			lease.again()
			lease.pay(owedIn(lease.record()))
			final := lease.release()
			lease.pay(final.Owed.Uint64())
			if final.Evidence.Devices[0].Device.UUID != device || final.Owed.Uint64() != final.Nanos*500/1e9 || final.Nanos == 0 {
				t.Errorf("it had %s; its end says %+v", device, final)
			}
			resp := r.inClass("").do("GET", "", stale)
			if name == "other names" {
				if err := problemIn(wire.NoSuchClass, resp); err != nil {
					t.Error(err)
				}
			} else if resp.StatusCode != http.StatusOK {
				t.Error(wire.ParseProblem(resp))
			}
		})
	}
}

// wrongKind is an allocator that gives a GPU of another class than was asked for.
type wrongKind struct{ oneGPU }

// TestAnotherClassIsGivenBack: what an allocator gives to a lease that pays for another class is taken back, and the lease does not begin.
func TestAnotherClassIsGivenBack(t *testing.T) {
	wrong := wrongKind{oneGPU{make(chan gpu.Allocation, 8)}}
	r := newRig(t, quiet, generousCredit, twoKinds, func(c *Config) { c.Allocator = wrong })
	terms := r.terms(r.payer.Address(), 1)
	resp := r.inClass("a100").do("GET", "", r.openCredential(r.payer, terms, 300_000, 0))
	if resp.StatusCode != http.StatusInternalServerError || len(wrong.released) != 1 || r.provider.leases.Running(terms.ID()) != nil {
		t.Errorf("%s, %d given back", resp.Status, len(wrong.released))
	}
	r.inClass("h100").open(2, 300_000, "").record()
}

// TestClassesOfAHost: GPUs of several kinds are rented out where each kind has a class, and not without; of one that no class names
// nothing is rented out.
func TestClassesOfAHost(t *testing.T) {
	r := newRig(t, quiet, twoKinds)
	r.shut()
	for name, c := range map[string]struct {
		classes []Class
		words   string // of the refusal; empty: none
		offers  string
	}{
		"no class":                {nil, "of one kind", ""},
		"a class of both":         {[]Class{{ID: "all", Model: "simulated"}}, "class all: ", ""},
		"two that name one":       {[]Class{{ID: "h100"}, {ID: "hundred", Model: "100"}}, "both class h100 and class hundred name", ""},
		"two of a name":           {[]Class{{ID: "h100"}, {ID: "h100", Model: "a100"}}, "two of the name h100", ""},
		"a name that is none":     {[]Class{{ID: "H100"}}, "H100", ""},
		"a price that is none":    {[]Class{{ID: "h100", PricePerGPUHour: "dear"}}, "(of class h100)", ""},
		"one that is not here":    {[]Class{{ID: "b200"}}, "no GPU of simulated is of a class", ""},
		"one of two":              {[]Class{{ID: "a100"}}, "", "a100"},
		"three, one is not here":  {[]Class{{ID: "b200"}, {ID: "a100"}, {ID: "h100"}}, "", "a100 h100"},
		"by memory, of the wrong": {[]Class{{ID: "a100", MemoryBytes: 40 << 30}}, "no GPU of simulated is of a class", ""},
		"by memory":               {[]Class{{ID: "a100", MemoryBytes: 80 << 30}}, "", "a100"},
		"slices":                  {[]Class{{ID: "a100", MIG: true}}, "no GPU of simulated is of a class", ""},
	} {
		config := r.config
		config.Classes, config.Database = c.classes, filepath.Join(t.TempDir(), "p.db")
		p, err := New(t.Context(), config)
		if c.words != "" {
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var ids []string
		for _, o := range p.Offers() {
			ids = append(ids, o.ClassID())
		}
		if got := strings.Join(ids, " "); got != c.offers {
			t.Errorf("%s: %s are offered", name, got)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// later is a host whose last GPUs are not listed before it is told so.
type later struct {
	*sim.Source
	all atomic.Bool
}

func (l *later) Devices(ctx context.Context) ([]metering.Device, error) {
	devices, err := l.Source.Devices(ctx)
	if !l.all.Load() {
		devices = devices[:2]
	}
	return devices, err
}

// TestClassThatComesLater: of a class whose GPUs were all lost when the program started none is to be had, and it is offered and rented
// out when they are back, without another start.
func TestClassThatComesLater(t *testing.T) {
	var host *later
	r := newRig(t, quiet, generousCredit, twoKinds, func(c *Config) {
		host = &later{Source: c.Source.(*sim.Source)}
		c.Source = host
	})
	if err := problemIn(wire.NoCapacity, r.inClass("a100").do("GET", "", nil)); err != nil {
		t.Error(err)
	}
	if err := problemIn(wire.NoClass, r.inClass("").do("GET", "", nil)); err != nil {
		t.Error(err)
	}
	r.inClass("h100").open(1, 300_000, "").record()
	host.all.Store(true)
	r.provider.leases.Offered.Sick.Expire()
	if err := r.provider.offers.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its GPUs to be free", func() bool { return *r.provider.free("a100") == 2 })
	lease := r.inClass("a100").open(2, 300_000, "?gpus=2")
	if devices := slices.Sorted(slices.Values(lease.lease.Devices)); !slices.Equal(devices, kindOf["a100"]) {
		t.Errorf("it has %v", devices)
	}
	lease.record()
}

// TestLeaseFromBeforeClassesGoesOn: a lease of before the provider had classes goes on and is paid when it has two, by a renter that knows none; nobody
// begins another by the challenge that it gets for that, and is told before anything is deposited.
func TestLeaseFromBeforeClassesGoesOn(t *testing.T) {
	r := newRig(t, quiet, generousCredit)
	lease := r.open(1, 300_000, "")
	stale := r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, 0)
	lease.record()
	twoKinds(&r.config)
	r.config.Source = sim.New(4, sim.Options{Clock: testclock.Process(), Models: []string{"Simulated GPU", "Simulated GPU", "Simulated A100"}})
	r.config.Classes[0].Model = "Simulated GPU"
	r.restart()
	lease.again()
	lease.pay(owedIn(lease.record()))
	if problem := wire.ParseProblem(r.do("GET", "", nil)); problem.FreeGPUs == nil || *problem.FreeGPUs != 0 || len(problem.Classes) != 2 {
		t.Errorf("%+v", problem)
	}
	for _, cred := range []*wire.Credential{stale, r.openCredential(r.payer, r.terms(r.payer.Address(), 3), 100_000, 0)} {
		if err := problemIn(wire.NoClass, r.do("GET", "", cred)); err != nil {
			t.Error(err)
		}
	}
	final := lease.release()
	lease.pay(final.Owed.Uint64())
}

// TestGPUOfTwoClassesThatComesLater: a GPU that two classes name is rented out for the price of neither, also where it was not there when the
// program started, and that is said once. The next start is refused.
func TestGPUOfTwoClassesThatComesLater(t *testing.T) {
	var host *later
	var log testrig.Log
	r := newRig(t, quiet, generousCredit, twoKinds, func(c *Config) {
		host = &later{Source: c.Source.(*sim.Source)}
		c.Source, c.Log = host, slog.New(slog.NewTextHandler(&log, nil))
		c.Classes = []Class{{ID: "h100"}, {ID: "cheap", Model: "a100", PricePerGPUHour: "0.36"}, {ID: "dear", Model: "simulated a", PricePerGPUHour: "36"}}
	})
	host.all.Store(true)
	for range 3 {
		r.provider.leases.Offered.Sick.Expire()
		if err := r.provider.offers.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, offer := range r.provider.Offers() {
		if offer.ClassID() != "h100" {
			t.Errorf("GPUs that two classes name are sold as %s: %+v", offer.ClassID(), offer.Amount)
		}
	}
	if free := fmt.Sprint(*r.provider.free("h100"), *r.provider.free("cheap"), *r.provider.free("dear")); free != "2 0 0" {
		t.Errorf("%s are free", free)
	}
	for _, uuid := range kindOf["a100"] {
		if n := strings.Count(log.String(), "not rented out, and the next start would be refused\" gpu="+uuid); n != 1 {
			t.Errorf("that %s is not rented out is said %d times:\n%s", uuid, n, log.String())
		}
	}
	config := r.config
	config.Database = filepath.Join(t.TempDir(), "p.db")
	if _, err := New(t.Context(), config); err == nil || !strings.Contains(err.Error(), "both class cheap and class dear") {
		t.Errorf("the next start: %v", err)
	}
}
