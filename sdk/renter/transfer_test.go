package renter_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/outcome"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// The receipts of a rental's approval and top-up do not come: it is sent once, however often it is tried, its wait ends, and the
// other rentals of the payer top up meanwhile.
func TestTopUpWithoutReceiptHoldsUpNoOther(t *testing.T) {
	m := testrig.NewMarket(t)
	node := &testrig.Unindexed{Backend: m.Backend}
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.Backend = node
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
	node.Hides(true)
	if err := topUp(limited, rentals[0], 0); !errors.Is(err, outcome.ErrUnseen) {
		t.Fatalf("its own wait ended with %v", err)
	}
	node.Hides(false)
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
