package provider

import (
	"errors"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// metric is the value of one of the provider's metrics, as it is exported.
func (r *rig) metric(name string) string {
	rec := httptest.NewRecorder()
	r.provider.Metrics().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	_, text, _ := strings.Cut(rec.Body.String(), "\n"+name+" ")
	value, _, _ := strings.Cut(text, "\n")
	return value
}

// tokens is an amount as metrics have it.
func (r *rig) tokens(amount uint64) string {
	return strconv.FormatFloat((&moneyCollector{decimals: r.provider.token.Decimals}).units(*uint256.NewInt(amount)), 'g', -1, 64)
}

// refuses is that a new channel of the payer gets no lease, for what it owes.
func (r *rig) refuses(salt byte, words ...string) {
	r.Helper()
	p := wire.ParseProblem(r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), salt), 100_000, 0)))
	if !errors.Is(p, &wire.InsufficientBalance) {
		r.Fatalf("a payer that owes the credit: %v", p)
	}
	for _, word := range words {
		if !strings.Contains(p.Detail, word) {
			r.Errorf("%q does not say %q", p.Detail, word)
		}
	}
}

// defaulter leaves with the credit unpaid, on a channel that is closed for nothing.
func (r *rig) defaulter(salt byte) (left *tab, debt uint64) {
	r.Helper()
	left = r.open(salt, 100_000, "")
	left.status(leasestore.Ended) // unpaid
	if debt = r.owes(left); debt < 1500 {
		r.Fatalf("%d is owed of a credit of 2000", debt)
	}
	left.close(0)
	return left, debt
}

// TestDebtOnAClosedChannelIsWrittenOff: who owes the credit on a closed channel, where no voucher can pay it any more, has the
// credit again a day after its last lease, and not before; also where the provider was started again in between.
func TestDebtOnAClosedChannelIsWrittenOff(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.Terms.Credit, c.Terms.SuspendTimeout = 2*time.Second, 200*time.Millisecond })
			left, debt := r.defaulter(1)
			r.refuses(2, left.terms.ID().Hex(), "24h0m0s")
			r.sql(`UPDATE leases SET ended_at = ended_at - ?`, int64(defaultDebtKept/time.Second)-60)
			r.refuses(3)
			r.sql(`UPDATE leases SET ended_at = ended_at - 61`)
			r.restart()
			again := r.open(4, 100_000, "")
			again.status(leasestore.Ended)
			if owed := r.owes(again); owed < 1500 || owed > 2100 {
				t.Errorf("%d was served of a credit of 2000", owed)
			}
			if got, want := r.metric("gpupay_written_off_tokens"), r.tokens(debt); got != want {
				t.Errorf("%s is written off, want %s", got, want)
			}
			r.refuses(5, again.terms.ID().Hex()) // what came after it counts
		})
	}
}

// TestDebtIsForgiven: the operator's word writes off what a payer owes on closed channels, once, and nothing of an open one.
func TestDebtIsForgiven(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Terms.Credit, c.Terms.SuspendTimeout, c.Terms.DebtKept = 2*time.Second, 200*time.Millisecond, -1
	})
	_, debt := r.defaulter(1)
	r.sql(`UPDATE leases SET ended_at = 1`)
	r.refuses(2) // a negative DebtKept is for ever
	for _, want := range []uint64{debt, 0} {
		sum, err := r.provider.Forgive(t.Context(), r.payer.Address())
		if err != nil || sum != *uint256.NewInt(want) {
			t.Fatalf("%s is forgiven of %d (%v)", sum.Dec(), want, err)
		}
	}
	r.restart()
	open := r.open(3, 100_000, "")
	open.status(leasestore.Ended)
	owed := r.owes(open)
	if sum, err := r.provider.Forgive(t.Context(), r.payer.Address()); err != nil || !sum.IsZero() || owed < 1500 {
		t.Errorf("%s is forgiven of %d on an open channel, which a voucher can pay (%v)", sum.Dec(), owed, err)
	}
	r.refuses(4, open.terms.ID().Hex())
	open.close(0)
	if sum, err := r.provider.Forgive(t.Context(), r.payer.Address()); err != nil || sum != *uint256.NewInt(owed) {
		t.Errorf("%s is forgiven of %d (%v)", sum.Dec(), owed, err)
	}
	if got, want := r.metric("gpupay_written_off_tokens"), r.tokens(debt+owed); got != want {
		t.Errorf("%s is written off, want %s", got, want)
	}
}

// TestPruningKeepsADebt: where records go before DebtKept is over, those that say since when something is owed stay until then.
func TestPruningKeepsADebt(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Terms.Credit, c.Terms.SuspendTimeout, c.Terms.DebtKept = 2*time.Second, 200*time.Millisecond, 90*24*time.Hour
	})
	r.defaulter(1)
	const day = 24 * time.Hour
	prune := func() (n int) {
		t.Helper()
		n, err := r.provider.Prune(t.Context(), time.Now().Add(-day), func(*audit.Bundle) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	r.sql(`UPDATE leases SET ended_at = ended_at - ?`, int64(25*3600))
	if n := prune(); n != 0 {
		t.Errorf("%d channels of a debtor are pruned", n)
	}
	r.refuses(3)
	r.sql(`UPDATE leases SET ended_at = ended_at - ?`, int64(90*24*3600))
	if n := prune(); n != 1 {
		t.Errorf("%d channels are pruned after DebtKept", n)
	}
	r.open(4, 100_000, "")
}
