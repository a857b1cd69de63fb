package outcome_test

import (
	"context"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
)

// A slow node answers rightly, and takes its time for what is read before a transaction is signed.
type slow struct {
	chain.Backend
	wait time.Duration
}

func (s slow) CallContract(ctx context.Context, m ethereum.CallMsg, n *big.Int) ([]byte, error) {
	if err := chain.Pause(ctx, s.wait); err != nil {
		return nil, err
	}
	return s.Backend.CallContract(ctx, m, n)
}

func (s slow) EstimateGas(ctx context.Context, m ethereum.CallMsg) (uint64, error) {
	if err := chain.Pause(ctx, s.wait); err != nil {
		return 0, err
	}
	return s.Backend.EstimateGas(ctx, m)
}

func (s slow) PendingNonceAt(ctx context.Context, a common.Address) (uint64, error) {
	if err := chain.Pause(ctx, s.wait); err != nil {
		return 0, err
	}
	return s.Backend.PendingNonceAt(ctx, a)
}

func (s slow) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	if err := chain.Pause(ctx, s.wait); err != nil {
		return err
	}
	return s.Backend.SendTransaction(ctx, tx)
}

// TestASlowEndpointMakesAnApproval: where reading, signing and sending take longer than a receipt is waited for, an approval is sent all
// the same, once.
func TestASlowEndpointMakesAnApproval(t *testing.T) {
	c := chaintest.Anvil(t)
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "gpupay.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	books, err := chain.OpenStore(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	node := slow{c.Backend, 300 * time.Millisecond}
	token, err := chain.NewToken(t.Context(), node, c.Token)
	if err != nil {
		t.Fatal(err)
	}
	s := &chain.Sender{Backend: node, Key: channel.NewKey(c.Keys[0]), Store: books, Poll: 20 * time.Millisecond, Unseen: 600 * time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := outcome.Allow(ctx, token, s, c.Escrow, *uint256.NewInt(7), 1); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Backend.NonceAt(t.Context(), s.Address(), nil); err != nil || n != 1 {
		t.Errorf("%d transactions (%v), want 1", n, err)
	}
}
