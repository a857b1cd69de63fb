package renter

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// checkEscrow says whether a renter may put money into an escrow that a
// provider named. A contract of the provider's own could answer every question
// like ours and still pay the whole deposit to the provider: so it is either
// the one that the renter's configuration names, or its code is ours to the
// byte, and only our constructor can have run at its address.
func (r *Client) checkEscrow(ctx context.Context, escrow *chain.Escrow) error {
	if r.config.Escrow != (common.Address{}) {
		if escrow.Address() == r.config.Escrow {
			return nil
		}
		return fmt.Errorf("%w: the provider names %s, this renter trusts %s", wallet.ErrEscrow, escrow.Address(), r.config.Escrow)
	}
	if r.config.AllowUnknownEscrow {
		return nil
	}
	err := escrow.VerifyOrigin(ctx)
	if errors.Is(err, chain.ErrNotEscrow) {
		return fmt.Errorf("%w: %w: name it in the configuration if you trust it", wallet.ErrEscrow, err)
	}
	return err
}
