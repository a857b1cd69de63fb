package provider

import (
	"math/big"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// Somebody settled a voucher that the provider never got, which anybody may. The channel is closed all the same, at what is
// settled.
func TestCloseWithMoreSettledThanAccepted(t *testing.T) {
	r := newRig(t)
	r.payer = channel.NewKey(r.chain.Keys[1])
	if err := r.chain.Fund(t.Context(), r.payer.Address(), new(big.Int), *uint256.NewInt(1_000_000)); err != nil {
		t.Fatal(err)
	}
	lease := r.open(1, 100_000, "")
	lease.pay(1000)
	r.send(1, r.provider.escrow.SettleCall(lease.terms, *uint256.NewInt(5000), lease.sign(lease.key, lease.terms, 5000)))
	waitFor(t, func() bool {
		s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
		return err == nil && s.Settled.Uint64() == 5000
	})
	lease.close(1000)
	if payee, payer := r.balance(r.config.Key.Address()), r.balance(r.payer.Address()); payee != 5000 || payer != 995_000 {
		t.Errorf("the payee has %d, the payer %d", payee, payer)
	}
}
