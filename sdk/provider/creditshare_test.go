package provider

import (
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

// southern is a second node, of the same metering key.
func (o *outpost) southern() *outpost {
	o.Helper()
	s := newNamedOutpost(o.T, "south")
	s.stop()
	s.config.MeterKey = o.config.MeterKey
	s.config.Database = filepath.Join(o.TempDir(), "south.db")
	s.config.Source, s.config.Allocator = testclock.GPUs(4), &gpu.HostAllocator{Devices: []string{"SIM-GPU-2", "SIM-GPU-3"}}
	s.start()
	return s
}

// unpaid is what the leases owe by their nodes' own books, base units.
func unpaid(leases []*tab, nodes ...*outpost) (sum uint64) {
	for _, lease := range leases {
		for _, o := range nodes {
			last, err := o.disk.Records.Last(o.Context(), lease.lease.LeaseID)
			if err != nil || last == nil {
				continue
			}
			row, err := o.disk.Get(o.Context(), o.disk.DB.View(), lease.lease.LeaseID)
			if err != nil {
				o.Fatal(err)
			}
			s, err := row.State()
			if err != nil {
				o.Fatal(err)
			}
			owed := u256.SaturatingSub(last.Owed, s.Accepted)
			sum += owed.Uint64()
		}
	}
	return sum
}

// TestLeasesOnNodesShareTheCredit: four leases of one payer on two nodes, one of which is cut off, have one credit together at
// all times; whoever pays goes on, and one that ended leaves its part to the others.
func TestLeasesOnNodesShareTheCredit(t *testing.T) {
	north := newOutpost(t)
	south := north.southern()
	r := newRig(t, north.link, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: south.server.URL})
		c.Terms.Credit = 20 * time.Second // not used up while one begins
	})
	const most = 20_000 + 4*250 // the credit, and a reading that comes late of each GPU; with a credit each it would be 40,000
	var leases []*tab
	hold := func() {
		t.Helper()
		if sum := unpaid(leases, north, south); sum > most {
			t.Fatalf("%d is unpaid of a credit of 20,000", sum)
		}
	}
	for salt := byte(1); salt <= 4; salt++ {
		for _, lease := range leases {
			lease.payAll(1)
		}
		leases = append(leases, r.open(salt, 100_000, ""))
		hold()
	}
	for _, lease := range leases {
		for end := time.Now().Add(time.Minute); r.provider.Service(lease.terms.ID()) != wire.StateSuspended; time.Sleep(50 * time.Millisecond) {
			if hold(); time.Now().After(end) {
				t.Fatal("it is not suspended")
			}
		}
	}
	south.set(true, nil) // what is there keeps its part
	for _, lease := range leases {
		if row, err := r.provider.store.Leases.ByID(t.Context(), lease.lease.LeaseID.Hex()); err != nil {
			t.Fatal(err)
		} else if a, err := row.Allocated(); err != nil || a.Node != "north" {
			continue
		}
		s := lease.state()
		lease.pay(s.Spent.Uint64())
		waitFor(t, func() bool { hold(); return r.provider.Service(lease.terms.ID()) == wire.StateActive })
	}
	for range 40 {
		hold()
		time.Sleep(50 * time.Millisecond)
	}
	south.set(false, nil)
	for _, lease := range leases[1:] {
		final := lease.release()
		lease.pay(owedIn(final))
	}
	one := leases[0]
	one.pay(one.spent())
	waitFor(t, func() bool {
		share := r.provider.leases.Running(one.terms.ID()).Balance.Share.Load()
		return share.Uint64() == 20_000
	})
}

// TestCreditThatANodeHolds: a lease that ended while its node was cut off holds its part of the credit until the node has
// told what it metered: another one begins only if it is paid in advance, and then when that is paid.
func TestCreditThatANodeHolds(t *testing.T) {
	north := newOutpost(t)
	south := north.southern()
	r := newRig(t, quiet, north.link, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: south.server.URL})
	})
	first := r.open(1, 100_000, "?gpus=2")
	first.record()
	at := north
	if _, err := south.disk.Leases.ByID(t.Context(), first.lease.LeaseID.Hex()); err == nil {
		at = south
	}
	at.set(true, nil)
	first.release()
	terms := r.terms(r.payer.Address(), 2)
	if resp := r.do("GET", "", r.openCredential(r.payer, terms, 100_000, 0)); resp.StatusCode != http.StatusPaymentRequired {
		t.Fatalf("a second credit: %s", resp.Status)
	}
	at.set(false, nil)
	waitFor(t, func() bool { return first.row().Held == 0 })
	first.pay(first.spent())
	second := &tab{rig: r, key: r.payer, terms: terms}
	waitFor(t, func() bool {
		resp := second.comeBack(0)
		if resp.StatusCode != http.StatusOK {
			return false
		}
		second.attach(resp)
		return true
	})
}

// TestLeaseThatDidNotBeginHasNoShare: a lease whose node's answers were lost as it was to begin leaves its share of the credit to
// the next one, which begins at another node at once.
func TestLeaseThatDidNotBeginHasNoShare(t *testing.T) {
	north := newOutpost(t)
	south := north.southern()
	r := newRig(t, quiet, north.link, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: south.server.URL})
	})
	north.set(false, func(path string, answer []byte) []byte {
		if path != "/status" {
			panic(http.ErrAbortHandler)
		}
		return answer
	})
	terms := r.terms(r.payer.Address(), 1)
	if resp := r.do("GET", "", r.openCredential(r.payer, terms, 100_000, 0)); resp.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("its node's answer is lost: %s", resp.Status)
	}
	var shares int
	if err := r.provider.db.View().Get(&shares, `SELECT COUNT(*) FROM credit_shares`); err != nil || shares != 0 {
		t.Errorf("%d shares of no lease (%v)", shares, err)
	}
	next := &tab{rig: r, key: r.payer, terms: terms}
	if resp := next.comeBack(0); resp.StatusCode != http.StatusOK {
		t.Fatalf("the next lease: %s %v", resp.Status, wire.ParseProblem(resp))
	}
	if l := r.provider.leases.Running(terms.ID()); l == nil || l.Allocation.Node != "south" {
		t.Errorf("it runs at %+v", l)
	}
}
