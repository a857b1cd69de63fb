package provider

import (
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestLeaseAtANode: what a renter gets from a node by way of a gateway is what it
// gets from a provider that meters, to the base unit.
func TestLeaseAtANode(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link)
	if offer := r.provider.Offer(); len(offer.Devices) != 1 || offer.Devices[0].Count != 2 || !offer.Simulated {
		t.Fatalf("the offer names %+v", offer.Devices)
	}
	lease := r.open(1, 500_000, "?gpus=2")
	meter, err := r.provider.Offer().MeterOf(lease.lease.LeaseID, lease.terms.ID(), lease.lease.Binding)
	if err != nil || meter != o.config.MeterKey.Address() {
		t.Fatalf("meter %s is bound to the lease, the node's is %s (%v)", meter, o.config.MeterKey.Address(), err)
	}
	checker, err := verify.New(verify.Config{
		Lease: metering.Lease{ID: lease.lease.LeaseID, ChannelID: lease.terms.ID(), OfferHash: r.provider.Offer().Hash, ChainID: lease.terms.ChainID,
			Escrow: r.chain.Escrow, Price: r.provider.rates[""].Price, Devices: lease.lease.Devices, Simulated: true},
		Key: meter, Tolerance: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := checker.Check(lease.record()); err != nil {
			t.Fatal(err)
		}
	}
	lease.status(leasestore.Suspended)
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil || s.Spent.Uint64() > nodeCredit(2) {
		t.Fatalf("suspended at %s base units, the credit is 2000 (%v)", s.Spent.Dec(), err)
	}
	lease.pay(s.Spent.Uint64())
	lease.status(leasestore.Active)
	final := lease.release()
	if row, _ := o.spooled(lease.lease.LeaseID); !final.Final || row.State != wire.StateEnded || row.Reason != "released by the renter" {
		t.Errorf("final record %+v, the lease is %s at its node: %s", final.Record, row.State, row.Reason)
	}
	o.same(r, lease.lease.LeaseID)
	lease.pay(final.Owed.Uint64())
	lease.close(final.Owed.Uint64())
	if got := r.balance(r.config.Key.Address()); got != final.Owed.Uint64() {
		t.Errorf("the payee has %d, is owed %s", got, final.Owed.Dec())
	}
	if free := o.gpus.Free(); free != 2 {
		t.Errorf("%d devices are free at the node", free)
	}
}

// TestGatewayCatchesUp: a gateway that was away finds all that its node metered
// meanwhile, once, and the node did not go past the credit.
func TestGatewayCatchesUp(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link)
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	r.shut()
	row := o.wait(id, leasestore.Suspended) // by itself
	_, records := o.spooled(id)
	if last := records[len(records)-1]; last.Owed.Uint64() > nodeCredit(1) || row.Sequence < 2 {
		t.Fatalf("nobody paid, and the node gave service for %s; the credit is 2000", last.Owed.Dec())
	}
	r.start()
	cred := lease.credential(wire.ActionVoucher, 0)
	secret := lease.lease.Secret
	cred.Payload.LeaseSecret = secret
	lease.attach(r.do("GET", "", cred))
	lease.lease.Secret = secret
	lease.status(leasestore.Suspended)
	caught := o.same(r, id)
	lease.pay(caught[len(caught)-1].Owed.Uint64())
	lease.status(leasestore.Active)
	if final := lease.release(); !final.Final {
		t.Errorf("%+v is not final", final.Record)
	}
	o.same(r, id)
}

// TestNodeGoesOnFromItsSpool: a node that was away goes on where its spool is, and
// nobody is billed for the time in between.
func TestNodeGoesOnFromItsSpool(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link)
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	o.stop()
	stopped := testclock.Stopwatch()
	testclock.Sleep(2 * time.Second) // as long as the whole credit
	gap := stopped()
	o.start()
	_, before := o.spooled(id)
	billed := before[len(before)-1].Nanos
	for rec := lease.record(); rec.Nanos <= billed; rec = lease.record() {
	}
	lease.release()
	records := o.same(r, id)
	var missed time.Duration
	for _, rec := range records {
		for _, d := range rec.Evidence.Devices {
			missed += time.Duration(d.Nanos.Gap)
		}
	}
	if missed < gap {
		t.Errorf("%s of %s without a meter are a gap", missed, gap)
	}
}

// TestNodeCutOff: beyond the credit a node gives no service that nobody has paid
// for, and when the network is back nothing is lost.
func TestNodeCutOff(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.pay(owedIn(lease.record()) + 100)
	for o.accepted(id) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	o.set(true, nil)
	told := o.accepted(id)
	lease.pay(told + 1000) // the gateway has it on disk; the node cannot know
	o.wait(id, leasestore.Suspended)
	_, records := o.spooled(id)
	if last := records[len(records)-1]; last.Owed.Uint64() > told+nodeCredit(1) {
		t.Fatalf("cut off with %d vouchered, the node went to %s; the credit is 2000", told, last.Owed.Dec())
	}
	o.set(false, nil)
	lease.status(leasestore.Active) // the voucher that it had not heard of pays for more
	lease.release()
	o.same(r, id)
}

// accepted is what the node was told is vouchered.
func (o *outpost) accepted(id common.Hash) uint64 {
	o.Helper()
	row, err := o.disk.Get(o.Context(), o.disk.DB.View(), id)
	if err != nil {
		o.Fatal(err)
	}
	s, err := row.State()
	if err != nil {
		o.Fatal(err)
	}
	return s.Accepted.Uint64()
}

// TestReleaseWithoutTheNode: a renter gets away from a host that is gone, for what it signed, and the node hears of it when it
// is back: its GPUs are the next renter's.
func TestReleaseWithoutTheNode(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, quiet, o.link, func(c *Config) { c.Terms.Credit = time.Minute }) // the end's tolerance alone is worth 2 s
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	o.set(true, nil)
	last := lease.release()
	lease.close(last.Owed.Uint64())
	o.set(false, nil)
	o.wait(id, leasestore.Ended)
	waitFor(t, func() bool { return o.collected(r, id) })
	o.told(r, id)
	if s, err := r.provider.payee.State(t.Context(), lease.terms.ID()); err != nil || s.Settled != last.Owed || s.Status != channel.Finalized {
		t.Errorf("the channel is %s and paid %s, the last record that came says %s (%v)", s.Status, s.Settled.Dec(), last.Owed.Dec(), err)
	}
	waitFor(t, func() bool { return r.provider.nodes.Free() == 2 }) // the gateway asks once a second
	r.open(2, 100_000, "?gpus=2").record()
}

// TestLastRecordsInManyAnswers: a lease that ends while much of it is not delivered
// ends when all of it is.
func TestLastRecordsInManyAnswers(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	first := lease.record()
	o.set(true, nil)
	eventually(t, "the node's records", func() bool {
		row, _ := o.spooled(id)
		return uint64(row.Sequence) > first.Sequence+8
	})
	o.set(false, func(path string, answer []byte) []byte {
		var l nodelink.Lease
		if !strings.HasSuffix(path, "/sync") || json.Unmarshal(answer, &l) != nil || len(l.Records) == 0 {
			return answer
		}
		l.Records = l.Records[:1]
		raw, _ := json.Marshal(l)
		return raw
	})
	if final := lease.release(); !final.Final {
		t.Errorf("%+v is not final", final.Record)
	}
	o.same(r, id)
}

// TestLeaseThatItsGatewayForgot: a gateway that was killed while a lease began has
// no lease, and so in the end has the node.
func TestLeaseThatItsGatewayForgot(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link)
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	r.shut()
	beingAllocated(t, r.config.Database, id)
	r.start()
	o.wait(id, leasestore.Ended)
}

// TestAnyGatewayTakesOverALeaseAtANode: the GPUs' host is not bound to a gateway.
func TestAnyGatewayTakesOverALeaseAtANode(t *testing.T) {
	o := newOutpost(t)
	address := pgtest.URL(t)
	change := []func(*Config){o.link, func(c *Config) {
		c.Database, c.Takeover, c.Log = address, 20*time.Second, slog.New(slog.DiscardHandler)
	}}
	a := newRig(t, change...)
	b := rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, change...)
	lease := a.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	for b.provider.leases.Running(lease.terms.ID()) == nil {
		cut(t, a)
		if err := b.provider.gateway.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	there := lease.at(b)
	cred := lease.credential(wire.ActionVoucher, 0)
	cred.Payload.LeaseSecret = lease.lease.Secret
	there.attach(b.do("GET", "", cred))
	if !there.lease.Binding.Same(lease.lease.Binding) || there.lease.Binding == nil {
		t.Errorf("one gateway shows meter %+v, the other %+v", lease.lease.Binding, there.lease.Binding)
	}
	there.status(leasestore.Suspended)
	s, err := b.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	lease.pay(s.Spent.Uint64()) // at the gateway that lost it
	there.status(leasestore.Active)
	final := lease.release() // also there
	if !final.Final {
		t.Errorf("%+v is not final", final.Record)
	}
	for i, rec := range o.same(b, id) {
		for _, d := range rec.Evidence.Devices {
			if d.Nanos.Gap != 0 {
				t.Errorf("record %d has a gap of %d ns: the meter did not see the gateways change", i+1, d.Nanos.Gap)
			}
		}
	}
}

// TestNodeDrains: a host that goes out of service ends its leases, and its
// gateways learn what was owed.
func TestNodeDrains(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link)
	lease := r.open(1, 500_000, "")
	lease.record()
	if err := o.node.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := lease.status(leasestore.Ended); s.Reason != "the node ends all leases" {
		t.Errorf("ended because %q", s.Reason)
	}
	if records := o.same(r, lease.lease.LeaseID); !records[len(records)-1].Final {
		t.Error("the last record is not final")
	}
	resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, 0))
	if p := wire.ParseProblem(resp); !errors.Is(p, &wire.Unavailable) && !errors.Is(p, &wire.NoCapacity) { // where the gateway has heard of it
		t.Errorf("%s: %v", resp.Status, p)
	}
}

// TestSpoolForgets: what a gateway has, and nobody asked for in a month, makes
// room; what is not delivered stays.
func TestSpoolForgets(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, generousCredit)
	done, running := r.open(1, 100_000, ""), r.open(2, 100_000, "")
	done.record()
	running.record()
	done.release()
	disk := o.writing()
	if err := disk.Forget(t.Context(), time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var leases, spooled int
	view := disk.DB.View()
	err := errors.Join(view.Get(&leases, `SELECT count(*) FROM leases`), view.Get(&spooled, `SELECT count(*) FROM spool`))
	if err != nil || leases != 1 || spooled != 1 {
		t.Errorf("%d leases and %d rows of the spool are left, want 1 and 1 (%v)", leases, spooled, err)
	}
	if _, records := o.spooled(running.lease.LeaseID); len(records) == 0 {
		t.Error("records of a running lease are gone")
	}
	running.release()
	waitFor(t, func() bool { // when its gateway has all of it
		if err := disk.Forget(t.Context(), time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		return view.Get(&leases, `SELECT count(*) FROM leases`) == nil && leases == 0
	})
	offers := func(before time.Time) (n int) {
		if err := errors.Join(disk.Forget(t.Context(), before), view.Get(&n, `SELECT count(*) FROM offers`)); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := offers(time.Now()); n == 0 {
		t.Error("an offer is forgotten under which a lease may begin")
	}
	if n := offers(time.Now().Add(48 * time.Hour)); n != 0 {
		t.Errorf("%d offers are kept that nobody can rent under and nobody has", n)
	}
}

// TestNodesConfig: what a gateway cannot do with nodes is refused at the start, with a line that says why.
func TestNodesConfig(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"two of this name":    func(c *Config) { c.Nodes.Links = append(c.Nodes.Links, c.Nodes.Links[0]) },
		"not the https URL":   func(c *Config) { c.Nodes.Links[0].URL = "10.0.0.5:8404" },
		"http://x\" is not":   func(c *Config) { c.Nodes.Links[0].URL = "http://x" },
		"no name of a node":   func(c *Config) { c.Nodes.Links[0].Name = "North" },
		"Nodes.Identity":      func(c *Config) { c.Nodes.Identity = testNode("n") },
		"leave Nodes.Links":   func(c *Config) { c.X402 = &X402{} },
		"leave Source":        func(c *Config) { c.Source = testclock.GPUs(1) },
		"Source is nil: give": func(c *Config) { c.Nodes.Links = nil },
	} {
		config := Config{RPC: "http://127.0.0.1:1", Escrow: common.Address{1}, Token: common.Address{2}, Key: testKey(t),
			Database: "x", PricePerGPUHour: hour, Nodes: Nodes{Links: []NodeLink{{Name: "n", URL: "https://127.0.0.1:2"}}, Identity: testGateway()}}.withDefaults()
		change(&config)
		err := config.check()
		if err == nil {
			_, err = config.newNodes()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func testKey(t testing.TB) *channel.Key {
	t.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return channel.NewKey(private)
}
