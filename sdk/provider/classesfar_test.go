package provider

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestNodesOfTwoClasses: a gateway rents out nodes of two kinds, each at the price of its class, and each lease begins on a node of its
// class, whichever has most free; one that no class names begins none, and no node of one class is counted for the other.
func TestNodesOfTwoClasses(t *testing.T) {
	good := newOutpost(t)
	cheap := newCheapOutpost(t, good)
	odd := newNamedOutpost(t, "west")
	odd.stop()
	odd.config.Source, odd.config.Log = sim.New(8, sim.Options{Clock: testclock.Process(), Models: []string{"Odd GPU"}}), slog.New(slog.DiscardHandler)
	odd.start()
	r := newRig(t, good.link, generousCredit, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: cheap.server.URL}, NodeLink{Name: "west", URL: odd.server.URL})
		c.Classes = []Class{{ID: "good", Model: "simulated gpu"}, {ID: "cheap", Model: "Cheap", PricePerGPUHour: "1.80"}}
		c.Log = slog.New(slog.DiscardHandler)
	})
	if h := r.health(); len(h.Refused) != 1 || !strings.Contains(h.Refused["west"], "Odd GPU") || !strings.Contains(h.Refused["west"], "good, cheap") {
		t.Errorf("refused are %v", h.Refused)
	}
	if offers := r.provider.Offers(); len(offers) != 2 || offers[0].Devices[0].Count != 2 || offers[1].Devices[0].Count != 4 || offers[0].Class.Model != "Simulated GPU" || offers[1].Class.Model != "Cheap GPU" {
		t.Fatalf("%+v are offered", offers)
	}
	if dear, low := r.provider.free("good"), r.provider.free("cheap"); *dear != 2 || *low != 4 {
		t.Errorf("%d and %d are free", *dear, *low)
	}
	var asked atomic.Int32
	cheap.begins(func() { asked.Add(1) }, nil)
	lease := r.inClass("good").open(1, 300_000, "")
	if lease.record(); asked.Load() != 0 {
		t.Error("a node of another class, which has more free, was asked for the lease")
	}
	cheap.begins(nil, nil)
	second := r.inClass("cheap").as(r.fund(t, 1_000_000), 2, 300_000) // a payer's credit is divided among its leases at nodes
	second.record()
	for id, want := range map[*tab]string{lease: "north", second: "south"} {
		if l := r.provider.leases.Running(id.terms.ID()); l == nil || l.Allocation.Node != want {
			t.Errorf("it runs at %+v, want %s", l, want)
		}
	}
	eventually(t, "the nodes to say what is free", func() bool { return *r.provider.free("good") == 1 && *r.provider.free("cheap") == 3 })
	if err := problemIn(wire.NoCapacity, r.inClass("good").do("GET", "?gpus=2", r.openCredential(r.payer, r.terms(r.payer.Address(), 3), 100_000, 0))); err != nil {
		t.Error(err)
	}
	r.config.Nodes.Links[0], r.config.Nodes.Links[1] = r.config.Nodes.Links[1], r.config.Nodes.Links[0]
	r.restart()
	r.inClass("cheap")
	second.again()
	second.record()
	if final := second.release(); final.Owed.Uint64() != final.Nanos*500/1e9 || final.Nanos == 0 {
		t.Errorf("%+v", final.Record)
	}
	r.inClass("good")
	lease.again()
	if final := lease.release(); final.Owed.Uint64() != final.Nanos*1000/1e9 || final.Nanos == 0 {
		t.Errorf("%+v", final.Record)
	}
}

// TestNodesOfAClassAreOfOneKind: of two nodes that a class names, and that are of different kinds, the second begins no lease.
func TestNodesOfAClassAreOfOneKind(t *testing.T) {
	good := newOutpost(t)
	bad := newCheapOutpost(t, good)
	r := newRig(t, good.link, generousCredit, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: bad.server.URL})
		c.Classes, c.Log = []Class{{ID: "all", Model: "gpu"}}, slog.New(slog.DiscardHandler)
	})
	bad.refused(r)
	if free := r.provider.free("all"); *free != 2 {
		t.Errorf("%d are free", *free)
	}
}

// TestNodeOfTwoClasses: a node whose GPUs two classes name begins no lease, and its operator is told which two.
func TestNodeOfTwoClasses(t *testing.T) {
	good := newOutpost(t)
	both := newCheapOutpost(t, good)
	r := newRig(t, good.link, generousCredit, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: both.server.URL})
		c.Classes, c.Log = []Class{{ID: "good", Model: "simulated gpu"}, {ID: "cheap"}, {ID: "other", Model: "cheap g"}}, slog.New(slog.DiscardHandler)
	})
	both.refused(r)
	if why := r.health().Refused["south"]; !strings.Contains(why, "both class cheap and class other name") {
		t.Errorf("it is refused as %s", why)
	}
}

// TestX402TicksOfAClass: who pays by ticks has GPUs of the class that it names, at the price of that; on a channel whose lease is of one
// class no other is to be had before it ends, and a request that names none is told of both.
func TestX402TicksOfAClass(t *testing.T) {
	r := newPayRig(t, twoKinds)
	for path, want := range map[string]wire.Problem{"/tick": wire.NoClass, "/tick?class=b200": wire.NoSuchClass} {
		if err := problemIn(want, r.send("GET", path, nil)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for id, price := range map[string]uint64{"h100": 1000, "a100": 500} {
		n := newTickRenterOf(t, r, id)
		for range 2 {
			tick := n.tick()
			if !slices.Contains(kindOf[id], tick.Devices[0]) || tick.Record.Owed.Uint64() != tick.Record.Nanos*price/1e9 || tick.Record.Nanos == 0 {
				t.Errorf("%s: %+v", id, tick)
			}
		}
		if _, err := n.rental.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	b := r.buyer("/tick?class=a100")
	if tick := b.open(100_000); !slices.Contains(kindOf["a100"], tick.Devices[0]) {
		t.Errorf("it has %v", tick.Devices)
	}
	b.path = "/tick?class=h100"
	resp := b.pay(b.payment(b.next()))
	for n := 0; resp.StatusCode == http.StatusPaymentRequired && n < 10; n++ { // its lease goes on meanwhile
		b.corrected(resp)
		resp = b.pay(b.payment(b.next()))
	}
	if resp.StatusCode != http.StatusConflict || !strings.Contains(wire.ParseProblem(resp).Detail, "a100") {
		t.Errorf("%s: %v", resp.Status, wire.ParseProblem(resp))
	}
	b.path = "/tick?class=a100"
	b.again()
}

// TestOfferOfAnotherClassIsRefused: a provider that answers with another class than was asked for gets no deposit.
func TestOfferOfAnotherClassIsRefused(t *testing.T) {
	r := newRig(t, quiet, twoKinds)
	liar := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host = "http", strings.TrimPrefix(r.server.URL, "http://")
		if q := p.Out.URL.Query(); q.Has("class") {
			q.Set("class", "a100")
			p.Out.URL.RawQuery = q.Encode()
		}
	}})
	t.Cleanup(liar.Close)
	client := r.renter(t, filepath.Join(t.TempDir(), "renter.db"))
	_, err := client.Rent(t.Context(), liar.URL, renter.Options{Class: "h100", Deposit: "0.3"})
	if !errors.Is(err, peer.ErrOffer) || !strings.Contains(err.Error(), "h100") || !strings.Contains(err.Error(), "a100") {
		t.Errorf("%v", err)
	}
	if got := r.balance(r.payer.Address()); got != 1_000_000 {
		t.Errorf("it has %d left", got)
	}
	if _, err := client.Rent(t.Context(), r.server.URL, renter.Options{Deposit: "0.3"}); !errors.Is(err, &wire.NoClass) || !strings.Contains(err.Error(), "h100, a100") {
		t.Errorf("without a class: %v", err)
	}
	one, err := client.QuoteClass(t.Context(), r.server.URL, "a100")
	if err != nil || one.PerGPUHour != "1.8" && one.PerGPUHour != "1.80" {
		t.Errorf("%+v, %v", one.PerGPUHour, err)
	}
}

// TestGatewaysOfTwoHosts: of gateways over one database, each with a host of another class, each rents out its own: the other one's class
// has no capacity there, and what is kept of one class is nothing to the other.
func TestGatewaysOfTwoHosts(t *testing.T) {
	address := pgtest.URL(t)
	on := func(model string) func(*Config) {
		return func(c *Config) {
			twoKinds(c)
			c.Database = address
			c.Source = sim.New(2, sim.Options{Clock: testclock.Process(), Models: []string{model}})
		}
	}
	a := newRig(t, quiet, generousCredit, on("Simulated H100"))
	b := rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, quiet, generousCredit, on("Simulated A100"), func(c *Config) { c.Records.HighWater = filepath.Join(t.TempDir(), "b.signed") })
	for r, other := range map[*rig]string{a: "a100", b: "h100"} {
		if err := problemIn(wire.NoCapacity, r.inClass(other).do("GET", "", nil)); err != nil {
			t.Error(err)
		}
		if err := problemIn(wire.NoClass, r.inClass("").do("GET", "", nil)); err != nil {
			t.Error(err)
		}
	}
	if got := a.provider.capacity("h100").Pool(); got != sim.UUID(0)+"\n"+sim.UUID(1) || a.provider.capacity("a100").Pool() != "" {
		t.Errorf("%q", got)
	}
	keep := cluster.Reservations{DB: a.provider.db}
	row := cluster.Reservation{ID: "one", Pool: a.provider.capacity("h100").Pool(), Channel: "c", GPUs: 1}
	if err := keep.Keep(t.Context(), row, 1e12, func([]cluster.Kept) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if free := a.provider.free("h100"); *free != 1 {
		t.Errorf("%d are free", *free)
	}
	a.inClass("h100").open(1, 300_000, "").record()
}

// TestMeteredRouteOfAClass: a route's requests cost what the class of its GPUs does, and one of GPUs of two classes is refused.
func TestMeteredRouteOfAClass(t *testing.T) {
	r := newPayRig(t, twoKinds)
	if _, err := r.provider.Metered(Route{Devices: []string{sim.UUID(0), sim.UUID(2)}, MaxTime: time.Second}, http.NotFoundHandler()); err == nil || !strings.Contains(err.Error(), "one price") {
		t.Errorf("%v", err)
	}
	for device, price := range map[string]uint64{sim.UUID(1): 1000, sim.UUID(3): 500} {
		route, err := r.provider.Metered(Route{Devices: []string{device}, MaxTime: time.Second}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			testclock.Sleep(100 * time.Millisecond)
		}))
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(route)
		t.Cleanup(server.Close)
		there := *r
		there.server = server
		b := there.buyer("/")
		want := uint64(time.Second+4*r.config.Metering.Tick)*price/1e9 + 1
		if amount := b.accept().Amount; amount.Uint64() != want {
			t.Errorf("%s: %s is asked for, want %d", device, amount.Dec(), want)
		}
		if b.open(100_000); b.charged == 0 || b.charged > want {
			t.Errorf("%s: charged %d", device, b.charged)
		}
	}
}
