package x402server

import (
	"errors"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// TestRefundable: a refund may move all that is neither claimed nor used under a
// voucher, and nothing of what is; what was only signed for is not earned, and what
// was used beyond the voucher, or is its last base unit, cannot be claimed.
func TestRefundable(t *testing.T) {
	for name, c := range map[string]struct {
		deposit, settled, accepted, spent uint64
		asked                             uint64 // 0: all
		want                              uint64 // 0: refused
	}{
		"nothing was used":            {deposit: 1000, accepted: 501, want: 1000},
		"used and not claimed":        {deposit: 1000, accepted: 700, spent: 300, want: 700},
		"used, a part of it claimed":  {deposit: 1000, settled: 200, accepted: 700, spent: 300, want: 700},
		"used beyond the voucher":     {deposit: 1000, accepted: 200, spent: 300, want: 801},
		"claimed more than we know":   {deposit: 1000, settled: 400, accepted: 300, spent: 300, want: 600},
		"a part":                      {deposit: 1000, accepted: 700, spent: 300, asked: 50, want: 50},
		"more than there is":          {deposit: 1000, accepted: 700, spent: 300, asked: 5000, want: 700},
		"exactly what there is":       {deposit: 1000, accepted: 700, spent: 300, asked: 700, want: 700},
		"one unit":                    {deposit: 301, accepted: 700, spent: 300, want: 1},
		"all is used":                 {deposit: 300, accepted: 700, spent: 300},
		"more is used than there is":  {deposit: 200, accepted: 700, spent: 300},
		"all is claimed and paid out": {deposit: 300, settled: 300, accepted: 300, spent: 300},
	} {
		s := channel.State{
			Terms: channel.Terms{Scheme: channel.BatchSettlement}, Deposit: *uint256.NewInt(c.deposit), Settled: *uint256.NewInt(c.settled),
			Accepted: *uint256.NewInt(c.accepted), Spent: *uint256.NewInt(c.spent),
		}
		var asked *wire.Amount
		if c.asked > 0 {
			asked = &wire.Amount{Int: *uint256.NewInt(c.asked)}
		}
		got, err := Refundable(s, asked)
		if c.want == 0 && !errors.Is(err, x402.CodeRefundNoBalance) || c.want != 0 && (err != nil || got.Uint64() != c.want) {
			t.Errorf("%s: %s, %v, want %d", name, got.Dec(), err, c.want)
		}
	}
}

// TestChargeStaysBelowItsVoucher: a request is charged what its channel has spent,
// never less than was charged before it, and never the last base unit of its voucher,
// however late a reading came.
func TestChargeStaysBelowItsVoucher(t *testing.T) {
	for _, c := range []struct {
		told        string
		spent, want uint64
	}{
		{spent: 0, want: 100}, {spent: 100, want: 100}, {spent: 101, want: 101}, {spent: 599, want: 599}, {spent: 600, want: 600},
		{spent: 601, want: 600}, {spent: 5000, want: 600}, {told: "550", spent: 5000, want: 550},
	} {
		n, err := Entry{Base: "100", MaxClaimable: "601", Charged: c.told}.Charge(*uint256.NewInt(c.spent))
		if err != nil || n.Charged != uint256.NewInt(c.want).Dec() {
			t.Errorf("spent %d: charged %s, %v, want %d", c.spent, n.Charged, err, c.want)
		}
	}
}
