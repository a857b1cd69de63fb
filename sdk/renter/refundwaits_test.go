package renter_test

import (
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestLeaveWhileTheTokenRefuses: leaving ends all the same, and says who owes
// the renter what.
func TestLeaveWhileTheTokenRefuses(t *testing.T) {
	m := testrig.NewMarket(t)
	config := renterrig.Config(t, m, m.Payer)
	config.Chain.ClockTolerance = 1000 * time.Hour
	_, l := unopened(t, vanished(t, m), config, renter.Options{})
	resume := m.PauseToken(t)
	c := leave(t, m, l)
	resume()
	if c.Refunded.Uint64() != 500_000 || !strings.Contains(c.Note, "owes") || !strings.Contains(c.Note, "500000") {
		t.Errorf("%+v, want a note that the escrow owes 500000", c)
	}
	escrow, err := chain.NewEscrow(t.Context(), m.Backend, m.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	call, due, err := escrow.PayoutCall(t.Context(), m.PayerAddress(), m.Token)
	if err != nil || due.Uint64() != 500_000 {
		t.Fatalf("%s due, %v", due.Dec(), err)
	}
	m.Transact(t, m.Payee, call.To, call.Data)
	if got := m.Tokens(t, m.PayerAddress()); got != testrig.Thousand {
		t.Errorf("the payer has %d, want all of it", got)
	}
}
