package chain

import (
	"context"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings/batchsettlement"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
)

// The kinds of calls to x402's contract, in its words.
const (
	Deposit          Kind = "deposit"
	Claim            Kind = "claim"
	Payout           Kind = "payout"
	Refund           Kind = "refund"
	InitiateWithdraw Kind = "initiate withdraw"
	FinalizeWithdraw Kind = "finalize withdraw"
)

// DepositCall adds to a channel with the payer's ERC-3009 authorization to channel.BatchSettlementCollector, whose nonce is
// channel.DepositNonce of this salt. Anyone may send it, and the contract counts no more than arrives.
func (b *BatchSettlement) DepositCall(t channel.Terms, salt common.Hash, a Authorization) Call {
	return b.about(Deposit, t, b.abi.PackDeposit(config(t), a.Value.ToBig(), channel.BatchSettlementCollector, CollectorData(salt, a)))
}

// collectorArguments are (validAfter, validBefore, salt, signature).
var collectorArguments = func() abi.Arguments {
	number, err := abi.NewType("uint256", "", nil)
	bytes, err2 := abi.NewType("bytes", "", nil)
	if err != nil || err2 != nil {
		panic("chain: the types of a collector's data do not parse")
	}
	return abi.Arguments{{Type: number}, {Type: number}, {Type: number}, {Type: bytes}}
}()

// CollectorData is what the ERC-3009 collector wants to know of an authorization.
func CollectorData(salt common.Hash, a Authorization) []byte {
	data, err := collectorArguments.Pack(number(a.ValidAfter), number(a.ValidBefore), salt.Big(), a.Signature)
	if err != nil {
		panic("chain: packing a collector's data: " + err.Error())
	}
	return data
}

// SettlementCall claims what is payable of channels of one payee and one token: all of them or, if the contract refuses
// one, none. The sender must be the payee or the payee's authorizer, unless that is a key of Past, which signs for it then;
// all rows have one authorizer. A claim pays nothing out: PayoutCall does.
func (b *BatchSettlement) SettlementCall(ctx context.Context, states []channel.State) (Call, error) {
	if len(states) == 0 {
		return Call{}, fmt.Errorf("chain: a claim of no channels")
	}
	call := Call{Kind: Claim, To: channel.BatchSettlementEscrow}
	rows := make([]batchsettlement.VoucherClaim, len(states))
	for i, s := range states {
		rows[i] = row(s)
		call.Channels = append(call.Channels, s.ID)
	}
	var err error
	call.Data, err = b.claim(ctx, states[0].Terms, rows)
	return call, err
}

// claim packs a claim of rows that have the authorizer of these terms.
func (b *BatchSettlement) claim(ctx context.Context, t channel.Terms, rows []batchsettlement.VoucherClaim) ([]byte, error) {
	key := b.past(t)
	if key == nil {
		return b.abi.PackClaim(rows), nil
	}
	signature, err := key.Sign(ctx, b.claimDigest(rows))
	if err != nil {
		return nil, fmt.Errorf("chain: signing a claim of %d channels with the past key %s: %w", len(rows), key.Address(), err)
	}
	return b.abi.PackClaimWithSignature(rows, signature), nil
}

// past is the key of Past that is the authorizer of a channel, or nil.
func (b *BatchSettlement) past(t channel.Terms) channel.Signer {
	return channel.SignerOf(b.Past, t.PayeeAuthorizer)
}

var (
	claimEntryType = eip712.TypeHash("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)")
	claimBatchType = eip712.TypeHash("ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)")
)

// claimDigest is what the payee's authorizer signs so that anyone may make a claim of these rows.
func (b *BatchSettlement) claimDigest(rows []batchsettlement.VoucherClaim) common.Hash {
	var entries eip712.Words
	for _, row := range rows {
		most, claimed := amount(row.Voucher.MaxClaimableAmount), amount(row.TotalClaimed)
		id := b.termsOf(row.Voucher.Channel).ID()
		entries = entries.Hash(eip712.Words(nil).Hash(claimEntryType).Hash(id).Uint256(&most).Uint256(&claimed).Sum())
	}
	return eip712.Digest(b.domain.Separator(), eip712.Words(nil).Hash(claimBatchType).Hash(entries.Sum()).Sum())
}

// SettlementGas is that of the contract that is live: a claim and a payout.
func (b *BatchSettlement) SettlementGas() (batch, channel uint64) { return 73_000, 21_400 }

// row claims what is payable or, where a withdrawal took a part of that, what is left of it. If that is nothing, the
// contract is asked for all and says why not.
func row(s channel.State) batchsettlement.VoucherClaim {
	claim := s.Payable()
	if claim.Gt(&s.Deposit) && s.Deposit.Gt(&s.Settled) {
		claim = s.Deposit
	}
	return batchsettlement.VoucherClaim{
		Voucher:      batchsettlement.Voucher{Channel: config(s.Terms), MaxClaimableAmount: s.Accepted.ToBig()},
		Signature:    s.Signature,
		TotalClaimed: claim.ToBig(),
	}
}

// PayoutCall has the contract pay what was claimed for a payee in a token; zero if all of it is paid. Anyone may send it.
func (b *BatchSettlement) PayoutCall(ctx context.Context, payee, token common.Address) (Call, Due, error) {
	d, err := due(ctx, b.backend, func(ctx context.Context, backend Backend, block *big.Int) (uint256.Int, error) {
		out, err := b.on(backend, block)(ctx, b.abi.PackReceivers(payee, token))
		if err != nil {
			return uint256.Int{}, err
		}
		income, err := b.abi.UnpackReceivers(out)
		if err != nil || income.TotalClaimed.Cmp(income.TotalSettled) <= 0 {
			return uint256.Int{}, err
		}
		return amount(new(big.Int).Sub(income.TotalClaimed, income.TotalSettled)), nil
	})
	if err != nil {
		return Call{}, Due{}, fmt.Errorf("chain: reading what was claimed for %s in token %s: %w", payee, token, err)
	}
	return b.SettleCall(payee, token), d, nil
}

// SettleCall is the payout, whether something is due or not.
func (b *BatchSettlement) SettleCall(payee, token common.Address) Call {
	return Call{Kind: Payout, To: channel.BatchSettlementEscrow, Data: b.abi.PackSettle(payee, token)}
}

// RefundCall gives the payer back most base units, or what is free if that is less. What is payable and not yet claimed
// is claimed in the same transaction, so that a refund never gives away what the payee has earned. The sender must be the
// payee or the payee's authorizer, unless that is a key of Past, which signs for it then: for one refund, the channel's next.
func (b *BatchSettlement) RefundCall(ctx context.Context, s channel.State, most uint256.Int) (Call, error) {
	refund, err := b.refund(ctx, s, most)
	if err != nil {
		return Call{}, err
	}
	if left := s.Unsettled(); left.IsZero() {
		return b.about(Refund, s.Terms, refund), nil
	}
	claim, err := b.claim(ctx, s.Terms, []batchsettlement.VoucherClaim{row(s)})
	return b.about(Refund, s.Terms, b.abi.PackMulticall([][]byte{claim, refund})), err
}

// refund packs a refund alone.
func (b *BatchSettlement) refund(ctx context.Context, s channel.State, most uint256.Int) ([]byte, error) {
	key := b.past(s.Terms)
	if key == nil {
		return b.abi.PackRefund(config(s.Terms), most.ToBig()), nil
	}
	on, err := b.State(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	signature, err := key.Sign(ctx, b.RefundDigest(s.ID, on.RefundNonce, most))
	if err != nil {
		return nil, fmt.Errorf("chain: signing a refund of channel %s with the past key %s: %w", s.ID, key.Address(), err)
	}
	return b.RefundSignedCall(s.Terms, most, on.RefundNonce, signature).Data, nil
}

var refundType = eip712.TypeHash("Refund(bytes32 channelId,uint256 nonce,uint128 amount)")

// RefundDigest is what a payee's authorizer signs so that anyone may make a refund of up to most base units, once: nonce is
// BatchSettlementState.RefundNonce.
func (b *BatchSettlement) RefundDigest(id common.Hash, nonce, most uint256.Int) common.Hash {
	var buf [4 * 32]byte
	sum := eip712.Words(buf[:0]).Hash(refundType).Hash(id).Uint256(&nonce).Uint256(&most).Sum()
	return eip712.Digest(b.domain.Separator(), sum)
}

// RefundSignedCall is a refund by anyone who holds the signature of the payee's authorizer. It claims nothing.
func (b *BatchSettlement) RefundSignedCall(t channel.Terms, most, nonce uint256.Int, signature []byte) Call {
	return b.about(Refund, t, b.abi.PackRefundWithSignature(config(t), most.ToBig(), nonce.ToBig(), signature))
}

// InitiateWithdrawCall starts the channel's delay, after which the payer may have so much of what is free; the sender must
// be the payer or its authorized signer.
func (b *BatchSettlement) InitiateWithdrawCall(t channel.Terms, value uint256.Int) Call {
	return b.about(InitiateWithdraw, t, b.abi.PackInitiateWithdraw(config(t), value.ToBig()))
}

// FinalizeWithdrawCall pays the payer back once the delay is over; the sender must be the payer or its authorized signer.
func (b *BatchSettlement) FinalizeWithdrawCall(t channel.Terms) Call {
	return b.about(FinalizeWithdraw, t, b.abi.PackFinalizeWithdraw(config(t)))
}

func (b *BatchSettlement) about(kind Kind, t channel.Terms, data []byte) Call {
	return Call{Kind: kind, To: channel.BatchSettlementEscrow, Data: data, Channels: []common.Hash{t.ID()}}
}

// termsOf is the channel of a configuration.
func (b *BatchSettlement) termsOf(c batchsettlement.ChannelConfig) channel.Terms {
	return channel.Terms{
		ChainID: b.chainID, Escrow: channel.BatchSettlementEscrow, Payer: c.Payer, Payee: c.Receiver, Token: c.Token, Salt: c.Salt,
		AuthorizedSigner: c.PayerAuthorizer, Scheme: channel.BatchSettlement, PayeeAuthorizer: c.ReceiverAuthorizer, WithdrawDelay: c.WithdrawDelay.Uint64(),
	}
}

func config(t channel.Terms) batchsettlement.ChannelConfig {
	return batchsettlement.ChannelConfig{
		Payer:              t.Payer,
		PayerAuthorizer:    t.AuthorizedSigner,
		Receiver:           t.Payee,
		ReceiverAuthorizer: t.PayeeAuthorizer,
		Token:              t.Token,
		WithdrawDelay:      number(t.WithdrawDelay),
		Salt:               t.Salt,
	}
}

// Disclosed is the amount of a channel's voucher that a transaction shows to everybody; ok is false where it carries none.
func (b *BatchSettlement) Disclosed(call Call, id common.Hash) (amount uint256.Int, ok bool, err error) {
	rows, err := claimRows(call.Data)
	if err != nil {
		return amount, false, fmt.Errorf("chain: a %s in the outbox cannot be read: %w", call.Kind, err)
	}
	for _, row := range rows {
		if b.termsOf(row.Voucher.Channel).ID() == id {
			overflow := amount.SetFromBig(row.Voucher.MaxClaimableAmount)
			return amount, !overflow, nil
		}
	}
	return amount, false, nil
}

// claimRows are those of a claim, alone or in a multicall.
func claimRows(data []byte) ([]batchsettlement.VoucherClaim, error) {
	if len(data) < 4 {
		return nil, nil
	}
	method, err := BatchSettlementABI().MethodById(data[:4])
	if err != nil {
		return nil, err
	}
	switch method.Name {
	case "claim", "claimWithSignature": // with one, by a past key
		args, err := method.Inputs.Unpack(data[4:])
		if err != nil {
			return nil, err
		}
		return *abi.ConvertType(args[0], new([]batchsettlement.VoucherClaim)).(*[]batchsettlement.VoucherClaim), nil
	case "multicall":
		args, err := method.Inputs.Unpack(data[4:])
		if err != nil {
			return nil, err
		}
		var rows []batchsettlement.VoucherClaim
		for _, part := range args[0].([][]byte) {
			more, err := claimRows(part)
			if err != nil {
				return nil, err
			}
			rows = append(rows, more...)
		}
		return rows, nil
	}
	return nil, nil
}

// RefundedBy is what a refund's transaction gave back of a channel.
func RefundedBy(receipt *types.Receipt, id common.Hash) *uint256.Int {
	moved := new(uint256.Int)
	contract := batchsettlement.NewBatchSettlement()
	for _, log := range receipt.Logs {
		if log.Address != channel.BatchSettlementEscrow {
			continue
		}
		if e, err := contract.UnpackRefundedEvent(log); err == nil && e.ChannelId == id {
			moved.SetFromBig(e.Amount)
		}
	}
	return moved
}
