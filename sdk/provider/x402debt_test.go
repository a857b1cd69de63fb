package provider

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"
)

// TestX402DebtLapses: a payer of x402 that used the credit's worth on small channels and withdrew them has nothing to refund. It has
// its credit again when the provider forgives it, or after DebtKept and not before, and the answer says so.
func TestX402DebtLapses(t *testing.T) {
	t.Parallel()
	for name, forgive := range map[string]bool{"after DebtKept": false, "forgiven": true} {
		t.Run(name, func(t *testing.T) { x402Debtor(t, forgive) })
	}
}

func x402Debtor(t *testing.T, forgive bool) {
	const row, credit = 2000, 1000
	r := newPayRig(t, func(c *Config) {
		c.Settlement.LeastRow = *uint256.NewInt(row)
		c.Terms.Credit = time.Second
	})
	base := r.buyer("/tick")
	r.chain.RPC(t, nil, "anvil_setBalance", base.key.Address(), "0xde0b6b3a7640000")
	var used uint64
	salt := byte(1)
	channelOf := func(salt byte) *buyer {
		b := *base
		b.terms.Salt[31] = salt
		b.charged, b.salt = 0, salt*4
		return &b
	}
	var all []*buyer
	for ; used < credit && salt < 30; salt++ {
		b := channelOf(salt)
		b.open(10_000)
		b.idle()
		k := b.kept()
		used += k.Spent.Uint64()
		all = append(all, b)
	}
	for _, b := range all {
		r.chain.Transact(t, b.private, r.contract.Address(), r.contract.InitiateWithdrawCall(b.terms, *uint256.NewInt(10_000)).Data)
	}
	time.Sleep(2 * time.Second)
	r.chain.AdvanceTime(t, time.Duration(base.terms.WithdrawDelay+10)*time.Second)
	for _, b := range all {
		r.chain.Transact(t, b.private, r.contract.Address(), r.contract.FinalizeWithdrawCall(b.terms).Data)
	}
	time.Sleep(2 * time.Second)
	refused := func(why string) {
		t.Helper()
		b := channelOf(salt)
		b.provider, b.server = r.provider, r.server
		resp := b.pay(b.depositing(b.next(), 10_000))
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusPaymentRequired || !strings.Contains(string(body), "counts for 24h0m0s") {
			t.Fatalf("%s: %s %s", why, resp.Status, body)
		}
	}
	age := func(d time.Duration) {
		t.Helper()
		if err := r.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error {
			if _, err := tx.Exec(`UPDATE leases SET ended_at = ended_at - ? WHERE ended_at > 0`, int64(d/time.Second)); err != nil {
				return err
			}
			_, err := tx.Exec(`UPDATE payee_channels SET updated_at = updated_at - ?`, int64(d))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		r.restart()
	}
	waitFor(t, func() bool {
		s, err := r.provider.payee.Store.Load(t.Context(), all[len(all)-1].terms.ID())
		return err == nil && s.Deposit == s.Settled
	})
	refused("at once")
	age(defaultDebtKept - time.Hour)
	refused("an hour too early")
	if forgive {
		sum, err := r.provider.Forgive(t.Context(), base.key.Address())
		if err != nil || sum.Uint64() < credit {
			t.Fatalf("%s of %d are forgiven (%v)", sum.Dec(), used, err)
		}
	} else {
		age(2 * time.Hour)
	}
	b := channelOf(salt)
	b.provider, b.server = r.provider, r.server
	if resp := b.pay(b.depositing(b.next(), 10_000)); resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		t.Errorf("refused for ever: %s %s", resp.Status, body)
	}
}
