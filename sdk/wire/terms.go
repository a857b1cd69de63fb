package wire

import (
	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// Terms are a channel's terms as documents have them: requests to a watchtower,
// a payer's request to close, bundles.
type Terms struct {
	ChainID          uint64      `json:"chainId"`
	Escrow           Address     `json:"escrow"`
	Payer            Address     `json:"payer"`
	Payee            Address     `json:"payee"`
	Token            Address     `json:"token"`
	Salt             common.Hash `json:"salt"`
	AuthorizedSigner Address     `json:"authorizedSigner"`
}

// NewTerms writes a channel's terms.
func NewTerms(t channel.Terms) Terms {
	return Terms{
		ChainID: t.ChainID, Escrow: Address(t.Escrow), Payer: Address(t.Payer), Payee: Address(t.Payee),
		Token: Address(t.Token), Salt: t.Salt, AuthorizedSigner: Address(t.AuthorizedSigner),
	}
}

// Channel returns the terms as the channel package knows them. They are not
// checked: see channel.Terms.Validate.
func (t Terms) Channel() channel.Terms {
	return channel.Terms{
		ChainID: t.ChainID, Escrow: common.Address(t.Escrow), Payer: common.Address(t.Payer), Payee: common.Address(t.Payee),
		Token: common.Address(t.Token), Salt: t.Salt, AuthorizedSigner: common.Address(t.AuthorizedSigner),
	}
}
