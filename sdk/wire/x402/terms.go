package x402

import (
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Terms are the configuration as the rest of the program knows it. They may be
// invalid: see channel.Terms.Validate.
func (c ChannelConfig) Terms(n Network) channel.Terms {
	return channel.Terms{
		ChainID:          uint64(n),
		Escrow:           Escrow,
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
	if t.Scheme != channel.BatchSettlement || t.Escrow != Escrow {
		return ChannelConfig{}, fmt.Errorf("channel %s: %w: scheme %s at %s, x402 has %s at %s",
			t.ID(), channel.ErrTerms, t.Scheme, t.Escrow, channel.BatchSettlement, Escrow)
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

// DepositNonce is the ERC-3009 nonce of a deposit: it binds the money to one
// channel, and salt tells equal deposits apart.
func DepositNonce(channelID, salt common.Hash) common.Hash {
	var buf [2 * 32]byte
	return eip712.Words(buf[:0]).Hash(channelID).Hash(salt).Sum()
}

// Authorization is what the payer signed for the deposit. It panics if there is
// none.
func (p Payload) Authorization() channel.Authorization {
	d := p.Deposit
	return channel.Authorization{
		From: common.Address(p.Config.Payer), To: Collector,
		Value:      d.Amount.Int,
		ValidAfter: uint64(d.Authorization.ValidAfter), ValidBefore: uint64(d.Authorization.ValidBefore),
		Nonce: DepositNonce(common.Hash(p.Voucher.ChannelID), common.Hash(d.Authorization.Salt)),
	}
}

// CollectorData is the last argument of the contract's deposit: abi.encode of
// validAfter, validBefore, salt and signature.
func (a Authorization) CollectorData() []byte {
	const head, padding = 4 * 32, 31
	var salt uint256.Int
	salt.SetBytes32(a.Salt[:])
	data := eip712.Words(make([]byte, 0, head+32+len(a.Signature)+padding)).
		Uint64(uint64(a.ValidAfter)).Uint64(uint64(a.ValidBefore)).Uint256(&salt).
		Uint64(head).Uint64(uint64(len(a.Signature)))
	data = append(data, a.Signature[:]...)
	return append(data, make([]byte, padding)...)
}
