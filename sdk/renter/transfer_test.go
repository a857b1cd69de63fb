package renter_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// unindexed is a node that mines what it is sent and does not come to say so of some, as one that indexes anew after a stop.
type unindexed struct {
	chain.Backend
	mu     sync.Mutex
	hide   bool
	hidden map[common.Hash]bool
}

func (u *unindexed) hides(hide bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hide = hide
}

func (u *unindexed) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	u.mu.Lock()
	if u.hide {
		u.hidden[tx.Hash()] = true
	}
	u.mu.Unlock()
	return u.Backend.SendTransaction(ctx, tx)
}

func (u *unindexed) TransactionReceipt(ctx context.Context, hash common.Hash) (*types.Receipt, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.hidden[hash] {
		return nil, errors.New("transaction indexing is in progress")
	}
	return u.Backend.TransactionReceipt(ctx, hash)
}

// The receipts of a rental's approval and top-up do not come: it is sent once, however often it is tried, its wait ends, and the
// other rentals of the payer top up meanwhile.
func TestTopUpWithoutReceiptHoldsUpNoOther(t *testing.T) {
	m := testrig.NewMarket(t)
	node := &unindexed{Backend: m.Backend, hidden: make(map[common.Hash]bool)}
	config := renterrig.Config(t, m, m.Payer)
	config.Backend = node
	r := renterrig.Open(t, config)
	url := serveProvider(t, m, nil).URL
	var rentals [2]*renter.Rental
	for i := range rentals {
		var err error
		if rentals[i], err = r.Rent(t.Context(), url, renter.Options{Deposit: "1"}); err != nil {
			t.Fatal(err)
		}
	}
	sender := rentals[0].Lease().Wallet.Sender
	topUp := func(ctx context.Context, l *renter.Rental, after int) error {
		step := *uint256.NewInt(200_000)
		_, err := l.Lease().Transfer(ctx, step, l.Lease().Escrow.TopUpCall(l.Lease().Terms, step), after)
		return err
	}
	limited, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	sender.Unseen = time.Second
	node.hides(true)
	if err := topUp(limited, rentals[0], 0); !errors.Is(err, outcome.ErrUnseen) {
		t.Fatalf("its own wait ended with %v", err)
	}
	node.hides(false)
	sender.Unseen = time.Hour
	again := make(chan error, 1)
	trying, stop := context.WithCancel(t.Context())
	go func() { again <- topUp(trying, rentals[0], 0) }()
	time.Sleep(300 * time.Millisecond)
	for after := range 2 {
		if err := topUp(limited, rentals[1], after); err != nil {
			t.Fatalf("the other rental: %v", err)
		}
	}
	stop()
	<-again
	for i, want := range []uint64{1_200_000, 1_400_000} {
		view, err := rentals[i].Lease().Escrow.View(t.Context(), rentals[i].ID(), nil)
		if err != nil || !view.Deposit.Eq(uint256.NewInt(want)) {
			t.Errorf("rental %d has a deposit of %s (%v), want %d", i, view.Deposit.Dec(), err, want)
		}
	}
}
