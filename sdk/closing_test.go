package sdk

import (
	"errors"
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// A channel that was settled before proves nobody's identity when it is opened again: its vouchers are public.
func TestUsedChannelIsNotOpened(t *testing.T) {
	offer := wire.SignedOffer{Offer: wire.Offer{MinDeposit: wireAmount(100)}}
	view := channel.ChainView{Deposit: *uint256.NewInt(1000), Settled: *uint256.NewInt(1)}
	if err := worthOpening(common.Hash{1}, view, offer, *uint256.NewInt(500)); !errors.Is(err, &wire.VerificationFailed) {
		t.Errorf("settled before: %v", err)
	}
	view.Settled.Clear()
	if err := worthOpening(common.Hash{1}, view, offer, *uint256.NewInt(500)); err != nil {
		t.Errorf("fresh: %v", err)
	}
}

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
