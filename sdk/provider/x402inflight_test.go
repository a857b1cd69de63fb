package provider

import (
	"errors"
	"net/http"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
)

// refundGivenUp has a refund of all in flight that no request waits for.
func (b *buyer) refundGivenUp() {
	b.Helper()
	if b.provider.leases.Running(b.terms.ID()) != nil {
		b.idle()
	}
	b.chain.RPC(b.T, nil, "evm_setAutomine", false)
	s := b.kept()
	all, err := x402server.Refundable(s, nil)
	if err == nil {
		_, err = x402Of(b.provider).Refunds.Submit(b.Context(), nil, s, all)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// mineRefund has the refund mined, and waits until the outbox knows.
func (b *buyer) mineRefund() {
	b.Helper()
	b.chain.RPC(b.T, nil, "evm_setAutomine", true)
	b.chain.RPC(b.T, nil, "evm_mine")
	eventually(b.T, "the refund is mined", func() bool {
		txs, err := b.provider.sender.Find(b.Context(), b.terms.ID(), chain.Refund)
		return err == nil && len(txs) == 1 && txs[0].State != chain.Pending
	})
}

// TestRefundInFlightServesNothing: nothing is served from a deposit that a refund is about to take, by this process or the
// next, nor from what the refund took before the watcher saw that.
func TestRefundInFlightServesNothing(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(20_000)
	b.refundGivenUp()
	used := b.kept().Spent
	for _, when := range []string{"in flight", "in flight over a restart"} {
		if refused := b.refused(b.pay(b.payment(b.next()))); refused.Error != x402server.ErrRefunding.Error() {
			t.Errorf("%s: %q", when, refused.Error)
		}
		if refused := b.refused(b.pay(b.depositing(b.next(), 20_000))); refused.Error != x402server.ErrRefunding.Error() {
			t.Errorf("%s, with a deposit: %q", when, refused.Error)
		}
		if when == "in flight" {
			r.restart()
			b.provider = r.provider
		}
	}
	b.mineRefund()
	stale := b.kept()
	stale.Deposit.SetUint64(20_000)
	if tab, err := x402Of(r.provider).Unrefunded(t.Context(), x402server.Account{State: stale, Known: true}); err != nil || tab.Deposit.Uint64() >= 20_000 {
		t.Errorf("after the refund %s is served from, %v", tab.Deposit.Dec(), err)
	}
	if resp := b.pay(b.payment(b.next())); resp.StatusCode == http.StatusOK {
		t.Error("served from what was refunded")
	}
	if kept := b.kept(); kept.Spent != used {
		t.Errorf("%s was used, %s before the refund", kept.Spent.Dec(), used.Dec())
	}
}

// TestUndoneRefundServesNothing: a refund that a re-org undid comes again, though the outbox does not know yet that it must.
func TestUndoneRefundServesNothing(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(20_000)
	before := r.chain.Head(t)
	b.refundGivenUp()
	b.mineRefund()
	r.stop() // neither the outbox nor the watcher sees the re-org
	r.ran <- <-r.ran
	stale := b.kept()
	stale.Deposit.SetUint64(20_000)
	tab := x402server.Account{State: stale, Known: true}
	if tab, err := x402Of(r.provider).Unrefunded(t.Context(), tab); err != nil || tab.Deposit.Uint64() >= 20_000 {
		t.Fatalf("after the refund %s is served from, %v", tab.Deposit.Dec(), err)
	}
	r.chain.Reorg(t, int(r.chain.Head(t)-before))
	if tab, err := x402Of(r.provider).Unrefunded(t.Context(), tab); !errors.Is(err, x402server.ErrRefunding) {
		t.Errorf("after a re-org %s is served from, %v", tab.Deposit.Dec(), err)
	}
}

// TestClaimOfAGivenUpRefundIsPaidOut: what a refund claimed is fetched with the next settlement, though its request is gone, and
// before all purses are looked into again. A lease's end settles nothing here, since settlements have to be worth their gas.
func TestClaimOfAGivenUpRefundIsPaidOut(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.Settlement.MaxFeeShare, c.Settlement.CoinPrice = 10_000, *uint256.NewInt(1) })
	b := r.buyer("/tick")
	b.open(20_000)
	b.idle()
	if err := r.provider.Settle(t.Context()); err != nil { // all purses were looked into
		t.Fatal(err)
	}
	b.again()
	b.refundGivenUp()
	used := b.used()
	b.mineRefund()
	for _, book := range r.provider.settlement.service.Books {
		if err := book.Watcher.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := book.Settler.Settle(t.Context(), b.terms.ID()); err != nil {
			t.Fatal(err)
		}
	}
	if settled := b.kept().Settled; settled != used {
		t.Errorf("%s settled of %s", settled.Dec(), used.Dec())
	}
	b.receives(used.Uint64())
}
