package sessionscheme

import (
	"errors"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// A channel that was settled before proves nobody's identity when it is opened again: its vouchers are public.
func TestUsedChannelIsNotOpened(t *testing.T) {
	offer := wire.SignedOffer{Offer: wire.Offer{MinDeposit: wire.NewAmount(*uint256.NewInt(100))}}
	view := channel.ChainView{Deposit: *uint256.NewInt(1000), Settled: *uint256.NewInt(1)}
	if err := worthOpening(common.Hash{1}, view, offer, *uint256.NewInt(500)); !errors.Is(err, &wire.VerificationFailed) {
		t.Errorf("settled before: %v", err)
	}
	view.Settled.Clear()
	if err := worthOpening(common.Hash{1}, view, offer, *uint256.NewInt(500)); err != nil {
		t.Errorf("fresh: %v", err)
	}
}
