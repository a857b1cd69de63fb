package payercredit

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// owing are channels that are closed, on each of which five base units are owed.
func owing(n int) (list []channel.State) {
	for i := range n {
		list = append(list, channel.State{ID: common.Hash{byte(i + 1)}, Status: channel.Finalized, Spent: *uint256.NewInt(5)})
	}
	return list
}

// TestDebtorsAreNamed: a payer is told on which channels it owes, three of many, and whether what it owes on those that are over lapses.
func TestDebtorsAreNamed(t *testing.T) {
	t.Parallel()
	var d Debts
	for n := range 5 {
		text := d.Debtors(owing(n), uint256.Int{})
		if got := strings.Count(text, ": 5"); got != min(n, 3) || strings.HasSuffix(text, ", ..") != (n > 3) {
			t.Errorf("of %d: %q", n, text)
		}
	}
	for kept, want := range map[time.Duration]string{-1: "forgive what", 0: "for 0s", time.Hour: "for 1h0m0s"} {
		d.Kept = kept
		if text := d.Lapses(owing(1)); !strings.Contains(text, want) {
			t.Errorf("kept for %s: %q", kept, text)
		}
	}
	if text := d.Lapses([]channel.State{{Status: channel.Open, Spent: *uint256.NewInt(5)}}); text != "" {
		t.Errorf("of an open channel: %q", text)
	}
}

// TestUnknownDebtsAreNoCredit: nobody has credit, and no debt is written off, while it cannot be read what is owed.
func TestUnknownDebtsAreNoCredit(t *testing.T) {
	t.Parallel()
	db, err := database.Open(t.Context(), filepath.Join(t.TempDir(), "p.db"), "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d := Debts{DB: db, Store: leasestore.New(db), Accounts: New(uint256.Int{}), Payee: &channel.Payee{Store: db.Payee()}}
	if d.Creditworthy(t.Context(), channel.State{}, wire.SignedOffer{}, 1) == nil {
		t.Error("a payer has credit under an offer without a price")
	}
	if _, err := d.Lapse(t.Context(), owing(1)); err == nil { // of a channel that is not in the database
		t.Error("a debt lapsed that could not be written off")
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if d.Creditworthy(over, channel.State{}, wire.SignedOffer{}, 1) == nil {
		t.Error("a payer of unknown debts has credit")
	}
	if _, err := d.Lapse(over, owing(1)); err == nil {
		t.Error("a debt lapsed whose time is not known")
	}
}
