package chain

import (
	"context"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"
)

// A Credit is what the escrow owes an account in one token: what the token refused to pay out when it was due. It has no
// deadline.
type Credit struct {
	Amount      uint256.Int // base units
	Withdrawals uint64      // how often credit was withdrawn: the nonce of the next signed withdrawal
}

// Credit reads what the escrow owes an account in a token, as of a block (nil: the newest).
func (e *Escrow) Credit(ctx context.Context, account, token common.Address, block *big.Int) (Credit, error) {
	return e.creditOn(ctx, e.backend, account, token, block)
}

func (e *Escrow) creditOn(ctx context.Context, backend Backend, account, token common.Address, block *big.Int) (Credit, error) {
	out, err := e.callOn(ctx, backend, e.abi.PackCredit(account, token), block)
	if err != nil {
		return Credit{}, fmt.Errorf("chain: reading what escrow %s owes %s in token %s: %w", e.address, account, token, err)
	}
	read, err := e.abi.UnpackCredit(out)
	if err != nil {
		return Credit{}, fmt.Errorf("chain: reading what escrow %s owes %s in token %s: %w", e.address, account, token, err)
	}
	amount, over := uint256.FromBig(read.Amount)
	if over || amount.BitLen() > 128 || !read.Withdrawals.IsUint64() {
		return Credit{}, fmt.Errorf("chain: escrow %s answered with what no credit can be: %s, withdrawn %s times", e.address, read.Amount, read.Withdrawals)
	}
	return Credit{Amount: *amount, Withdrawals: read.Withdrawals.Uint64()}, nil
}

// WithdrawCreditCall pays the sender's credit in a token to an address.
func (p *packer) WithdrawCreditCall(token, to common.Address) Call {
	return Call{Kind: WithdrawCredit, To: p.address, Data: p.abi.PackWithdrawCredit(token, to)}
}

// WithdrawCreditAuthorizedCall pays an account's credit in a token to an address by the account's signature
// (channel.Domain.WithdrawCreditDigest), until deadline, in unix seconds; anyone may send it. To the account itself it
// takes no signature.
func (p *packer) WithdrawCreditAuthorizedCall(account, token, to common.Address, deadline uint64, signature []byte) Call {
	return Call{Kind: WithdrawCredit, To: p.address,
		Data: p.abi.PackWithdrawCreditWithAuthorization(account, token, to, number(deadline), signature)}
}

// PayoutCall fetches the payee's credit, of which there is none but after the token refused a settlement: else settling
// pays. Anyone may send it.
func (e *Escrow) PayoutCall(ctx context.Context, payee, token common.Address) (Call, Due, error) {
	d, err := due(ctx, e.backend, func(ctx context.Context, b Backend, block *big.Int) (uint256.Int, error) {
		credit, err := e.creditOn(ctx, b, payee, token, block)
		return credit.Amount, err
	})
	return e.WithdrawCreditAuthorizedCall(payee, token, payee, 0, nil), d, err
}

// Credited is a payout that the token refused.
type Credited struct {
	Account, Token common.Address
	Amount         uint256.Int // base units
}

// Credited reads from a receipt which payouts the token refused.
func (e *Escrow) Credited(receipt *types.Receipt) []Credited {
	var credited []Credited
	for _, log := range receipt.Logs {
		if log.Address != e.address || len(log.Topics) == 0 {
			continue
		}
		event, err := e.abi.UnpackCreditedEvent(log)
		if err != nil || event.Amount == nil {
			continue // another event
		}
		if amount, over := uint256.FromBig(event.Amount); !over {
			credited = append(credited, Credited{Account: event.Account, Token: event.Token, Amount: *amount})
		}
	}
	return credited
}
