package provider

import (
	"errors"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLastTopUpIsWorthSending: a renter knows the least top-up that its provider sends, signs none under it, and where its cap
// leaves room for less ends in time and says so; all is paid.
func TestLastTopUpIsWorthSending(t *testing.T) {
	r := newRig(t, quiet, func(c *Config) {
		c.Deposits.Min, c.Terms.MinTransfer, c.Terms.Credit = "0.001", "0.005", 10*time.Second
	})
	client := r.renter(t, filepath.Join(t.TempDir(), "renter.db"), func(c *renter.Config) {
		c.Caps.PerLease = "0.015" // 6,000, a top-up of 5,000, and 4,000 are left
	})
	if _, err := client.Rent(t.Context(), r.server.URL, renter.Options{Deposit: "0.006", TopUp: "0.004"}); !errors.Is(err, wallet.ErrDeposit) || !strings.Contains(err.Error(), "0.005") {
		t.Fatalf("top-ups that are refused: %v", err)
	}
	if got := r.balance(r.payer.Address()); got != 1_000_000 {
		t.Fatalf("%d moved", 1_000_000-got)
	}
	rental, err := client.Rent(t.Context(), r.server.URL, renter.Options{Deposit: "0.006", TopUp: "0.005", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := rental.Run(t.Context()); !errors.Is(err, renter.ErrBudget) || !strings.Contains(err.Error(), "0.005") {
		t.Errorf("it ended because of %v", err)
	}
	s := rental.Snapshot()
	if !s.Promised.IsZero() || s.Deposit.Uint64() != 11_000 {
		t.Errorf("the deposit is %s and %s is signed for besides; one top-up can be sent", s.Deposit.Dec(), s.Promised.Dec())
	}
	closed, err := rental.Close(t.Context())
	if err != nil || closed.Settled != closed.Owed {
		t.Errorf("settled %s of %s (%v)", closed.Settled.Dec(), closed.Owed.Dec(), err)
	}
}
