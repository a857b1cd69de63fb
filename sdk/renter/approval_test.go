package renter_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestDepositWhoseApprovalIsGone: the error of a deposit that reverted says where another program with the payer's key took its
// approval, and nothing of that where the approval is there.
func TestDepositWhoseApprovalIsGone(t *testing.T) {
	m := testrig.NewMarket(t)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), serveProvider(t, m, nil).URL, renter.Options{Deposit: "1"}) // which uses its approval up
	if err != nil {
		t.Fatal(err)
	}
	for _, reverted := range []error{&chain.Revert{Name: "TransferFromFailed"}, &chain.Reverted{Reason: errors.New("no reason")}} {
		err := l.Lease().Unapproved(t.Context(), *uint256.NewInt(1_000_000), reverted)
		if !errors.Is(err, reverted) || !strings.Contains(err.Error(), "one key belongs to one running renter") || !strings.Contains(err.Error(), m.PayerAddress().Hex()) {
			t.Errorf("of an approval that is gone: %v", err)
		}
		if err := l.Lease().Unapproved(t.Context(), uint256.Int{}, reverted); err != reverted {
			t.Errorf("of one that is there: %v", err)
		}
	}
	for _, other := range []error{nil, channel.ErrClosing} {
		if err := l.Lease().Unapproved(t.Context(), *uint256.NewInt(1_000_000), other); err != other {
			t.Errorf("of what did not revert: %v", err)
		}
	}
}
