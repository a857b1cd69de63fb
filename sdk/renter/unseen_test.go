package renter_test

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestLeaveWithoutReceipts shows that a renter gets its deposit back, and takes its leave back before, where its node mines what it
// sends and shows no receipt of it: what was asked of the contract the contract says.
func TestLeaveWithoutReceipts(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	node := &testrig.Unindexed{Backend: m.Backend}
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.Backend = node
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	l.Lease().Wallet.Sender.Unseen = 300 * time.Millisecond
	node.Hides(true)
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
	node := &testrig.Unindexed{Backend: m.Backend}
	node.Hides(true)
	server := serveProvider(t, m, func(c *provider.Config) { c.Chain.Backend, c.Deposits.Timeout = node, 4*time.Second })
	m.RPC(t, nil, "anvil_setBalance", crypto.PubkeyToAddress(m.Payer.PublicKey), "0x0")
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := r.Rent(ctx, server.URL, renter.Options{Deposit: "1"}); err != nil {
		t.Errorf("the escrow has %d, and no lease begins: %v", m.Tokens(t, m.Escrow), err)
	}
}

// TestOwnOpenWithoutReceipt shows that a lease begins on the renter's own deposit though its node shows no receipt of it: the contract
// has the money, and the provider goes by that.
func TestOwnOpenWithoutReceipt(t *testing.T) {
	m := testrig.NewMarket(t)
	r, node := withoutReceipts(t, m)
	node.Hides(true)
	l, err := r.Rent(t.Context(), serveProvider(t, m, nil).URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatalf("the escrow has %d, and no lease begins: %v", m.Tokens(t, m.Escrow), err)
	}
	if moved := l.Lease().Row.Arrived(); !moved.Eq(uint256.NewInt(1_000_000)) {
		t.Errorf("%s of 1000000 count as moved", moved.Dec())
	}
}

// TestTopUpWithoutReceipt shows that the renter's own top-ups count, and each is sent once, though its node shows no receipt of any.
func TestTopUpWithoutReceipt(t *testing.T) {
	m := testrig.NewMarket(t)
	r, node := withoutReceipts(t, m)
	l, err := r.Rent(t.Context(), serveProvider(t, m, nil).URL, renter.Options{Deposit: "1", TopUp: "0.5"})
	if err != nil {
		t.Fatal(err)
	}
	node.Hides(true)
	for _, want := range []uint64{1_500_000, 2_000_000} {
		l.Lease().Topped = time.Time{} // the pause between two is over
		if err := l.Lease().TopUp(t.Context()); err != nil {
			t.Fatalf("the escrow has %d, and the top-up does not count: %v", m.Tokens(t, m.Escrow), err)
		}
		row := l.Lease().Row
		if moved := row.Arrived(); row.TopUp != nil || !moved.Eq(uint256.NewInt(want)) || !row.Deposit.Eq(&moved) || m.Tokens(t, m.Escrow) != want {
			t.Errorf("the escrow has %d, the deposit is %s, %s count as moved, want %d; on its way: %v", m.Tokens(t, m.Escrow), row.Deposit.Dec(), moved.Dec(), want, row.TopUp != nil)
		}
	}
}

// TestTopUpThatAnotherTransactionReplaced shows that a top-up does not count because its nonce is used: the contract has to have the money.
func TestTopUpThatAnotherTransactionReplaced(t *testing.T) {
	m := testrig.NewMarket(t)
	r, node := withoutReceipts(t, m)
	l, err := r.Rent(t.Context(), serveProvider(t, m, nil).URL, renter.Options{Deposit: "1", TopUp: "0.5"})
	if err != nil {
		t.Fatal(err)
	}
	node.Backend = &usurped{m.Backend, m.Payer, m.Escrow}
	node.Hides(true)
	if err := l.Lease().TopUp(t.Context()); !errors.Is(err, outcome.ErrUnseen) {
		t.Errorf("the top-up ended with %v", err)
	}
	row := l.Lease().Row
	if moved := row.Arrived(); row.TopUp == nil || row.TopUp.Hash != nil || !row.Deposit.Eq(&moved) || !moved.Eq(uint256.NewInt(1_000_000)) {
		t.Errorf("the deposit is %s, %s count as moved, on its way: %+v", row.Deposit.Dec(), moved.Dec(), row.TopUp)
	}
}

// A usurped backend has another transaction of the key mined in place of one to the escrow.
type usurped struct {
	chain.Backend
	key    *ecdsa.PrivateKey
	escrow common.Address
}

func (u *usurped) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	if *tx.To() == u.escrow {
		self := crypto.PubkeyToAddress(u.key.PublicKey)
		tx = types.MustSignNewTx(u.key, types.LatestSignerForChainID(tx.ChainId()), &types.DynamicFeeTx{
			ChainID: tx.ChainId(), Nonce: tx.Nonce(), GasTipCap: tx.GasTipCap(), GasFeeCap: tx.GasFeeCap(), Gas: 21_000, To: &self})
	}
	return u.Backend.SendTransaction(ctx, tx)
}

// withoutReceipts is a renter with a node that can hide the receipts of what it sends.
func withoutReceipts(t *testing.T, m *testrig.Market) (*renter.Client, *testrig.Unindexed) {
	t.Helper()
	node := &testrig.Unindexed{Backend: m.Backend}
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.Backend = node
	r := renterrig.Open(t, config)
	r.Wallet().Sender.Unseen = 300 * time.Millisecond
	return r, node
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
