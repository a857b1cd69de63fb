package renter_test

import (
	"context"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestLeaveWithoutReceipts shows that a renter gets its deposit back, and takes its leave back before, where its node mines what it
// sends and shows no receipt of it: what was asked of the contract the contract says.
func TestLeaveWithoutReceipts(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	node := &unindexed{Backend: m.Backend, hidden: make(map[common.Hash]bool)}
	config := renterrig.Config(t, m, m.Payer)
	config.Backend = node
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	l.Lease().Wallet.Sender.Unseen = 300 * time.Millisecond
	node.hides(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	leaving, stop := context.WithCancel(ctx)
	left := make(chan error, 1)
	go func() { _, err := l.Leave(leaving); left <- err }()
	awaitRequested(t, ctx, l)
	stop()
	<-left
	if err := l.Lease().CancelClose(ctx); err != nil {
		t.Fatalf("the leave is not taken back: %v", err)
	}
	go func() { _, err := l.Leave(ctx); left <- err }()
	awaitRequested(t, ctx, l)
	m.AdvanceTime(t, chaintest.Grace+time.Minute)
	m.Mine(t, 1)
	if err := <-left; err != nil {
		t.Errorf("the deposit is locked: %v", err)
	}
}

// TestOpenWithoutReceipt shows that a lease begins on a deposit that the provider sent and whose receipt its node does not show: the
// contract has the money.
func TestOpenWithoutReceipt(t *testing.T) {
	m := testrig.NewMarket(t)
	node := &unindexed{Backend: m.Backend, hidden: make(map[common.Hash]bool)}
	node.hides(true)
	server := serveProvider(t, m, func(c *sdk.ProviderConfig) { c.Backend, c.OpenTimeout = node, 4*time.Second })
	m.RPC(t, nil, "anvil_setBalance", crypto.PubkeyToAddress(m.Payer.PublicKey), "0x0")
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := r.Rent(ctx, server.URL, renter.Options{Deposit: "1"}); err != nil {
		t.Errorf("the escrow has %d, and no lease begins: %v", m.Tokens(t, m.Escrow), err)
	}
}

// awaitRequested waits until the contract shows that a close is requested.
func awaitRequested(t *testing.T, ctx context.Context, l *renter.Rental) {
	t.Helper()
	for ctx.Err() == nil {
		view, err := l.Lease().Escrow.View(ctx, l.ID(), nil)
		if err == nil && view.CloseRequestedAt != 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("no close is requested")
}
