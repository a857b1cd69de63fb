package provider

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

// cheap is a host whose GPUs are all of another kind than those of other hosts.
type cheap struct{ *sim.Source }

func (c cheap) Devices(ctx context.Context) ([]metering.Device, error) {
	all, err := c.Source.Devices(ctx)
	for i := range all {
		all[i].Name = "Cheap GPU"
	}
	return all, err
}

// newCheapOutpost is a node of the provider of another one, with GPUs of another kind.
func newCheapOutpost(t *testing.T, beside *outpost) *outpost {
	o := newNamedOutpost(t, "south")
	o.stop()
	o.config.MeterKey, o.config.Source, o.config.Log = beside.config.MeterKey, cheap{testclock.GPUs(4)}, slog.New(slog.DiscardHandler)
	o.start()
	return o
}

// enlist has the rig's provider ask its nodes and enlist them now.
func (r *rig) enlist() {
	r.Helper()
	n := r.provider.nodes
	if err := errors.Join(n.Poll(r.Context(), r.provider.db), n.Enlist(r.Context(), r.provider.db)); err != nil {
		r.Fatal(err)
	}
}

// health is what the admin's /healthz says.
func (r *rig) health() (h health) {
	r.Helper()
	rec := httptest.NewRecorder()
	r.provider.Health().ServeHTTP(rec, httptest.NewRequest("GET", "/healthz", nil))
	if err := json.Unmarshal(rec.Body.Bytes(), &h); err != nil {
		r.Fatal(err)
	}
	if h.Coin, h.Reserve = "", ""; rec.Code != http.StatusOK {
		r.Errorf("/healthz answers %d: %s", rec.Code, h.Status)
	}
	return h
}

// refused is that the node begins no lease, of the kind that another one has, and that both ends say so.
func (o *outpost) refused(r *rig) {
	o.Helper()
	h, there := r.health(), httptest.NewRecorder()
	if why := h.Refused[o.config.Name]; len(h.Refused) != 1 || !strings.Contains(why, "Cheap GPU") || !strings.HasPrefix(h.Status, "degraded: ") {
		o.Errorf("/healthz says %+v", h)
	}
	if got := r.metric("gpupay_refused_nodes"); got != "1" {
		o.Errorf("%s nodes are refused by the metric", got)
	}
	o.node.Health().ServeHTTP(there, httptest.NewRequest("GET", "/healthz", nil))
	if text := there.Body.String(); there.Code != http.StatusOK || !strings.Contains(text, "Cheap GPU") || !strings.Contains(text, "degraded: ") {
		o.Errorf("the node says %d %s", there.Code, text)
	}
	if offer := r.provider.Offer(); len(offer.Devices) > 1 {
		o.Errorf("one price is offered for %+v", offer.Devices)
	}
}

// kinds are the models that a gateway offers.
func (r *rig) kinds() (models []string) {
	if err := r.provider.offers.Renew(r.Context()); err != nil {
		r.Fatal(err)
	}
	for _, d := range r.provider.Offer().Devices {
		models = append(models, d.Model)
	}
	return models
}

// TestNodesOfOneKind: a node whose GPUs are of another kind than the first one's begins no lease, whichever of the two is away,
// however often its gateway is started again, until no gateway names the first one.
func TestNodesOfOneKind(t *testing.T) {
	good := newOutpost(t)
	bad := newCheapOutpost(t, good)
	r := newRig(t, good.link, generousCredit, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: bad.server.URL})
		c.Log = slog.New(slog.DiscardHandler)
	})
	bad.refused(r)
	lease := r.open(1, 300_000, "") // the other one has more free
	if l := r.provider.leases.Running(lease.terms.ID()); l == nil || l.Allocation.Node != "north" {
		t.Errorf("it runs at %+v", l)
	}
	lease.record()
	eventually(t, "one to be free", func() bool { return r.provider.nodes.Free() == 1 })

	good.set(true, nil)
	r.config.Nodes.Links[0], r.config.Nodes.Links[1] = r.config.Nodes.Links[1], r.config.Nodes.Links[0]
	r.restart()
	bad.refused(r)
	if kinds := r.kinds(); len(kinds) != 0 {
		t.Errorf("%v are offered", kinds)
	}
	if err := problemIn(wire.NoCapacity, r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, 0))); err != nil {
		t.Error(err)
	}
	good.set(false, nil)
	lease.again() // the lease of the node that was away goes on
	lease.record()

	r.config.Nodes.Links = r.config.Nodes.Links[:1] // south alone
	lease.release()
	r.restart()
	bad.refused(r)
	r.sql(`UPDATE enlisted_nodes SET seen = seen - ? WHERE node = 'north'`, nodelink.EnlistedFor.Milliseconds()+1)
	r.enlist()
	if h := r.health(); len(h.Refused) != 0 || h.Status != "ok" {
		t.Errorf("nobody names the first one any more: %+v", h)
	}
	if kinds := r.kinds(); len(kinds) != 1 || kinds[0] != "Cheap GPU" {
		t.Errorf("%v are offered", kinds)
	}
}

// TestRefusedNodesLeaseGoesOn: a node that is refused while a lease runs there keeps it to its end, and is paid for it.
func TestRefusedNodesLeaseGoesOn(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, generousCredit, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	lease := r.open(1, 300_000, "")
	lease.record()
	r.sql(`INSERT INTO enlisted_nodes (node, model, memory_bytes, mig, seen) VALUES ('west', 'Dear GPU', 1, false, ?)`, time.Now().Add(time.Hour).UnixMilli())
	r.enlist()
	if h := r.health(); h.Refused["north"] == "" {
		t.Fatalf("%+v", h)
	}
	lease.record()
	lease.pay(owedIn(lease.record()))
	if err := problemIn(wire.NoCapacity, r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, 0))); err != nil {
		t.Error(err)
	}
	final := lease.release()
	lease.pay(final.Owed.Uint64())
	o.same(r, lease.lease.LeaseID)
}

// TestGatewaysAgreeOnAKind: of gateways over one database, each with a node of another kind, one begins leases.
func TestGatewaysAgreeOnAKind(t *testing.T) {
	good := newOutpost(t)
	bad := newCheapOutpost(t, good)
	address := pgtest.URL(t)
	change := []func(*Config){good.link, func(c *Config) {
		c.Database, c.Log = address, slog.New(slog.DiscardHandler)
	}}
	a := newRig(t, change...)
	b := rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, append(change, func(c *Config) {
		c.Nodes.Links = []NodeLink{{Name: "south", URL: bad.server.URL}}
	})...)
	a.enlist()
	bad.refused(b)
	if kinds := a.kinds(); len(kinds) != 1 || kinds[0] == "Cheap GPU" || len(a.health().Refused) != 0 {
		t.Errorf("%v are offered by the first one", kinds)
	}
	a.shut()
	b.sql(`UPDATE enlisted_nodes SET seen = seen - ? WHERE node = 'north'`, nodelink.EnlistedFor.Milliseconds()+1)
	b.enlist()
	a.start()
	if kinds := b.kinds(); len(kinds) != 1 || kinds[0] != "Cheap GPU" || len(b.health().Refused) != 0 {
		t.Errorf("%v are offered by the second one", kinds)
	}
	if kinds := a.kinds(); len(kinds) != 0 || a.health().Refused["north"] == "" {
		t.Errorf("%v are offered by the first one", kinds)
	}
}
