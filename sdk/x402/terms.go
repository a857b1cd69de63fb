package x402

import (
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Terms are the configuration as the rest of the program knows it. They may be
// invalid: see channel.Terms.Validate.
func (c ChannelConfig) Terms(n Network) channel.Terms {
	return channel.Terms{
		ChainID:          uint64(n),
		Escrow:           channel.BatchSettlementEscrow,
		Payer:            common.Address(c.Payer),
		Payee:            common.Address(c.Receiver),
		Token:            common.Address(c.Token),
		Salt:             common.Hash(c.Salt),
		AuthorizedSigner: common.Address(c.PayerAuthorizer),
		Scheme:           channel.BatchSettlement,
		PayeeAuthorizer:  common.Address(c.ReceiverAuthorizer),
		WithdrawDelay:    c.WithdrawDelay,
	}
}

// ConfigOf is the inverse of ChannelConfig.Terms.
func ConfigOf(t channel.Terms) (ChannelConfig, error) {
	if err := t.Validate(); err != nil {
		return ChannelConfig{}, fmt.Errorf("channel %s: %w", t.ID(), err)
	}
	if t.Scheme != channel.BatchSettlement || t.Escrow != channel.BatchSettlementEscrow {
		return ChannelConfig{}, fmt.Errorf("channel %s: %w: scheme %s at %s, x402 has %s at %s",
			t.ID(), channel.ErrTerms, t.Scheme, t.Escrow, channel.BatchSettlement, channel.BatchSettlementEscrow)
	}
	return ChannelConfig{
		Payer:              wire.Address(t.Payer),
		PayerAuthorizer:    wire.Address(t.AuthorizedSigner),
		Receiver:           wire.Address(t.Payee),
		ReceiverAuthorizer: wire.Address(t.PayeeAuthorizer),
		Token:              wire.Address(t.Token),
		WithdrawDelay:      t.WithdrawDelay,
		Salt:               Hash(t.Salt),
	}, nil
}

// Voucher is the voucher as a Payee accepts it.
func (v Voucher) Voucher() channel.Voucher {
	return channel.Voucher{ChannelID: common.Hash(v.ChannelID), Cumulative: v.MaxClaimableAmount.Int, Signature: v.Signature[:]}
}

// VoucherOf is the inverse of Voucher.Voucher.
func VoucherOf(v channel.Voucher) (Voucher, error) {
	w := Voucher{ChannelID: Hash(v.ChannelID), MaxClaimableAmount: wire.NewAmount(v.Cumulative)}
	if copy(w.Signature[:], v.Signature) != len(w.Signature) || len(v.Signature) != len(w.Signature) {
		return Voucher{}, fmt.Errorf("channel %s: %w: %d bytes, want 65", v.ChannelID, channel.ErrSignature, len(v.Signature))
	}
	return w, nil
}

// Authorization is what the payer signed for the deposit. It panics if there is
// none.
func (p Payload) Authorization() channel.Authorization {
	d := p.Deposit
	return channel.Authorization{
		From: common.Address(p.Config.Payer), To: channel.BatchSettlementCollector,
		Value:      d.Amount.Int,
		ValidAfter: uint64(d.Authorization.ValidAfter), ValidBefore: uint64(d.Authorization.ValidBefore),
		Nonce: channel.DepositNonce(common.Hash(p.Voucher.ChannelID), common.Hash(d.Authorization.Salt)),
	}
}
