package provider

import (
	"context"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// flee moves a payer's tokens away, ahead of what waits.
func (b *buyer) flee() {
	b.Helper()
	opts := bind.NewKeyedTransactor(b.private, new(big.Int).SetUint64(b.contract.ChainID()))
	opts.Context, opts.GasLimit = b.Context(), 100_000
	opts.GasTipCap, opts.GasFeeCap = big.NewInt(50e9), big.NewInt(200e9)
	token := testtoken.NewTestToken()
	if _, err := bind.Transact(token.Instance(b.chain.Backend, b.chain.Token), opts, token.PackTransfer(common.Address{0xee}, big.NewInt(1_000_000))); err != nil {
		b.Fatal(err)
	}
}

// TestDepositThatRevertsAfterItsSimulation: it is told as what it is, nothing is
// served, and what such deposits may cost has an end.
func TestDepositThatRevertsAfterItsSimulation(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.Limits.LostGas = big.NewInt(1) }) // one uses it up
	thief, honest := r.buyer("/tick"), r.buyer("/tick")
	r.chain.RPC(t, nil, "anvil_setBalance", thief.key.Address(), "0xde0b6b3a7640000")
	p, good := thief.depositing(testMost, 20_000), honest.depositing(testMost, 20_000)
	r.chain.Automine(t, false)
	answer := make(chan *http.Response, 1)
	header := headerOf(t, p)
	go func() { answer <- thief.send("GET", "/tick", header) }()
	eventually(t, "the deposit is sent", func() bool { return len(r.transactions(thief)) == 1 })
	thief.flee()
	r.chain.Mine(t, 1)
	if refused := thief.refused(<-answer); refused.Error != string(x402.CodeDepositFailed) {
		t.Errorf("refused with %q", refused.Error)
	}
	r.chain.Automine(t, true)
	r.chain.Mint(t, thief.key.Address(), 1_000_000)
	for _, b := range []*buyer{thief, honest} {
		again := p
		if b == honest {
			again = good
		}
		if resp := b.pay(again); resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s, want 503: %v", resp.Status, wire.ParseProblem(resp))
		}
	}
	lost, _, err := r.provider.sender.Wasted(t.Context(), time.Now().Add(-time.Hour), chain.Deposit)
	if err != nil || lost.Sign() == 0 || len(r.transactions(thief)) != 1 || len(r.transactions(honest)) != 0 {
		t.Errorf("lost %s wei on %v and %v, %v", lost, r.transactions(thief), r.transactions(honest), err)
	}
	if r.provider.leases.Running(thief.terms.ID()) != nil {
		t.Error("a lease was begun")
	}
}

// TestStaleOffer: an offer of another price is not taken, whichever is lower.
func TestStaleOffer(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(50_000)
	old := b.payment(b.next())
	r.shut()
	r.config.PricePerGPUHour = "7.20"
	r.start()
	b.provider = r.provider
	if refused := b.refused(b.pay(old)); refused.Error != string(x402.CodeNoMatch) {
		t.Errorf("refused with %q", refused.Error)
	}
	b.again()         // ends the lease of the old one
	tick := b.again() // on a lease of the new one
	if charged := tick.ChargedAmount.Uint64(); charged < 600 || charged >= 2*testMost {
		t.Errorf("a tick of 600 cost %d", charged)
	}
}

// TestDrainedChannel: a payer that got its money back while nobody looked is not
// served, and what can still be had is claimed.
func TestDrainedChannel(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(20_000)
	b.idle()
	r.chain.RPC(t, nil, "anvil_setBalance", b.key.Address(), "0xde0b6b3a7640000")
	r.shut()
	r.chain.Transact(t, b.private, r.contract.Address(), r.contract.InitiateWithdrawCall(b.terms, *uint256.NewInt(20_000)).Data)
	r.chain.AdvanceTime(t, x402Of(r.provider).WithdrawDelay+time.Minute)
	r.chain.Transact(t, b.private, r.contract.Address(), r.contract.FinalizeWithdrawCall(b.terms).Data)
	r.start()
	b.provider = r.provider
	eventually(t, "the withdrawal is seen", func() bool { kept := b.kept(); return kept.Deposit.IsZero() })
	if refused := b.refused(b.pay(b.payment(b.charged + testMost))); refused.Error != string(x402.CodeCumulativeExceedsBalance) {
		t.Errorf("refused with %q", refused.Error)
	}
	if refused := b.refused(b.pay(b.refunding(0))); refused.Error != string(x402.CodeRefundNoBalance) {
		t.Errorf("a refund is refused with %q", refused.Error)
	}
	if r.provider.leases.Running(b.terms.ID()) != nil {
		t.Error("a lease was begun")
	}
	b.open(20_000) // what is owed from before comes first
	b.idle()
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if kept, on := b.kept(), b.on().View; on.Settled.IsZero() || on.Settled != kept.Payable() {
		t.Errorf("claimed %s, payable %+v", on.Settled.Dec(), kept)
	}
}

// TestDepositWaitsForItsConfirmations: one that is only in the newest block is
// not money yet.
func TestDepositWaitsForItsConfirmations(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.Chain.Confirmations = 3 })
	b := r.buyer("/tick")
	header := headerOf(t, b.depositing(testMost, 20_000))
	answer := make(chan *http.Response, 1)
	go func() { answer <- b.send("GET", "/tick", header) }()
	eventually(t, "the deposit is mined", func() bool { return b.holds() == 20_000 })
	if _, err := x402Of(r.provider).Book.State(context.Background(), b.terms.ID()); err == nil {
		if kept := b.kept(); !kept.Deposit.IsZero() || kept.Status != channel.Open {
			t.Errorf("the channel is %+v", kept)
		}
	}
	select {
	case resp := <-answer:
		t.Fatalf("answered with one confirmation of three: %s", resp.Status)
	case <-time.After(200 * time.Millisecond):
	}
	r.chain.Mine(t, 3)
	b.take(<-answer)
}
