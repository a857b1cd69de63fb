package x402client

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

// choose takes the cheapest offer that this renter may pay, at most maxPrice.
func (x *Client) choose(ctx context.Context, a *request, required x402.PaymentRequired, maxPrice uint256.Int) (*payment, error) {
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
	b := &payment{request: a, ledger: ledger{x: x, site: x.site(a.req.URL), salt: x.options.Salt}, first: required, offer: *best}
	b.terms = x.terms(*best)
	return b, b.ofSite(ctx)
}

// site is whose channel pays for what is at an address.
func (x *Client) site(u *url.URL) string {
	site := peer.Site(u)
	if other, ok := x.options.SameSite[site]; ok {
		return peer.SiteOf(other)
	}
	return site
}

// siteSalt is the salt of the channels that are paid from at a site. A voucher is good for whatever its channel's payee sells, and
// whoever is shown one can take it there: no site is paid from the channel of another.
func siteSalt(salt common.Hash, site string) common.Hash {
	return crypto.Keccak256Hash([]byte("gpupay x402 site "), salt[:], []byte(site))
}

// ofSite makes a payment's channel the site's own: one with a salt of the site, or the one
// with the client's bare salt that versions before this paid from there first.
func (b *payment) ofSite(ctx context.Context) error {
	old, err := b.x.accounts().Load(ctx, b.terms.ID())
	if err != nil {
		return err
	}
	if old == nil || old.PaidSite() != b.site {
		b.terms.Salt = siteSalt(b.salt, b.site)
	}
	b.id = b.terms.ID()
	return nil
}

// isOf reports whether a payment's channel pays an offer.
func (b *payment) isOf(offer x402.Requirements) bool {
	terms := b.x.terms(offer)
	terms.Salt = b.terms.Salt
	return terms.ID() == b.id
}

// terms are, but for the site's salt, of the channel that pays an offer. Our own key signs the vouchers
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
