package payercredit

import (
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// TestCollectible: of a channel counts what is settled, and what is vouchered where a settlement fetches it.
func TestCollectible(t *testing.T) {
	n := func(v uint64) uint256.Int { return *uint256.NewInt(v) }
	for _, c := range []struct {
		deposit, settled, accepted, spent uint64
		status                            channel.Status
		counts, debt                      uint64
	}{
		{1000, 0, 0, 50, channel.Open, 0, 50},
		{1000, 0, 99, 99, channel.Open, 0, 99},
		{1000, 0, 100, 99, channel.Open, 100, 0},
		{1000, 0, 100, 150, channel.Open, 100, 50},
		{1000, 100, 199, 199, channel.Open, 100, 99},
		{1000, 100, 200, 199, channel.Closing, 200, 0},
		{1000, 100, 200, 199, channel.Finalized, 100, 99},
		{1000, 300, 200, 250, channel.Open, 300, 0},
		{150, 100, 300, 300, channel.Open, 100, 200}, // a re-org took deposit
	} {
		s := channel.State{Deposit: n(c.deposit), Settled: n(c.settled), Accepted: n(c.accepted), Spent: n(c.spent), Status: c.status}
		counts, debt := Collectible(s, n(100)), DebtOf(s, n(100))
		if counts.Uint64() != c.counts || debt.Uint64() != c.debt {
			t.Errorf("%+v: %s counts and %s is owed", c, counts.Dec(), debt.Dec())
		}
	}
}
