package x402client

import (
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

// choose takes the cheapest offer that this renter may pay, at most maxPrice.
func (x *Client) choose(a *request, required x402.PaymentRequired, maxPrice uint256.Int) (*payment, error) {
	err := fmt.Errorf("it has none of scheme %s with ERC-3009 deposits", x402.Scheme)
	var best *x402.Requirements
	for i, offer := range required.Accepts {
		unfit := x.fits(offer, maxPrice)
		if unfit == nil && (best == nil || offer.Amount.Lt(&best.Amount.Int)) {
			best = &required.Accepts[i]
		}
		if i == 0 && unfit != nil {
			err = unfit
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%s: %w: %w", a.req.URL.Host, ErrNotOffered, err)
	}
	terms := x.terms(*best)
	return &payment{request: a, ledger: ledger{x: x, terms: terms, id: terms.ID()}, first: required, offer: *best}, nil
}

// terms are of the channel that pays an offer. Our own key signs the vouchers
// and says so: servers would rather not ask a payer's code whether it did.
func (x *Client) terms(offer x402.Requirements) channel.Terms {
	return channel.Terms{
		ChainID: x.escrow.ChainID(), Escrow: x.escrow.Address(), Payer: x.w.Address(), Payee: common.Address(offer.PayTo),
		Token: common.Address(offer.Asset), Salt: x.options.Salt, AuthorizedSigner: x.w.Address(),
		Scheme: channel.BatchSettlement, PayeeAuthorizer: common.Address(offer.Extra.ReceiverAuthorizer),
		WithdrawDelay: offer.Extra.WithdrawDelay,
	}
}

// fits says why an offer is not paid.
func (x *Client) fits(offer x402.Requirements, maxPrice uint256.Int) error {
	delay := time.Duration(min(offer.Extra.WithdrawDelay, uint64(channel.MaxWithdrawDelay/time.Second)+1)) * time.Second
	switch {
	case uint64(offer.Network) != x.escrow.ChainID():
		return fmt.Errorf("%w: it is on %s, this renter's endpoint serves eip155:%d", chain.ErrChainID, offer.Network, x.escrow.ChainID())
	case common.Address(offer.Asset) != x.w.Token.Address:
		return fmt.Errorf("%w: it is %s, this renter pays in %s", wallet.ErrToken, offer.Asset, x.w.Token.Address)
	case offer.Amount.Gt(&maxPrice):
		return fmt.Errorf("%w: a request costs up to %s, at most %s may be asked", wallet.ErrPrice, x.w.Format(offer.Amount.Int), x.w.Format(maxPrice))
	case delay > x.w.MaxGrace:
		return fmt.Errorf("%w: it takes %s to get the deposit back, MaxGrace is %s", wallet.ErrEscrow, delay, x.w.MaxGrace)
	}
	return x.terms(offer).Validate()
}
