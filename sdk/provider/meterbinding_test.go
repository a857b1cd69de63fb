package provider

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// pairOfNodes is a rig over two nodes, south with more GPUs free than north has left after a lease, behind a front.
func pairOfNodes(t *testing.T, change ...func(*Config)) (r *rig, north, south *outpost, f *front) {
	t.Helper()
	north, south = newOutpost(t), newNamedOutpost(t, "south")
	r = newRig(t, append([]func(*Config){north.link, quiet, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: south.server.URL})
	}}, change...)...)
	f = newFront(t)
	f.provider.Store(r.provider)
	return r, north, south, f
}

// bounce restarts a gateway that a front stands before.
func bounce(r *rig, f *front, between func()) {
	f.provider.Store(nil)
	f.CloseClientConnections()
	r.shut()
	between()
	r.start()
	f.provider.Store(r.provider)
}

// export is a bundle as it is read from a file.
func export(t *testing.T, b *audit.Bundle, err error) *audit.Bundle {
	t.Helper()
	raw, failed := json.Marshal(b)
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	if b, err = audit.Parse(raw); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEachNodeSignsWithItsOwnKey: leases on two nodes of one gateway are signed with two keys, which the payee bound to each;
// gateway, nodes and renter go on with them after restarts, and what both sides export holds.
func TestEachNodeSignsWithItsOwnKey(t *testing.T) {
	r, north, south, f := pairOfNodes(t)
	if offer := r.provider.Offer(); offer.Version != 2 || offer.Meter != (wire.Address{}) {
		t.Fatalf("the offer of version %d names meter %s", offer.Version, offer.Meter)
	}
	path := filepath.Join(t.TempDir(), "renter.db")
	client := r.renter(t, path)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	meters := map[common.Address]common.Hash{}
	run := func(ids ...common.Hash) (rentals []*renter.Rental, done []<-chan error) {
		for range 2 - len(ids) {
			l, err := client.Rent(t.Context(), f.URL, renter.Options{Deposit: "0.3", PayEvery: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			rentals = append(rentals, l)
			done = append(done, renterrig.Background(ctx, l)) // the first is paid for while the second begins: both have one credit
		}
		for _, id := range ids {
			l, err := client.Resume(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			rentals = append(rentals, l)
			done = append(done, renterrig.Background(ctx, l))
		}
		return rentals, done
	}
	rentals, done := run()
	on := func() {
		t.Helper()
		for _, l := range rentals {
			awaitRecord(t, l, l.Snapshot().Sequence+2)
		}
	}
	on()
	for _, l := range rentals {
		row := readRental(t, path, l.ID())
		meters[common.Address(row.Binding.Meter)] = row.Lease
	}
	_, atNorth := meters[north.config.MeterKey.Address()]
	_, atSouth := meters[south.config.MeterKey.Address()]
	if !atNorth || !atSouth {
		t.Fatalf("bound are %v", meters)
	}
	bounce(r, f, func() {})
	on()
	for _, o := range []*outpost{north, south} {
		o.stop()
		o.start()
	}
	on()
	stop()
	for i := range done {
		<-done[i]
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	client, ctx = r.renter(t, path), t.Context()
	rentals, done = run(rentals[0].ID(), rentals[1].ID())
	on()
	for i, l := range rentals {
		c, err := l.Close(t.Context())
		if err := errors.Join(err, <-done[i]); err != nil || c.Settled != c.Owed {
			t.Fatalf("settled %s of %s: %v", c.Settled.Dec(), c.Owed.Dec(), err)
		}
		kept, err := client.Export(t.Context(), l.ID())
		payer := export(t, kept, err)
		kept, err = r.provider.Export(t.Context(), l.ID())
		payee := export(t, kept, err)
		for _, b := range []*audit.Bundle{payee, payer} {
			if err := audit.Failures(audit.Verify(t.Context(), b, nil)); err != nil || b.Leases[0].Binding == nil {
				t.Errorf("kept by the %s, with %+v: %v", b.Keeper, b.Leases[0].Binding, err)
			}
		}
		if both := audit.Compare(payee, payer); audit.Failures(both.Checks) != nil || len(both.Equivocations) != 0 {
			t.Errorf("both: %v, %d proofs", audit.Failures(both.Checks), len(both.Equivocations))
		}
		forgedBindings(t, r, payee, payer)
	}
}

// TestNextLeaseHasItsOwnMeter: leases of one channel, one after the other on whichever node, have each its own binding, and both
// sides' bundles hold with all of them.
func TestNextLeaseHasItsOwnMeter(t *testing.T) {
	r, north, south, f := pairOfNodes(t)
	path := filepath.Join(t.TempDir(), "renter.db")
	client := r.renter(t, path)
	l, err := client.Rent(t.Context(), f.URL, renter.Options{Deposit: "0.3", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var bound []wire.MeterBinding
	for _, o := range []*outpost{north, south} {
		bound = append(bound, *readRental(t, path, l.ID()).Binding)
		if err := r.provider.leases.Running(l.ID()).End(t.Context(), lease.Stop{Reason: "a test ends it"}); err != nil {
			t.Fatal(err)
		}
		if err := l.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		o.set(o == north, nil) // the next one begins at the other node
		r.enlist()
		if err := l.Reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		north.set(false, nil)
	}
	bound = append(bound, *readRental(t, path, l.ID()).Binding)
	if common.Address(bound[1].Meter) != south.config.MeterKey.Address() {
		t.Errorf("the second lease is bound to %s, south's key is %s", bound[1].Meter, south.config.MeterKey.Address())
	}
	if _, err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept, err := client.Export(t.Context(), l.ID())
	payer := export(t, kept, err)
	kept, err = r.provider.Export(t.Context(), l.ID())
	payee := export(t, kept, err)
	for _, b := range []*audit.Bundle{payee, payer} {
		if err := audit.Failures(audit.Verify(t.Context(), b, nil)); err != nil || len(b.Leases) != len(bound) {
			t.Fatalf("kept by the %s, with %d leases: %v", b.Keeper, len(b.Leases), err)
		}
		for i, lease := range b.Leases {
			if !lease.Binding.Same(&bound[i]) {
				t.Errorf("lease %d is kept by the %s with %+v, it began with %+v", i, b.Keeper, lease.Binding, bound[i])
			}
		}
	}
	if both := audit.Compare(payee, payer); audit.Failures(both.Checks) != nil || len(both.Equivocations) != 0 {
		t.Errorf("both: %v, %d proofs", audit.Failures(both.Checks), len(both.Equivocations))
	}
}

// forgedBindings changes who is bound to the lease of a bundle that holds: each is found.
func forgedBindings(t *testing.T, r *rig, payee, payer *audit.Bundle) {
	t.Helper()
	real := *payee.Leases[0].Binding
	stranger := testKey(t)
	offer, err := wire.ParseOffer(payee.Leases[0].Offer)
	if err != nil {
		t.Fatal(err)
	}
	bind := func(key channel.Signer, change func(*wire.MeterBinding)) *wire.MeterBinding {
		b, o := real, offer.Offer
		change(&b)
		o.Payee = wire.Address(key.Address())
		b, err := wire.BindMeter(t.Context(), key, o, b)
		if err != nil {
			t.Fatal(err)
		}
		return &b
	}
	another := bind(r.config.Key, func(b *wire.MeterBinding) { b.Meter = wire.Address(stranger.Address()) })
	for name, c := range map[string]*wire.MeterBinding{
		"none":                nil,
		"of a stranger":       bind(stranger, func(*wire.MeterBinding) {}),
		"of another lease":    bind(r.config.Key, func(b *wire.MeterBinding) { b.LeaseID[0]++ }),
		"of another channel":  bind(r.config.Key, func(b *wire.MeterBinding) { b.ChannelID[0]++ }),
		"under another offer": bind(r.config.Key, func(b *wire.MeterBinding) { b.OfferHash[0]++ }),
		"another's key":       another,
		"another, not signed": {LeaseID: real.LeaseID, ChannelID: real.ChannelID, OfferHash: real.OfferHash, Meter: another.Meter, Signature: real.Signature},
	} {
		payee.Leases[0].Binding = c
		if audit.Failures(audit.Verify(t.Context(), payee, nil)) == nil {
			t.Errorf("a binding %s holds", name)
		}
		both := audit.Compare(payee, payer)
		if same := audit.Failures(both.Checks) == nil; same != (name == "of a stranger") { // which says the same, and its own check found it
			t.Errorf("a binding %s is the same in both: %v", name, same)
		}
		proofs := 0
		if c == another || name == "of another channel" || name == "under another offer" {
			proofs = 1
		}
		if len(both.Equivocations) != proofs {
			t.Errorf("a binding %s: %d proofs", name, len(both.Equivocations))
		}
		if len(audit.Join([]*audit.Bundle{payee, payee})) != 1 {
			t.Errorf("a binding %s: a bundle does not join itself", name)
		}
	}
	payee.Leases[0].Binding = another
	whole := *payee
	whole.Leases = append([]audit.Lease(nil), payee.Leases...)
	whole.Leases[0].Binding = &real
	if got := audit.Join([]*audit.Bundle{payee, &whole}); len(got) != 2 {
		t.Errorf("two meters of one lease are joined")
	}
	payee.Leases[0].Binding = &real
}

// TestRestoredGatewayOverANode: a gateway whose database is from before a lease at a node, or from before its node began it, ends
// it: no second meter is bound to it, its renter accuses nobody, and what its records say is paid.
func TestRestoredGatewayOverANode(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"begun since", "being allocated", "in the copy"} {
		t.Run(name, func(t *testing.T) {
			o := newOutpost(t)
			r := newRig(t, o.link, quiet)
			f := newFront(t)
			f.provider.Store(r.provider)
			var old testrig.Files
			image := func() {
				bounce(r, f, func() { old = testrig.CopyFiles(t, r.config.Database, r.config.Database+".signed") })
			}
			if name == "begun since" {
				image()
			}
			client := r.renter(t, filepath.Join(t.TempDir(), "renter.db"))
			l, err := client.Rent(t.Context(), f.URL, renter.Options{Deposit: "0.3", PayEvery: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			lease := l.Snapshot().Lease
			done := renterrig.Background(t.Context(), l)
			awaitRecord(t, l, 3)
			if name != "begun since" {
				image()
			}
			awaitRecord(t, l, l.Snapshot().Sequence+3)
			bounce(r, f, func() {
				old.Restore(t)
				if name == "being allocated" {
					beingAllocated(t, r.config.Database, lease)
				}
			})
			if name == "in the copy" { // its node has the rest
				awaitRecord(t, l, l.Snapshot().Sequence+3)
			} else if err := <-done; err != nil {
				t.Fatal(err)
			}
			c, err := l.Close(t.Context())
			if err != nil || c.Settled != c.Owed {
				t.Fatalf("settled %s of %s: %v", c.Settled.Dec(), c.Owed.Dec(), err)
			}
			if kept, err := client.Evidence(t.Context(), l.ID()); err != nil || len(kept) != 0 {
				t.Errorf("the renter accuses a provider that bound no second meter: %v, %v", kept, err)
			}
			b, err := r.provider.Export(t.Context(), l.ID())
			if err != nil || name != "in the copy" && len(b.Evidence) == 0 {
				t.Errorf("the record that the renter showed is not kept: %v", err)
			}
		})
	}
}

// TestBoundBeforeActive: whose key signs a lease's records is on disk with what it was allocated, before anybody hears of either, and
// is never written again.
func TestBoundBeforeActive(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, quiet)
	lease := r.open(1, 300_000, "")
	store := r.provider.store
	row, err := store.Leases.ByID(t.Context(), lease.lease.LeaseID.Hex())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := row.MeterBinding(); err != nil || !b.Same(lease.lease.Binding) || row.MeterKey != o.config.MeterKey.Address().Hex() || !row.AtNode() {
		t.Errorf("the row has %+v, the renter %+v (%v)", row, lease.lease.Binding, err)
	}
	again := row
	again.MeterKey, again.Binding = common.Address{1}.Hex(), "{}"
	if err := store.Leases.Place(t.Context(), again); !errors.Is(err, leasestore.ErrNotOwner) {
		t.Errorf("bound again: %v", err)
	}
	if now, err := store.Leases.ByID(t.Context(), row.ID); err != nil || now.Binding != row.Binding || now.MeterKey != row.MeterKey {
		t.Errorf("now it has %s (%v)", now.Binding, err)
	}
}

// TestNodeThatLostItsKey: a lease whose metering key is not at its node any more ends without another signature, the next one is
// bound to the new key, and one whose key is there as a past one goes on.
func TestNodeThatLostItsKey(t *testing.T) {
	t.Parallel()
	for name, kept := range map[string]bool{"lost": false, "kept as a past one": true} {
		t.Run(name, func(t *testing.T) {
			o := newOutpost(t)
			r := newRig(t, o.link, quiet, generousCredit)
			lease := r.open(1, 300_000, "")
			id, old := lease.lease.LeaseID, o.config.MeterKey
			lease.record()
			o.stop()
			o.config.MeterKey, o.config.Log = testKey(t), slog.New(slog.DiscardHandler)
			if kept {
				o.config.PastKeys = []metering.Signer{old}
			}
			o.start()
			_, before := o.spooled(id)
			if kept {
				o.await(id, len(before)+2)
				lease.release()
				o.same(r, id)
			} else {
				lease.status(leasestore.Ended)
				if row, records := o.spooled(id); row.State != wire.StateEnded || len(records) != len(before) || records[len(records)-1].Final {
					t.Errorf("it is %s with %d records, it had %d", row.State, len(records), len(before))
				}
			}
			r.enlist() // or it still counts the devices of the lease before
			next := r.open(2, 300_000, "")
			if meter := common.Address(next.lease.Binding.Meter); meter != o.config.MeterKey.Address() {
				t.Errorf("the next lease is signed by %s, the node's key is %s", meter, o.config.MeterKey.Address())
			}
			next.record()
		})
	}
}

// TestNodeSignsForNoOtherLease: what one node signs of another one's lease is refused by its gateway, and beside the record of the
// node that is bound it convicts nobody.
func TestNodeSignsForNoOtherLease(t *testing.T) {
	r, north, south, _ := pairOfNodes(t, generousCredit)
	lease := r.open(1, 300_000, "")
	here, there := north, south
	if lease.lease.Binding.Meter == wire.Address(south.config.MeterKey.Address()) {
		here, there = south, north
	}
	here.chainID, here.escrow = r.provider.escrow.ChainID(), r.chain.Escrow
	rec := lease.record()
	var forged []metering.SignedRecord
	lie := forge(here, there.config.MeterKey, func(*metering.SignedRecord) {})
	here.set(false, lie)
	if s := lease.status(leasestore.Ended); s.Reason != remote.ErrInvalidRecord.Error() {
		t.Errorf("ended because %q", s.Reason)
	}
	kept, err := r.provider.store.Records.After(t.Context(), lease.lease.LeaseID, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	domain := metering.Domain(here.chainID, here.escrow)
	for _, k := range kept {
		if who, err := eip712.Recover(k.Digest(domain), k.Signature); err != nil || who != here.config.MeterKey.Address() {
			t.Errorf("record %d of %s is kept (%v)", k.Sequence, who, err)
		}
	}
	for _, key := range []metering.Signer{there.config.MeterKey, here.config.MeterKey} {
		fork := rec
		fork.To++
		if fork.Signature, err = key.Sign(t.Context(), fork.Digest(domain)); err != nil {
			t.Fatal(err)
		}
		forged = append(forged, fork)
	}
	offer, err := r.provider.store.Offers.Get(t.Context(), lease.lease.OfferHash)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.NewEquivocation(offer.Document, lease.lease.Binding, rec, forged[0]); !errors.Is(err, audit.ErrNotEquivocation) {
		t.Errorf("what another node signed convicts the payee: %v", err)
	}
	if _, err := audit.NewEquivocation(offer.Document, lease.lease.Binding, rec, forged[1]); err != nil {
		t.Errorf("a second word of the node that is bound convicts nobody: %v", err)
	}
}

// TestNodeThatNamesAnothersKey: a node that has another one's key bound to its lease gets none of its own records taken, and none of
// the other's.
func TestNodeThatNamesAnothersKey(t *testing.T) {
	o, other := newOutpost(t), testKey(t)
	r := newRig(t, o.link, quiet)
	o.chainID, o.escrow = r.provider.escrow.ChainID(), r.chain.Escrow
	o.set(false, func(path string, answer []byte) []byte {
		if path != "/leases" {
			return answer
		}
		var l nodelink.Lease
		_ = json.Unmarshal(answer, &l)
		meter := other.Address()
		l.Meter = &meter
		raw, _ := json.Marshal(l)
		return raw
	})
	lease := r.open(1, 300_000, "")
	if meter := common.Address(lease.lease.Binding.Meter); meter != other.Address() {
		t.Fatalf("bound is %s", meter)
	}
	if s := lease.status(leasestore.Ended); s.Reason != remote.ErrInvalidRecord.Error() {
		t.Errorf("ended because %q", s.Reason)
	}
	if records, err := r.provider.store.Records.After(t.Context(), lease.lease.LeaseID, 0, 10); err != nil || len(records) != 0 {
		t.Errorf("%d records are kept, %v", len(records), err)
	}
}

// TestShownBindingOfNobody: a record of a lease that nobody knows counts for nothing where the meter that signed it was not bound to
// that lease by the payee.
func TestShownBindingOfNobody(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, quiet, generousCredit)
	lease := r.open(1, 300_000, "")
	rec := lease.record().Record
	rec.LeaseID, rec.Sequence = common.Hash{9}, 1000
	stranger := testKey(t)
	real := *lease.lease.Binding
	forged := real
	forged.LeaseID, forged.Meter = rec.LeaseID, wire.Address(stranger.Address())
	offer := r.provider.Offer().Offer
	offer.Payee = wire.Address(stranger.Address())
	own, err := wire.BindMeter(t.Context(), stranger, offer, forged)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		signer  metering.Signer
		binding *wire.MeterBinding
	}{
		"none, by a stranger":         {stranger, nil},
		"none, by a node":             {o.config.MeterKey, nil},
		"a stranger's":                {stranger, &own},
		"not signed":                  {stranger, &forged},
		"of another lease":            {o.config.MeterKey, &real},
		"of another lease, by others": {stranger, &real},
	} {
		signature, err := c.signer.Sign(t.Context(), rec.Digest(metering.Domain(lease.terms.ChainID, lease.terms.Escrow)))
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		if err := (wire.ShownRecord{Record: rec, Signature: signature, Binding: c.binding}).Set(h); err != nil {
			t.Fatal(err)
		}
		lease.again(wire.HeaderRecord, h.Get(wire.HeaderRecord))
		if lease.lease.State == wire.StateEnded {
			t.Errorf("%s: the lease ended", name)
		}
	}
	if b, err := r.provider.Export(t.Context(), lease.terms.ID()); err != nil || len(b.Evidence) != 0 {
		t.Errorf("kept: %+v, %v", b.Evidence, err)
	}
}

// TestLeaseFromBeforeAtANode: a node goes on to meter under offers that name a key which it had before its own, for gateways and
// leases from before.
func TestLeaseFromBeforeAtANode(t *testing.T) {
	o := newOutpost(t)
	shared := testKey(t)
	o.stop()
	o.config.PastKeys = []metering.Signer{shared}
	o.start()
	payee := testKey(t)
	offer, err := wire.SignOffer(t.Context(), payee, wire.Offer{Version: 1, ChainID: 1, Escrow: wire.Address{1}, Token: wire.Address{2}, Payee: wire.Address(payee.Address()),
		Meter: wire.Address(shared.Address()), Amount: wireAmount(1000), Unit: "gpu_second", Credit: 60, Tick: 50, MaxGap: 3000, RecordEvery: 100})
	if err != nil {
		t.Fatal(err)
	}
	var s nodelink.Status
	if err := json.NewDecoder(o.knock("GET", "/status", nil).Body).Decode(&s); err != nil || s.Meter != shared.Address() {
		t.Errorf("gateways from before are told %s (%v)", s.Meter, err)
	}
	q := nodelink.Start{LeaseID: common.Hash{9}, GPUs: 1, OwedBefore: wireAmount(0), Offer: offer.Document, Money: nodelink.MoneyOf(uint256.Int{}, *uint256.NewInt(100_000)),
		Terms: channel.Terms{ChainID: 1, Escrow: common.Address{1}, Payer: common.Address{7}, Payee: payee.Address(), Token: common.Address{2}}}
	raw, _ := json.Marshal(q)
	var began nodelink.Lease
	if err := json.NewDecoder(o.knock("POST", "/leases", raw).Body).Decode(&began); err != nil || began.Meter == nil || *began.Meter != shared.Address() {
		t.Fatalf("%+v, %v", began, err)
	}
	for round := range 2 {
		records := o.await(q.LeaseID, 2+round)
		domain := metering.Domain(1, common.Address{1})
		if who, err := eip712.Recover(records[len(records)-1].Digest(domain), records[len(records)-1].Signature); err != nil || who != shared.Address() {
			t.Errorf("signed by %s, the offer names %s (%v)", who, shared.Address(), err)
		}
		o.stop()
		o.start()
	}
}

// TestLeaseFromBeforeGoesOn: a lease under an offer that names the key which all nodes had goes on at node and gateway after both were
// upgraded, is signed with that key and bound to none, and the next lease is bound to the node's own.
func TestLeaseFromBeforeGoesOn(t *testing.T) {
	o := newOutpost(t)
	shared := testKey(t)
	o.stop()
	o.config.PastKeys = []metering.Signer{shared}
	o.start()
	r := newRig(t, o.link, quiet, generousCredit)
	named := r.provider.Offer().Offer
	named.Version, named.Meter = 1, wire.Address(shared.Address())
	before, err := wire.SignOffer(t.Context(), r.config.Key, named)
	if err := errors.Join(err, r.provider.store.Offers.Put(t.Context(), before)); err != nil {
		t.Fatal(err)
	}
	r.provider.offers.Set(before)
	lease := r.open(1, 300_000, "")
	lease.record()
	r.restart()
	o.stop()
	o.start()
	lease.again()
	rec := lease.record()
	if lease.lease.OfferHash != before.Hash || lease.lease.Binding != nil {
		t.Fatalf("it is under offer %s, bound to %+v", lease.lease.OfferHash, lease.lease.Binding)
	}
	if who, err := eip712.Recover(rec.Digest(metering.Domain(lease.terms.ChainID, lease.terms.Escrow)), rec.Signature); err != nil || who != shared.Address() {
		t.Errorf("signed by %s, its offer names %s (%v)", who, shared.Address(), err)
	}
	lease.release()
	o.same(r, lease.lease.LeaseID)
	kept, err := r.provider.Export(t.Context(), lease.terms.ID())
	if err := audit.Failures(audit.Verify(t.Context(), export(t, kept, err), nil)); err != nil {
		t.Error(err)
	}
	r.enlist()
	next := r.open(2, 300_000, "")
	if next.lease.Binding == nil || common.Address(next.lease.Binding.Meter) != o.config.MeterKey.Address() {
		t.Errorf("the next lease is bound to %+v", next.lease.Binding)
	}
}
