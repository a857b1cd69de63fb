package sdk

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings/batchsettlement"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/x402"
)

// A voucher that was put into a transaction can be read by anybody, so it shows
// nothing about who sends it. Nothing is served, given back or repeated for one.

// lookBack is how many of a channel's transactions are read at a time.
const lookBack = 4

// public reports whether a voucher of this amount, at least what was charged,
// was put into a transaction of ours. What claims carry only grows, so the
// newest are enough.
func (d *x402Desk) public(ctx context.Context, tab x402Tab, amount uint256.Int) (bool, error) {
	for skip := 0; ; skip += lookBack {
		calls, err := d.sender.Newest(ctx, tab.ID, lookBack, skip, chain.Claim, chain.Refund)
		if err != nil {
			return false, err
		}
		for _, call := range calls {
			shown, ok, err := d.shown(call, tab.ID)
			switch {
			case err != nil:
				return false, err
			case !ok: // a refund with nothing to claim
			case shown == amount:
				return true, nil
			case shown.Lt(&amount):
				return false, nil
			}
		}
		if len(calls) < lookBack {
			return false, nil
		}
	}
}

// shown is the amount of the channel's voucher that a transaction carries.
func (d *x402Desk) shown(call chain.Call, id common.Hash) (amount uint256.Int, ok bool, err error) {
	rows, err := claims(call.Data)
	if err != nil {
		return amount, false, fmt.Errorf("x402: a %s in the outbox cannot be read: %w", call.Kind, err)
	}
	for _, row := range rows {
		if d.termsOfConfig(row.Voucher.Channel).ID() == id {
			overflow := amount.SetFromBig(row.Voucher.MaxClaimableAmount)
			return amount, !overflow, nil
		}
	}
	return amount, false, nil
}

func (d *x402Desk) termsOfConfig(c batchsettlement.ChannelConfig) channel.Terms {
	return channel.Terms{
		ChainID: d.contract.ChainID(), Escrow: d.contract.Address(), Payer: c.Payer, Payee: c.Receiver, Token: c.Token, Salt: c.Salt,
		AuthorizedSigner: c.PayerAuthorizer, Scheme: channel.BatchSettlement, PayeeAuthorizer: c.ReceiverAuthorizer, WithdrawDelay: c.WithdrawDelay.Uint64(),
	}
}

// claims are the rows of a claim, alone or in a multicall.
func claims(data []byte) ([]batchsettlement.VoucherClaim, error) {
	if len(data) < 4 {
		return nil, nil
	}
	method, err := chain.BatchSettlementABI().MethodById(data[:4])
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
			more, err := claims(part)
			if err != nil {
				return nil, err
			}
			rows = append(rows, more...)
		}
		return rows, nil
	}
	return nil, nil
}

// outdate raises what was charged by one base unit, which is credit for the next
// request, so that the next voucher is one that only the payer can make. The base
// unit is there: a request is never charged all that its voucher is over. Where
// it was used up so already, the payer makes the next payment or withdraws.
func (d *x402Desk) outdate(ctx context.Context, r *x402Request, tab x402Tab) (x402Tab, error) {
	if !tab.charged.Lt(&tab.Accepted) {
		return tab, fmt.Errorf("%w: the voucher is public, and channel %s has no base unit left to outdate it by: pay a request, or withdraw", x402.CodeVoucherSignature, tab.ID)
	}
	tab.charged.AddUint64(&tab.charged, 1)
	return tab, d.notesOf(r).prepay(ctx, tab.ID, tab.charged)
}
