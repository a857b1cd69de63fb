package provider

import (
	"math/big"
	"net/http"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/x402"
)

// refunding is a request for what was not charged; all of it if part is 0.
func (b *buyer) refunding(part uint64) *x402.PaymentPayload {
	b.Helper()
	p := b.payment(b.charged)
	p.Payload.Type = x402.TypeRefund
	if part > 0 {
		amount := wireAmount(part)
		p.Payload.Refund = &amount
	}
	return p
}

// refund takes a refund, as a stock client does: corrected once, if need be.
func (b *buyer) refund(part uint64) paid {
	b.Helper()
	resp := b.pay(b.refunding(part))
	if resp.StatusCode == http.StatusPaymentRequired {
		b.corrected(resp)
		resp = b.pay(b.refunding(part))
	}
	p := b.take(resp)
	if p.ChargedAmount != nil || p.Transaction == (x402.Transaction{}) || p.Amount == nil {
		b.Fatalf("a refund's receipt is %+v", p.SettleResponse)
	}
	return p
}

func (b *buyer) has(want uint64) {
	b.Helper()
	if got := b.chain.Tokens(b.T, b.key.Address()); got != want {
		b.Errorf("the payer has %d, want %d", got, want)
	}
}

// TestRefunds: a part, more than there is, all, and the channel again.
func TestRefunds(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(20_000)
	part := b.refund(5_000)
	if part.Amount.Uint64() != 5_000 || part.ChannelState.RefundNonce.Uint64() != 1 {
		t.Fatalf("a part: %+v", part.SettleResponse)
	}
	if l := r.provider.leases.Running(b.terms.ID()); l != nil {
		t.Error("the lease goes on after a refund")
	}
	b.has(1_000_000 - 20_000 + 5_000)
	used := b.used()
	if on := b.on().View; on.Settled != used || on.Deposit != *uint256.NewInt(15_000) {
		t.Fatalf("the contract says %+v, used is %s", on, used.Dec())
	}
	b.charged = used.Uint64() // a client reads it in the next corrective answer
	all := b.refund(900_000)
	if all.Amount.Uint64() != 15_000-used.Uint64() {
		t.Errorf("all that is left: %+v", all.SettleResponse)
	}
	b.has(1_000_000 - used.Uint64())
	if refused := b.refused(b.pay(b.refunding(0))); refused.Error != string(x402.CodeRefundNoBalance) {
		t.Errorf("nothing is left: %q", refused.Error)
	}
	// What was claimed is paid out though no settlement follows.
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.receives(used.Uint64())

	b.open(10_000) // the same channel: charges go on where they were
	if b.charged < used.Uint64() {
		t.Errorf("charged %d after %s", b.charged, used.Dec())
	}
	full := b.refund(0)
	used = b.used()
	if full.ChannelState.Balance.Int != used || full.ChannelState.TotalClaimed.Int != used {
		t.Errorf("after a full refund: %+v, used %s", full.ChannelState.Snapshot, used.Dec())
	}
	b.has(1_000_000 - used.Uint64())
}

// TestStrangerWithASettledVoucher: once claimed, a voucher is calldata that
// anybody reads. It buys nothing, and brings about no refund.
func TestStrangerWithASettledVoucher(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(100_000)
	b.idle()
	large := b.voucher(b.charged + 5000).Voucher() // of a request with a higher ceiling
	if _, err := x402Of(r.provider).Book.Accept(t.Context(), large); err != nil {
		t.Fatal(err)
	}
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept := b.kept()
	calls, err := r.provider.sender.Newest(t.Context(), b.terms.ID(), 1, 0, "claim")
	if err != nil || len(calls) != 1 {
		t.Fatal(calls, err)
	}
	disclosed, ok, err := x402Of(r.provider).Contract.Disclosed(calls[0], b.terms.ID())
	if err != nil || !ok || kept.Accepted != disclosed {
		t.Fatalf("claimed with a voucher over %s (%t, %v), accepted is %s", disclosed.Dec(), ok, err, kept.Accepted.Dec())
	}
	public := disclosed.Uint64()
	stolen := func() *x402.PaymentPayload {
		p := b.payment(public)
		copy(p.Payload.Voucher.Signature[:], kept.Signature)
		return p
	}
	// As a payment: what was charged is made such that the voucher is the next one.
	spend(t, r, b, public-testMost)
	before := b.kept()
	b.corrected(b.pay(stolen()))
	if b.charged != public-testMost+1 {
		t.Errorf("the true client is told %d were charged, want %d", b.charged, public-testMost+1)
	}
	if after := b.kept(); r.provider.leases.Running(b.terms.ID()) != nil || after.Spent != before.Spent {
		t.Error("a stranger was served")
	}
	b.corrected(b.pay(stolen())) // now it is only a wrong amount
	if b.charged != public-testMost+1 {
		t.Errorf("each try costs a base unit: %d", b.charged)
	}
	b.again()

	// As a refund: what was charged is made what the voucher is over.
	b.idle()
	spend(t, r, b, public)
	theft := stolen()
	theft.Payload.Type = x402.TypeRefund
	held := b.holds()
	b.corrected(b.pay(theft))
	if b.charged != public+1 || b.holds() != held {
		t.Errorf("charged %d, the contract holds %d of %d", b.charged, b.holds(), held)
	}
	b.refund(0)
}

// spend has a channel's requests charged up to an amount, as streams do.
func spend(t *testing.T, r *payRig, b *buyer, to uint64) {
	t.Helper()
	if err := x402Of(r.provider).Journal.Prepay(t.Context(), b.terms.ID(), *uint256.NewInt(to)); err != nil {
		t.Fatal(err)
	}
	b.charged = to
}

// TestDustIsNotRefunded: a part that is not worth a transaction is refused before anything ends for it; all that is left is
// given back, however little. What parts may cost in a day is bounded.
func TestDustIsNotRefunded(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.Terms.MinTransfer = "0.005" })
	b := r.buyer("/tick")
	b.open(10_000)
	r.provider.sponsor.Budget.PerPayer = big.NewInt(1)
	nonce := func() uint64 {
		n, err := r.chain.Backend.PendingNonceAt(t.Context(), r.config.Key.Address())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := nonce()
	for range 35 {
		resp := b.pay(b.refunding(1))
		if resp.StatusCode == http.StatusPaymentRequired {
			if refused := b.refused(resp); refused.Error == string(x402.CodeCumulativeMismatch) {
				kept := b.kept()
				b.charged = kept.Spent.Uint64()
			} else if refused.Error != string(x402.CodeRefundAmountInvalid) {
				t.Fatalf("refused with %q", refused.Error)
			}
			continue
		}
		t.Fatalf("a refund of one base unit: %s", resp.Status)
	}
	if n := nonce() - before; n != 0 || r.provider.leases.Running(b.terms.ID()) == nil {
		t.Errorf("%d transactions, the lease is %s", n, r.provider.Service(b.terms.ID()))
	}
	b.idle()
	if resp := b.pay(b.refunding(5_000)); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a part beyond the day's budget: %s", resp.Status)
	}
	if all := b.refund(0); all.Amount.IsZero() {
		t.Errorf("all that is left: %+v", all.SettleResponse)
	}
}

// TestWholeRefundsAreBounded: a payer that deposits dust by itself and asks for all of it, again and again, gets it back once
// whatever the budgets say, and then within them.
func TestWholeRefundsAreBounded(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(20_000)
	r.provider.sponsor.Budget.PerPayer = big.NewInt(1)
	b.idle()
	b.refund(0)
	p := b.depositing(b.next(), 1)
	a := chain.Authorization{Authorization: p.Payload.Authorization(), Signature: p.Payload.Deposit.Authorization.Signature[:]}
	call := b.contract.DepositCall(b.terms, [32]byte(p.Payload.Deposit.Authorization.Salt), a)
	r.chain.Transact(t, r.chain.Keys[5], call.To, call.Data)
	before, err := r.provider.GasSpent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	resp := b.pay(b.refunding(0))
	if resp.StatusCode == http.StatusPaymentRequired {
		b.corrected(resp)
		resp = b.pay(b.refunding(0))
	}
	after, err := r.provider.GasSpent(t.Context())
	if resp.StatusCode != http.StatusTooManyRequests || err != nil || after.Cmp(before) != 0 {
		t.Errorf("a refund of one base unit beyond the day's budget: %s, and it cost %s wei more than %s (%v)", resp.Status, after, before, err)
	}
	b.holding(1)
}

// holding checks what the contract holds of the channel.
func (b *buyer) holding(want uint64) {
	b.Helper()
	on := b.on()
	if got := on.View.Deposit.Uint64() - on.View.Settled.Uint64(); got != want {
		b.Errorf("the channel holds %d, want %d", got, want)
	}
}
