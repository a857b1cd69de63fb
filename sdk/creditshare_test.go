package sdk

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
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
	r := newRig(t, north.link, func(c *ProviderConfig) {
		c.Nodes = append(c.Nodes, NodeLink{Name: "south", URL: south.server.URL})
		c.Credit = 20 * time.Second // not used up while one begins
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
		share := r.provider.running(one.terms.ID()).Share.Load()
		return share.Uint64() == 20_000
	})
}

// TestCreditThatANodeHolds: a lease that ended while its node was cut off holds its part of the credit until the node has
// told what it metered: another one begins only if it is paid in advance, and then when that is paid.
func TestCreditThatANodeHolds(t *testing.T) {
	north := newOutpost(t)
	south := north.southern()
	r := newRig(t, quiet, north.link, func(c *ProviderConfig) {
		c.Nodes = append(c.Nodes, NodeLink{Name: "south", URL: south.server.URL})
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
	r := newRig(t, quiet, north.link, func(c *ProviderConfig) {
		c.Nodes = append(c.Nodes, NodeLink{Name: "south", URL: south.server.URL})
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
	if l := r.provider.running(terms.ID()); l == nil || l.Allocation.Node != "south" {
		t.Errorf("it runs at %+v", l)
	}
}

// TestShareOfALeaseThatAnotherClockEnded: a lease that ended keeps its part of the credit until its node was heard, and not a
// moment longer, whatever the clock of the gateway that ended it said: ten minutes ahead of ours or behind.
func TestShareOfALeaseThatAnotherClockEnded(t *testing.T) {
	db, err := database.Open(t.Context(), filepath.Join(t.TempDir(), "provider.db"), "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	shares := &creditShares{store: leasestore.New(db), owing: func(context.Context, ...common.Address) ([]channel.State, error) { return nil, nil }}
	payer := common.Address{1}
	lets := func(id byte, share uint64) claimant {
		t.Helper()
		q := claimant{lease: common.Hash{id}, channel: common.Hash{id}, payer: payer, credit: *uint256.NewInt(1000)}
		row := leasestore.Row{ID: q.lease.Hex(), Channel: q.channel.Hex(), Allocation: "{}", OwedBefore: "0", State: wire.StateAllocating, StartedAt: time.Now().UnixNano()}
		if err := errors.Join(shares.store.Leases.Insert(t.Context(), row), shares.begin(t.Context(), q, *uint256.NewInt(share))); err != nil {
			t.Fatal(err)
		}
		return q
	}
	ended, ours := lets(1, 900), lets(2, 0)
	for _, ahead := range []time.Duration{-10 * time.Minute, 0, 10 * time.Minute} {
		for held, want := range map[bool]uint64{true: 100, false: 1000} {
			if err := shares.store.Leases.SetEnded(t.Context(), ended.lease, 0, "", held); err != nil {
				t.Fatal(err)
			}
			err := db.Update(t.Context(), func(tx *sqlx.Tx) error {
				_, err := tx.Exec(`UPDATE leases SET ended_at = ? WHERE id = ?`, time.Now().Add(ahead).Unix(), ended.lease.Hex())
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			p, err := ours.portion(t.Context(), db.View(), "", nil, uint256.Int{})
			if err != nil || p.tell.Uint64() != want {
				t.Errorf("ended by a clock %s ahead, its node not heard %t: the other lease has %s of the credit, want %d, %v", ahead, held, p.tell.Dec(), want, err)
			}
		}
	}
}
