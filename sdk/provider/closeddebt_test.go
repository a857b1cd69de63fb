package provider

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestVoucherThatNoBlockPaysIsNoPayment: what was used on a channel that ended before its voucher was settled is still
// owed, and takes the payer's credit with it.
func TestVoucherThatNoBlockPaysIsNoPayment(t *testing.T) {
	r := newAnvilRig(t, func(c *Config) {
		c.Settlement.LeastRow = *uint256.NewInt(5000) // so that less is given up
		c.Chain.MinGrace = 10 * time.Minute
	})
	lease := r.open(1, 10_000, "?gpus=2")
	lease.status(leasestore.Suspended)
	final := lease.release()
	used := final.Owed.Uint64()
	lease.pay(used)
	requestClose(t, r.rig, r.anvil.Keys[1], lease.terms)
	r.anvil.AdvanceTime(t, 25*time.Hour)
	call := r.provider.escrow.WithdrawCall(lease.terms)
	r.anvil.Transact(t, r.anvil.Keys[5], call.To, call.Data)
	eventually(t, "the end is seen", func() bool {
		s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
		return err == nil && s.Status == channel.Finalized
	})
	if owed := r.owes(lease); owed != used {
		t.Errorf("%d is owed of %d that no block pays", owed, used)
	}
	resp := r.do("GET", "?gpus=2", r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 10_000, 0))
	if p := wire.ParseProblem(resp); !errors.Is(p, &wire.InsufficientBalance) || !strings.Contains(p.Detail, lease.terms.ID().Hex()) {
		t.Errorf("a lease of a payer that left with its credit: %s %v", resp.Status, p)
	}
}

// TestDepositUnderARowIsRefused: a provider whose channels may hold less than is ever settled does not start.
func TestDepositUnderARowIsRefused(t *testing.T) {
	for _, c := range []struct {
		deposit, transfer string
		row               uint64
		taken             bool
	}{
		{"0.01", "0.10", 0, false}, {"0.02", "0.10", 0, false}, {"0.03", "0.10", 0, true}, {"0.01", "", 0, true}, {"0.01", "0", 0, true},
		{"0.01", "", 10_001, false}, {"0.01", "", 10_000, true},
	} {
		config := Config{PricePerGPUHour: hour, Deposits: Deposits{Min: c.deposit}, Terms: Terms{MinTransfer: c.transfer}}
		config.Settlement.LeastRow = *uint256.NewInt(c.row)
		p, err := pricesOf(config, 6)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.worthSettling(&chain.Escrow{}); (err == nil) != c.taken {
			t.Errorf("a deposit of %s, transfers of %q and rows of %d: %v", c.deposit, c.transfer, c.row, err)
		}
	}
}
