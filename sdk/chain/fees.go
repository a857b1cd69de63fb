package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/core/types"
)

// fees are the two figures of an EIP-1559 transaction, in wei per gas.
type fees struct {
	tip *big.Int
	cap *big.Int
}

// gasMargin is added to an estimate: a row of a batch that was to be skipped may be payable by then, and the first
// payment to a payee writes a fresh slot of the token.
const gasMargin = 30_000

// estimate runs the call and says how much gas to give it.
func (s *Sender) estimate(ctx context.Context, call Call) (uint64, error) {
	gas, err := s.Backend.EstimateGas(ctx, ethereum.CallMsg{From: s.Address(), To: &call.To, Data: call.Data})
	if err != nil {
		return 0, fmt.Errorf("chain: %s: %w", call, decode(err))
	}
	return gas + gas/4 + gasMargin, nil
}

// fees for a transaction to be mined soon: twice the base fee leaves room for six full blocks.
func (s *Sender) fees(ctx context.Context) (fees, error) {
	head, err := s.Backend.HeaderByNumber(ctx, nil)
	if err != nil {
		return fees{}, fmt.Errorf("%w: reading the newest block: %w", ErrUnreachable, err)
	}
	return s.feesAt(ctx, head)
}

func (s *Sender) feesAt(ctx context.Context, head *types.Header) (fees, error) {
	if head.BaseFee == nil {
		return fees{}, errors.New("chain: this chain has no base fee (EIP-1559), which transactions here need")
	}
	tip, err := s.Backend.SuggestGasTipCap(ctx)
	if err != nil {
		return fees{}, fmt.Errorf("chain: asking for the tip: %w", err)
	}
	f := fees{tip: tip, cap: new(big.Int).Add(tip, new(big.Int).Lsh(head.BaseFee, 1))}
	if s.MaxFee != nil && f.cap.Cmp(s.MaxFee) > 0 {
		f.cap = s.MaxFee
		f.tip = smaller(f.tip, f.cap)
	}
	return f, nil
}

// GasPrice is what a transaction that is mined now would pay, in wei per gas. A rollup's own charge for data is not in it.
func (s *Sender) GasPrice(ctx context.Context) (*big.Int, error) {
	head, err := s.Backend.HeaderByNumber(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: reading the newest block: %w", ErrUnreachable, err)
	}
	f, err := s.feesAt(ctx, head)
	if err != nil {
		return nil, err
	}
	return smaller(new(big.Int).Add(head.BaseFee, f.tip), f.cap), nil
}

// afford refuses a call whose gas the sender cannot pay: the node would refuse it too, and it would block the nonce.
func (s *Sender) afford(ctx context.Context, call Call, gas uint64, f fees) error {
	have, err := s.Backend.BalanceAt(ctx, s.Address(), nil)
	if err != nil {
		return fmt.Errorf("%w: reading the balance of %s: %w", ErrUnreachable, s.Address(), err)
	}
	need := new(big.Int).Mul(f.cap, new(big.Int).SetUint64(gas))
	if have.Cmp(need) >= 0 {
		return nil
	}
	return fmt.Errorf("%w: %s has %s wei and %s may take %s; send it native coin", ErrFunds, s.Address(), have, call, need)
}

// bump is what replaces a stuck version: an eighth more than before, which is the least a node takes, or what a new
// transaction would offer if that is more. It reports false where MaxFee does not allow it.
func (s *Sender) bump(old *types.Transaction, now fees) (fees, bool) {
	next := fees{tip: larger(raise(old.GasTipCap()), now.tip), cap: larger(raise(old.GasFeeCap()), now.cap)}
	if s.MaxFee != nil && next.cap.Cmp(s.MaxFee) > 0 {
		next.cap = s.MaxFee
		next.tip = smaller(next.tip, next.cap)
		return next, next.cap.Cmp(raise(old.GasFeeCap())) >= 0 && next.tip.Cmp(raise(old.GasTipCap())) >= 0
	}
	return next, true
}

func raise(v *big.Int) *big.Int {
	eighth := new(big.Int).Rsh(v, 3)
	return eighth.Add(eighth, v).Add(eighth, big.NewInt(1))
}

func larger(a, b *big.Int) *big.Int {
	if a.Cmp(b) >= 0 {
		return a
	}
	return b
}

func smaller(a, b *big.Int) *big.Int {
	if a.Cmp(b) <= 0 {
		return a
	}
	return b
}
