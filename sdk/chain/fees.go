package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/core/types"
)

// fees are the two figures of an EIP-1559 transaction, in wei per gas, and what they were found by.
type fees struct {
	tip  *big.Int
	cap  *big.Int
	most *big.Int      // MaxFee
	data *big.Int      // wei in all, what a rollup charges for data; nil: not asked
	head *types.Header // the block they are for
}

// gwei is a billionth of a coin.
const gwei = 1_000_000_000

// DefaultMaxFee is the most that a Sender without a MaxFee offers for a unit of gas on a chain, in wei: 500 gwei, some
// twenty times what a busy day costs on Ethereum, and 10,000 gwei on Polygon, whose coin is worth less.
func DefaultMaxFee(chainID uint64) *big.Int {
	switch chainID {
	case 137, 80002:
		return big.NewInt(10_000 * gwei)
	}
	return big.NewInt(500 * gwei)
}

// The tip that is offered: maxTipShare of MaxFee at most, or leastMaxTip where that is more, and fallbackTip where the
// endpoint suggests none, in wei per gas.
const (
	maxTipShare = 10
	leastMaxTip = 50 * gwei
	fallbackTip = gwei
)

// gasMargin is added to an estimate: a row of a batch that was to be skipped may be payable by then, and the first
// payment to a payee writes a fresh slot of the token.
const gasMargin = 30_000

// leastPayoutGas is what a payout has at least: a node that does not know the claim before it yet estimates one that has
// nothing to move, and the real one would run out of gas. What is not used costs nothing.
const leastPayoutGas = 150_000

// estimate runs the call and says how much gas to give it.
func (s *Sender) estimate(ctx context.Context, call Call) (uint64, error) {
	gas, err := s.Backend.EstimateGas(ctx, ethereum.CallMsg{From: s.Address(), To: &call.To, Data: call.Data})
	if err != nil {
		return 0, fmt.Errorf("chain: %s: %w", call, decode(err))
	}
	gas += gas/4 + gasMargin
	if call.Kind == Payout || call.Kind == WithdrawCredit {
		gas = max(gas, leastPayoutGas)
	}
	return gas, nil
}

// fees for a transaction to be mined soon: twice the base fee leaves room for six full blocks.
func (s *Sender) fees(ctx context.Context) (fees, error) {
	head, err := s.Backend.HeaderByNumber(ctx, nil)
	if err != nil {
		return fees{}, Unread("the newest block", err)
	}
	return s.feesAt(ctx, head)
}

func (s *Sender) feesAt(ctx context.Context, head *types.Header) (fees, error) {
	if head.BaseFee == nil {
		return fees{}, errors.New("chain: this chain has no base fee (EIP-1559), which transactions here need")
	}
	most, err := s.maxFee(ctx)
	if err != nil {
		return fees{}, err
	}
	tip, err := s.tip(ctx, head, most)
	if err != nil {
		return fees{}, err
	}
	if head.BaseFee.Cmp(most) > 0 {
		s.log().Warn("the chain's base fee is above MaxFee: nothing is mined until it falls, or MaxFee is raised", "base_fee_wei", head.BaseFee, "max_fee_wei", most)
	}
	f := fees{tip: tip, cap: new(big.Int).Add(tip, new(big.Int).Lsh(head.BaseFee, 1)), most: most, head: head}
	f.cap = smaller(f.cap, most)
	return f, nil
}

func (s *Sender) maxFee(ctx context.Context) (*big.Int, error) {
	if s.MaxFee != nil {
		return s.MaxFee, nil
	}
	chain, err := s.chainID(ctx)
	return DefaultMaxFee(chain), err
}

// tip is what the endpoint suggests, bounded: a false answer must not give the purse away. Where it suggests nothing, it is
// what the gas price leaves over the base fee.
func (s *Sender) tip(ctx context.Context, head *types.Header, most *big.Int) (*big.Int, error) {
	tip, err := s.Backend.SuggestGasTipCap(ctx)
	if err != nil && isTransport(err) && !errors.Is(err, ErrAnswer) {
		return nil, fmt.Errorf("chain: asking for the tip: %w", decode(err))
	}
	if err != nil {
		s.log().Debug("the endpoint suggests no tip", "err", err)
		tip = big.NewInt(fallbackTip)
		if price, err := s.Backend.SuggestGasPrice(ctx); err == nil && price.Cmp(head.BaseFee) > 0 {
			tip = new(big.Int).Sub(price, head.BaseFee)
		}
	}
	bound := larger(new(big.Int).Div(most, big.NewInt(maxTipShare)), smaller(most, big.NewInt(leastMaxTip)))
	if tip.Cmp(bound) > 0 {
		s.log().Warn("the endpoint suggests a tip that is out of proportion; less is offered", "suggested_wei", tip, "offered_wei", bound)
		return bound, nil
	}
	return tip, nil
}

// GasPrice is what a transaction that is mined now would pay, in wei per gas. A rollup's own charge for data is
// not in it: see DataFee.
func (s *Sender) GasPrice(ctx context.Context) (*big.Int, error) {
	head, err := s.Backend.HeaderByNumber(ctx, nil)
	if err != nil {
		return nil, Unread("the newest block", err)
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
		return Unread("the balance of "+s.Address().String(), err)
	}
	need := f.price(gas)
	if have.Cmp(need) >= 0 {
		return nil
	}
	return fmt.Errorf("%w: %s has %s wei and %s may take %s; send it native coin", ErrFunds, s.Address(), have, call, need)
}

// bump is what replaces a stuck version: an eighth more than before, which is the least a node takes, or what a new
// transaction would offer if that is more. It reports false where MaxFee does not allow it.
func (f fees) bump(old *types.Transaction) (fees, bool) {
	next := f
	next.tip, next.cap = larger(raise(old.GasTipCap()), f.tip), larger(raise(old.GasFeeCap()), f.cap)
	next.cap = smaller(next.cap, f.most)
	next.tip = smaller(next.tip, next.cap)
	return next, next.cap.Cmp(raise(old.GasFeeCap())) >= 0 && next.tip.Cmp(raise(old.GasTipCap())) >= 0
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
