package provider

import (
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	"github.com/gpupay/gpupay/sdk/wire"
)

// goesOn is until the node has metered more of a lease than a record says.
func (o *outpost) goesOn(id common.Hash, nanos uint64) {
	o.Helper()
	waitFor(o.T, func() bool {
		_, records := o.spooled(id)
		return len(records) > 0 && records[len(records)-1].Nanos > nanos
	})
}

// collected is that nothing of a lease is waited for any more, here or at its node.
func (o *outpost) collected(r *rig, id common.Hash) bool {
	o.Helper()
	row, err := r.provider.store.Leases.ByID(o.Context(), id.Hex())
	if err != nil {
		o.Fatal(err)
	}
	there, err := o.disk.Unclosed(o.Context())
	if err != nil {
		o.Fatal(err)
	}
	var shares int
	if err := r.provider.db.View().Get(&shares, `SELECT COUNT(*) FROM credit_shares`); err != nil {
		o.Fatal(err)
	}
	return row.Held == 0 && row.State == wire.StateEnded && len(there) == 0 && shares == 0
}

// told is the newest record of a lease at its gateway: it and those before it are the node's, and the channel is charged what
// it says.
func (o *outpost) told(r *rig, id common.Hash) metering.SignedRecord {
	o.Helper()
	_, there := o.spooled(id)
	here, err := r.provider.store.Records.After(o.Context(), id, 0, 10_000)
	if err != nil || len(here) == 0 || len(here) > len(there) {
		o.Fatalf("the gateway has %d records, the node %d (%v)", len(here), len(there), err)
	}
	for i := range here {
		if here[i].Record != there[i].Record {
			o.Fatalf("record %d: %+v at the gateway, %+v at the node", i+1, here[i].Record, there[i].Record)
		}
	}
	last := here[len(here)-1]
	if s, err := r.provider.payee.State(o.Context(), last.ChannelID); err != nil || s.Spent != last.Owed {
		o.Fatalf("charged %s, the last record says %s (%v)", s.Spent.Dec(), last.Owed.Dec(), err)
	}
	return last
}

// forgone is how many leases were given up.
func (r *rig) forgone() string {
	rec := httptest.NewRecorder()
	r.provider.Metrics().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	_, text, _ := strings.Cut(rec.Body.String(), "\ngpupay_forgone_leases_total ")
	count, _, _ := strings.Cut(text, "\n")
	return count
}

// refused is that no lease begins on the channel for now.
func (t *tab) refused() {
	t.Helper()
	if err := problemIn(wire.Unavailable, t.comeBack(t.accepted())); err != nil {
		t.Errorf("a lease on a channel whose last one is not told yet: %v", err)
	}
}

// TestReleasedWhileItsNodeIsAway: what a node metered before a release that it did not hear of is on disk and charged when it
// is back, though the gateway was another process by then; until then its credit is taken, and no lease begins on its channel.
func TestReleasedWhileItsNodeIsAway(t *testing.T) {
	t.Parallel()
	for _, closes := range []bool{false, true} {
		name := "left open"
		if closes {
			name = "closed"
		}
		t.Run(name, func(t *testing.T) {
			o := newOutpost(t)
			south := o.southern()
			r := newRig(t, quiet, o.link, func(c *Config) {
				c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: south.server.URL})
				c.Terms.Credit = time.Minute
			})
			lease := r.open(1, 500_000, "")
			id := lease.lease.LeaseID
			first := lease.record()
			o.set(true, nil)
			o.goesOn(id, first.Nanos+uint64(time.Second))
			last := lease.release()
			if row := lease.row(); row.State != wire.StateEnded || row.Held != 1 || last.Final {
				t.Errorf("the lease is %s, held %d, and its last record is %+v", row.State, row.Held, last.Record)
			}
			if closes {
				lease.close(last.Owed.Uint64())
			} else {
				lease.refused()
			}
			r.restart()
			if !closes {
				lease.refused()
			}
			o.set(false, nil)
			waitFor(t, func() bool { return o.collected(r, id) })
			newest := o.told(r, id)
			if !newest.Owed.Gt(&last.Owed) {
				t.Errorf("%s is charged, as when it ended", newest.Owed.Dec())
			}
			owing, err := r.provider.debts.Owing(t.Context(), lease.terms.Payer)
			if err != nil || len(owing) != 1 {
				t.Fatalf("the payer owes on %d channels: %v", len(owing), err)
			}
			if owed := owing[0].Owed(); owed != u256.SaturatingSub(newest.Owed, owing[0].Settled) {
				t.Errorf("the payer owes %s of %s", owed.Dec(), newest.Owed.Dec())
			}
			if !closes {
				lease.attach(lease.comeBack(0))
				if now := lease.record(); now.OwedBefore != newest.Owed {
					t.Errorf("the next lease begins with %s owed, the last ended with %s", now.OwedBefore.Dec(), newest.Owed.Dec())
				}
			}
		})
	}
}

// TestAnyGatewayCollects: what was metered of a lease that ended at one gateway is heard by another.
func TestAnyGatewayCollects(t *testing.T) {
	o := newOutpost(t)
	address := pgtest.URL(t)
	change := []func(*Config){quiet, o.link, func(c *Config) { c.Database, c.Takeover, c.Terms.Credit = address, 20*time.Second, time.Minute }}
	a := newRig(t, change...)
	lease := a.open(1, 500_000, "")
	id := lease.lease.LeaseID
	first := lease.record()
	o.set(true, nil)
	o.goesOn(id, first.Nanos+uint64(time.Second))
	last := lease.release()
	a.shut()
	b := rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, change...)
	c := rigOn(t, a.chain, func(*rig) *channel.Key { return a.payer }, change...)
	o.set(false, nil)
	waitFor(t, func() bool { return o.collected(b, id) })
	if newest := o.told(c, id); !newest.Owed.Gt(&last.Owed) {
		t.Errorf("%s is charged, as when it ended", newest.Owed.Dec())
	}
}

// TestNothingIsBilledAfterARelease: a node that did not hear of it meters on, and of that nobody is charged more than the
// time that the lease had until its renter gave it back, nor less by more than the one record that this moment falls into.
func TestNothingIsBilledAfterARelease(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, quiet, o.link, func(c *Config) { c.Terms.Credit = time.Minute })
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	o.set(true, nil)
	began := lease.row().StartedAt
	waitFor(t, func() bool { return time.Now().Unix()*int64(time.Second) > began }) // its end is in whole seconds
	last := lease.release()
	most := uint64(lease.row().EndedAt*int64(time.Second)-began) + uint64(remote.EndTolerance)
	o.goesOn(id, most+uint64(time.Second))
	o.set(false, nil)
	waitFor(t, func() bool { return o.collected(r, id) })
	kept, err := r.provider.store.Records.Last(t.Context(), id)
	if err != nil || kept.Nanos > most || kept.Nanos < last.Nanos || lease.spent() != owedIn(*kept) {
		t.Errorf("%d ns are charged, the lease had %d (%v)", kept.Nanos, most, err)
	}
	_, there := o.spooled(id)
	const apart = uint64(time.Second)                                 // by which the beginnings at the gateway and at its node may differ
	if refused := there[kept.Sequence]; refused.Nanos+apart <= most { // one record is lost: the one that the end falls into
		t.Errorf("record %d is not charged: it states %d ns, and the lease had %d", refused.Sequence, refused.Nanos, most)
	}
	if lost := r.forgone(); lost != "0" {
		t.Errorf("%s leases are given up", lost)
	}
}

// TestNodeThatDoesNotComeBack: after an hour its lease holds nobody's credit any more, this is said, and what it tells then
// counts for nothing.
func TestNodeThatDoesNotComeBack(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, quiet, o.link, func(c *Config) { c.Terms.Credit = time.Minute })
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	o.set(true, nil)
	last := lease.release()
	n := r.provider.nodes
	var ahead atomic.Int64
	n.SetCollectClock(func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	waits := func(passes time.Duration) {
		for range passes {
			if lease.row().Held != 0 {
				_ = n.Collect(t.Context()) // fails where it was not noticed yet that the node is away
				ahead.Add(int64(remote.AskedEvery))
			}
		}
	}
	if waits(remote.CollectFor / remote.AskedEvery / 2); lease.row().Held != 1 {
		t.Error("half of the time is over, and it is given up")
	}
	waits(remote.CollectFor/remote.AskedEvery/2 + 20)
	waitFor(t, func() bool { waits(1); return lease.row().Held == 0 }) // it is given up by who asked the node last
	o.set(false, nil)
	waitFor(t, func() bool { return o.collected(r, id) })
	if got := lease.spent(); got != last.Owed.Uint64() {
		t.Errorf("charged %d, when it ended %s", got, last.Owed.Dec())
	}
	if lost := r.forgone(); lost != "1" {
		t.Errorf("%s leases are given up", lost)
	}
}

// cutOff is a lease whose node is away from its gateway and has metered a second that this has not heard of.
func cutOff(t *testing.T) (*outpost, *rig, *tab) {
	t.Helper()
	o := newOutpost(t)
	r := newRig(t, quiet, o.link, func(c *Config) { c.Terms.Credit = time.Minute })
	lease := r.open(1, 500_000, "")
	first := lease.record()
	o.set(true, nil)
	o.goesOn(lease.lease.LeaseID, first.Nanos+uint64(time.Second))
	return o, r, lease
}

// TestGatewayWithAWrongClockGivesUpNoLease: a gateway whose wall clock is hours from that of the one that ended a lease waits
// for its node as long as any, and charges what it says.
func TestGatewayWithAWrongClockGivesUpNoLease(t *testing.T) {
	o, r, lease := cutOff(t)
	id := lease.lease.LeaseID
	n := r.provider.nodes
	n.SetCollectClock(func() time.Time { return time.Now().Add(2 * remote.CollectFor) })
	last := lease.release() // whose moment is of the right clock
	for range 3 {
		if _ = n.Collect(t.Context()); lease.row().Held != 1 {
			t.Fatal("it is given up at once")
		}
	}
	o.set(false, nil)
	waitFor(t, func() bool { return o.collected(r, id) })
	if newest := o.told(r, id); !newest.Owed.Gt(&last.Owed) || r.forgone() != "0" {
		t.Errorf("%s is charged, as when it ended; %s leases are given up", newest.Owed.Dec(), r.forgone())
	}
}

// TestStoppedGatewayGivesUpNoLease: a gateway that is stopped for hours while it waits for a node did not ask it meanwhile, and
// charges what it says.
func TestStoppedGatewayGivesUpNoLease(t *testing.T) {
	o, r, lease := cutOff(t)
	id := lease.lease.LeaseID
	last := lease.release()
	n := r.provider.nodes
	_ = n.Collect(t.Context()) // from now on it waits
	n.SetCollectClock(func() time.Time { return time.Now().Add(2 * remote.CollectFor) })
	for range 3 {
		if _ = n.Collect(t.Context()); lease.row().Held != 1 {
			t.Fatal("it is given up as the gateway goes on")
		}
	}
	o.set(false, nil)
	waitFor(t, func() bool { return o.collected(r, id) })
	if newest := o.told(r, id); !newest.Owed.Gt(&last.Owed) || r.forgone() != "0" {
		t.Errorf("%s is charged, as when it ended; %s leases are given up", newest.Owed.Dec(), r.forgone())
	}
}

// TestForgedLateRecords: what a node tells late is checked as what it tells in time.
func TestForgedLateRecords(t *testing.T) {
	o, r, lease := cutOff(t)
	last := lease.release()
	o.set(false, forge(o, nil, func(rec *metering.SignedRecord) { rec.Owed.AddUint64(&rec.Owed, 1) }))
	waitFor(t, func() bool { return o.collected(r, lease.lease.LeaseID) })
	if got, lost := lease.spent(), r.forgone(); got != last.Owed.Uint64() || lost != "1" {
		t.Errorf("charged %d of %s, %s leases are given up", got, last.Owed.Dec(), lost)
	}
}
