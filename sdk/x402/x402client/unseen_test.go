package x402client

import (
	"context"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestX402LeaveWithoutReceipts shows that a renter gets back what is in its channel where its node shows the receipt neither of the
// request to withdraw nor of the withdrawal.
func TestX402LeaveWithoutReceipts(t *testing.T) {
	r := newPayRig(t, func(c *provider.Config) { c.X402.WithdrawDelay = 15 * time.Minute })
	node := &testrig.Unindexed{Backend: r.Backend}
	n := newTenant(t, r)
	n.change = func(c *wallet.Config) { c.Chain.Backend = node }
	n.open()
	n.tick()
	if err := n.Provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Stop()
	n.RPC(t, nil, "anvil_setBalance", n.key.Address(), "0xde0b6b3a7640000")
	n.x.w.Sender.Unseen = 300 * time.Millisecond
	node.Hides(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id, done := n.only().ID, make(chan error, 1)
	go func() { _, err := n.x.Leave(ctx, id); done <- err }()
	time.Sleep(2 * time.Second)
	n.AdvanceTime(t, 20*time.Minute)
	n.Mine(t, 1)
	if err := <-done; err != nil {
		t.Error("the deposit stays locked:", err)
	}
	sent, err := n.x.w.Sender.Find(t.Context(), id, chain.InitiateWithdraw)
	if err != nil || len(sent) != 1 {
		t.Errorf("%d withdrawals were asked for, want one (%v)", len(sent), err)
	}
}

// TestX402DepositWithoutReceipt shows that a tick is paid by a deposit that the provider sent and whose receipt its node does not show.
func TestX402DepositWithoutReceipt(t *testing.T) {
	m := testrig.NewX402Market(t)
	node := &testrig.Unindexed{Backend: m.Backend}
	node.Hides(true)
	n := newTenant(t, payRigOn(t, m, func(c *provider.Config) { c.RPC, c.Chain.Backend, c.Deposits.Timeout = "", node, 4*time.Second }))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := n.rental.Tick(ctx); err != nil {
		t.Errorf("the contract has %d, and nothing is served for it: %v", n.Tokens(t, n.contract.Address()), err)
	}
}

// TestX402RefundWithoutReceipt shows that what a refund leaves of a channel is served for though the provider's node does not show its
// receipt.
func TestX402RefundWithoutReceipt(t *testing.T) {
	m := testrig.NewX402Market(t)
	node := &testrig.Unindexed{Backend: m.Backend}
	n := newTenant(t, payRigOn(t, m, func(c *provider.Config) { c.RPC, c.Chain.Backend, c.Deposits.Timeout = "", node, 3*time.Second }))
	n.tick()
	node.Hides(true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	_, err := n.x.Refund(ctx, n.Server.URL+"/tick", "0.001")
	cancel()
	if err == nil || n.Tokens(t, n.key.Address()) == 0 {
		t.Fatalf("a refund whose receipt is not shown was answered with %v, and the renter has %d", err, n.Tokens(t, n.key.Address()))
	}
	n.Mine(t, 5)
	n.tick()
	n.agrees()
}
