package provider

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestVouchersThatNoSettlementFetchesAreADebt: who pays on each of many channels, and on each less than a settlement
// fetches, has its credit and one such row of all of them together, also after a restart. What it pays in advance counts
// where a settlement fetches it, and closing pays all.
func TestVouchersThatNoSettlementFetchesAreADebt(t *testing.T) {
	const row, credit = 4000, 6000
	r := newAnvilRig(t, func(c *Config) {
		c.Settlement.LeastRow = *uint256.NewInt(row)
		c.Terms.Credit = 6 * time.Second
	})
	var used uint64
	var crumbs []*tab
	ask := func(salt byte, ahead uint64) *http.Response {
		return r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), salt), 10_000, ahead))
	}
	salt, refused := byte(1), (*http.Response)(nil)
	for ; refused == nil && salt < 16; salt++ {
		resp := ask(salt, 0)
		if resp.StatusCode != http.StatusOK {
			refused = resp
			break
		}
		lease := &tab{rig: r.rig, key: r.payer, terms: r.terms(r.payer.Address(), salt)}
		lease.attach(resp)
		eventually(t, "it has used a little, or all that is left", func() bool {
			l := r.provider.leases.Running(lease.terms.ID())
			used := l.Balance.Debt()
			return used.Uint64() >= 1000 || l.Status.State() == leasestore.Suspended
		})
		spent := lease.state().Spent
		lease.pay(spent.Uint64())
		final := lease.release()
		lease.pay(final.Owed.Uint64())
		if final.Owed.Uint64() < row { // on a machine with much to do it may be more, which is settled
			used += final.Owed.Uint64()
			crumbs = append(crumbs, lease)
		}
	}
	if refused == nil {
		t.Fatalf("served on %d channels, of which %d can be left with %d; the credit is %d", salt-1, len(crumbs), used, credit)
	}
	if p := wire.ParseProblem(refused); !errors.Is(p, &wire.InsufficientBalance) || !strings.Contains(p.Detail, "close channels") {
		t.Fatalf("%s %v", refused.Status, p)
	}
	if used < credit-row || used >= credit+row {
		t.Errorf("refused at %d, of a credit of %d and rows of %d", used, credit, row)
	}
	if s, err := r.provider.payee.State(t.Context(), crumbs[0].terms.ID()); err != nil || !s.Settled.IsZero() {
		t.Fatalf("settled %s: %v", s.Settled.Dec(), err)
	}

	r.config.Terms.Credit = time.Second // less than is owed, whatever the last lease left
	r.restart()
	if resp := ask(salt, row-1); resp.StatusCode != http.StatusPaymentRequired { // less than a settlement fetches
		t.Fatalf("%s for an advance that no settlement fetches", resp.Status)
	}
	resp := ask(salt, row)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("paid in advance: %v", wire.ParseProblem(resp))
	}
	ahead := &tab{rig: r.rig, key: r.payer, terms: r.terms(r.payer.Address(), salt)}
	ahead.attach(resp)
	if err := r.provider.settlement.service.Books[0].Settler.Settle(t.Context(), ahead.terms.ID()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the advance is settled", func() bool { return r.settled(ahead) == row })
	ahead.pay(row + 1000)
	l := r.provider.leases.Running(ahead.terms.ID())
	if l == nil {
		t.Fatal("no lease runs on what is paid in advance")
	}
	v := l.Status.Look()
	if limit := l.Balance.Limit(&v); limit.Uint64() != row {
		t.Errorf("served up to %s, and a settlement fetched %d", limit.Dec(), row)
	}
	ahead.release()

	for _, crumb := range crumbs {
		crumb.closeProven(crumb.accepted())
		if s, err := r.provider.payee.State(t.Context(), crumb.terms.ID()); err != nil || s.Settled != s.Accepted {
			t.Fatalf("a close left %v of %s unpaid: %v", s.Unsettled(), s.Accepted.Dec(), err)
		}
	}
	if resp := ask(salt+1, 0); resp.StatusCode != http.StatusOK {
		t.Errorf("after all is paid: %v", wire.ParseProblem(resp))
	}
}

// TestManyLeasesGoOn: what leases that run have vouchered, and no settlement fetches yet, is no debt of their payer's: each begins
// at nothing after each settlement, and would wait for the others for ever.
func TestManyLeasesGoOn(t *testing.T) {
	const enough = 3000 // on each, of a credit of 2,000 for both
	r := newRig(t, func(c *Config) {
		c.Settlement.LeastRow = *uint256.NewInt(10_000)
		c.Terms.Credit = 2 * time.Second
	})
	var leases []*tab
	for salt := range byte(2) {
		terms := r.terms(r.payer.Address(), salt+1)
		resp := r.do("GET", "", r.openCredential(r.payer, terms, 100_000, 0))
		if resp.StatusCode != http.StatusOK {
			t.Fatal(wire.ParseProblem(resp))
		}
		lease := &tab{rig: r, key: r.payer, terms: terms}
		lease.attach(resp)
		lease.pay(enough) // in advance, so that a slow machine has no debt in the way of the next one
		leases = append(leases, lease)
	}
	waitFor(t, func() bool {
		done := true
		for _, lease := range leases {
			spent := lease.state().Spent
			lease.pay(max(spent.Uint64(), enough))
			done = done && spent.Uint64() >= enough+500
		}
		return done
	})
	for _, lease := range leases {
		final := lease.release()
		lease.pay(final.Owed.Uint64())
	}
	r.wantDebt(t, leases)
}

// wantDebt has the vouchers of leases that ended count as a debt.
func (r *rig) wantDebt(t *testing.T, leases []*tab) {
	t.Helper()
	owing, err := r.provider.debts.Owing(t.Context(), r.payer.Address())
	if err != nil || len(owing) != len(leases) {
		t.Fatalf("%d channels count, of %d, %v", len(owing), len(leases), err)
	}
	for _, s := range owing {
		if debt := payercredit.DebtOf(s, r.provider.leastRow(r.provider.escrow)); debt != s.Spent {
			t.Errorf("%s of %s counts", debt.Dec(), s.Spent.Dec())
		}
	}
}

// settled is what the chain paid of a channel, as the books have it.
func (r *rig) settled(l *tab) uint64 {
	s, err := r.provider.payee.State(r.Context(), l.terms.ID())
	if err != nil {
		r.Fatal(err)
	}
	return s.Settled.Uint64()
}

// TestX402UseThatNoClaimFetchesIsBounded: one payer leaves with no more than the credit's worth and one row of a claim, whatever
// number of channels it has; a refund of what it used pays for that.
func TestX402UseThatNoClaimFetchesIsBounded(t *testing.T) {
	const row, credit = 2000, 1000
	r := newPayRig(t, func(c *Config) {
		c.Settlement.LeastRow = *uint256.NewInt(row)
		c.Terms.Credit = time.Second
	})
	base := r.buyer("/tick")
	var all []*buyer
	channelOf := func(salt byte) *buyer {
		b := *base
		b.terms.Salt[31] = salt
		b.charged, b.salt = 0, salt*4
		return &b
	}
	var used uint64
	salt := byte(1)
	for ; used < credit && salt < 30; salt++ {
		b := channelOf(salt)
		b.open(10_000)
		b.idle()
		k := b.kept()
		if used += k.Spent.Uint64(); k.Spent.Uint64() >= row {
			t.Fatalf("%s were used of one window", k.Spent.Dec())
		}
		all = append(all, b)
	}
	before := r.chain.Tokens(t, base.key.Address())
	b := channelOf(salt)
	resp := b.pay(b.depositing(b.next(), 10_000))
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusPaymentRequired || !strings.Contains(string(body), x402server.ErrScattered.Error()) {
		t.Fatalf("%s %s after %d on %d channels, of a credit of %d", resp.Status, body, used, len(all), credit)
	}
	if now := r.chain.Tokens(t, base.key.Address()); now != before {
		t.Errorf("%d moved for a request that was refused", before-now)
	}
	for _, b := range all {
		b.refund(0)
		if k := b.kept(); k.Settled != k.Spent {
			t.Fatalf("a refund left %v of %s unpaid", k.Unsettled(), k.Spent.Dec())
		}
	}
	b.salt++
	b.open(10_000)
}
