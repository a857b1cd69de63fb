package provider

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// owes is what was charged and not vouchered on the channels, base units.
func (r *rig) owes(tabs ...*tab) (sum uint64) {
	r.Helper()
	for _, one := range tabs {
		s, err := r.provider.payee.State(r.Context(), one.terms.ID())
		if err != nil {
			r.Fatal(err)
		}
		owed := s.Owed()
		sum += owed.Uint64()
	}
	return sum
}

// Four channels in turn have one credit together: who has used it gets no other until it is paid, also after a restart and
// after its channel is closed, or pays in advance.
func TestCreditIsOfThePayer(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit, c.Terms.SuspendTimeout = 2*time.Second, 200*time.Millisecond })
	first := r.open(1, 100_000, "")
	first.status(leasestore.Ended) // unpaid
	debt := r.owes(first)
	if debt == 0 || debt > 2000 {
		t.Fatalf("%d is owed of a credit of 2000", debt)
	}
	first.close(0)
	r.restart()
	before := r.balance(r.payer.Address())
	for salt := byte(2); salt < 5; salt++ {
		terms := r.terms(r.payer.Address(), salt)
		resp := r.do("GET", "", r.openCredential(r.payer, terms, 100_000, 0))
		p := wire.ParseProblem(resp)
		if !errors.Is(p, &wire.InsufficientBalance) || !strings.Contains(p.Detail, first.terms.ID().Hex()) {
			t.Errorf("channel %d: %s %v", salt, resp.Status, p)
		}
	}
	if now := r.balance(r.payer.Address()); now != before {
		t.Errorf("%d base units moved for leases that were refused", before-now)
	}
	// In advance it is served, and not beyond that.
	terms := r.terms(r.payer.Address(), 9)
	resp := r.do("GET", "", r.openCredential(r.payer, terms, 100_000, 1500))
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("paid in advance: %v", wire.ParseProblem(resp))
	}
	ahead := &tab{rig: r, key: r.payer, terms: terms}
	ahead.attach(resp)
	ahead.status(leasestore.Suspended)
	if owed := r.owes(ahead); debt+owed > 2000 {
		t.Errorf("%d and %d are owed of a credit of 2000", debt, owed)
	}
}

// Several leases of one payer at once share one credit, and go on when any of them is paid.
func TestLeasesOfOnePayerShareItsCredit(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit = 4 * time.Second })
	one, two := r.open(1, 100_000, ""), r.open(2, 100_000, "")
	one.status(leasestore.Suspended)
	two.status(leasestore.Suspended)
	// A reading that comes late, on a machine with much to do, bills what it finds; a credit each would be 8000.
	if owed := r.owes(one, two); owed == 0 || owed > 5000 {
		t.Errorf("%d is owed of a credit of 4000", owed)
	}
	s, err := r.provider.payee.State(t.Context(), one.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	one.pay(s.Spent.Uint64())
	one.status(leasestore.Active)
	two.status(leasestore.Active)
}

// A renter that pays only when it is asked is asked in time, however seldom records are made.
func TestVoucherIsAskedForInTime(t *testing.T) {
	t.Parallel()
	for _, every := range []time.Duration{100 * time.Millisecond, time.Second, 2 * time.Second, time.Minute} {
		t.Run(every.String(), func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.Terms.Credit, c.Metering.RecordEvery = 4*time.Second, every })
			lease := r.open(1, 100_000, "")
			for range 3 {
				var need wire.NeedVoucher
				lease.read(wire.EventNeedVoucher, &need)
				if state := r.provider.Service(lease.terms.ID()); state != wire.StateActive {
					t.Fatalf("it is %s when it is asked to pay", state)
				}
				s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
				if err != nil {
					t.Fatal(err)
				}
				lease.pay(s.Spent.Uint64())
			}
		})
	}
}

// TestPatienceBeginsAnew: a renter that paid and is suspended again has all of SuspendTimeout again.
func TestPatienceBeginsAnew(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit, c.Terms.SuspendTimeout = time.Second, 800*time.Millisecond })
	lease := r.open(1, 100_000, "")
	lease.status(leasestore.Suspended)
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	lease.pay(s.Spent.Uint64())
	lease.status(leasestore.Active)
	lease.status(leasestore.Suspended)
	again := time.Now()
	lease.status(leasestore.Ended)
	if had := time.Since(again); had < 400*time.Millisecond {
		t.Errorf("it was given up after %s", had)
	}
}

// TestPatienceOutlivesRestarts: a provider that starts often does not keep its GPUs for a renter that does not pay.
func TestPatienceOutlivesRestarts(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit, c.Terms.SuspendTimeout = time.Second, time.Hour })
	lease := r.open(1, 100_000, "")
	lease.status(leasestore.Suspended)
	before := r.row(lease.lease.LeaseID)
	waitFor(t, func() bool { // it is shown before it is stored
		before = r.row(lease.lease.LeaseID)
		return before.State == wire.StateSuspended
	})
	if before.Suspended == 0 {
		t.Fatal("nothing says on disk since when the lease is suspended")
	}
	for range 2 {
		r.restart()
		if row := r.row(lease.lease.LeaseID); row.State != before.State || row.Suspended != before.Suspended {
			t.Fatalf("suspended at %d, and %s since %d after a restart", before.Suspended, row.State, row.Suspended)
		}
		l := r.provider.leases.Running(lease.terms.ID())
		if l == nil {
			t.Fatal("a suspended lease does not go on after a restart")
		}
		if !l.Suspension.Earlier.Equal(time.Unix(0, before.Suspended)) {
			t.Errorf("the lease counts from %s, and was suspended at %d", l.Suspension.Earlier, before.Suspended)
		}
	}
	lease.again()
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	lease.pay(s.Spent.Uint64())
	lease.status(leasestore.Active)
	waitFor(t, func() bool { return r.row(lease.lease.LeaseID).Suspended == 0 })
}

// TestDebtorBeginsNoLeaseAnew: who owes the credit on a channel begins no other lease on that same channel, which would
// have the GPUs in its hands until it is suspended, until it pays.
func TestDebtorBeginsNoLeaseAnew(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.SuspendTimeout = 200 * time.Millisecond })
	lease := r.open(1, 100_000, "")
	lease.status(leasestore.Ended) // unpaid
	debt := r.owes(lease)
	for range 3 {
		resp := lease.beginAgain("", 0)
		p := wire.ParseProblem(resp)
		if !errors.Is(p, &wire.InsufficientBalance) || !strings.Contains(p.Detail, lease.terms.ID().Hex()) {
			t.Fatalf("a lease of a payer that owes %d: %s %v", debt, resp.Status, p)
		}
	}
	if free := r.provider.free(""); free == nil || *free != 2 {
		t.Errorf("%v GPUs are free after leases that were refused", free)
	}
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	lease.attach(lease.beginAgain("", s.Spent.Uint64())) // a voucher that comes with the request pays
}
