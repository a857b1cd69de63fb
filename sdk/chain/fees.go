package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"

	"github.com/ethereum/go-ethereum/core/types"
)

// fees are the two figures of an EIP-1559 transaction, in wei per gas, and what they were found by.
type fees struct {
	tip  *big.Int
	cap  *big.Int
	most *big.Int // MaxFee
	data *big.Int // wei in all, what a rollup charges for data; nil: not asked
	head sight    // the block they are for

	// What the endpoint asks that asks less: what one alone asks beyond it keeps no transaction from being sent.
	leastTip  *big.Int
	leastCap  *big.Int
	leastData *big.Int // nil: data
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

// pricing says what a transaction is given, and what it may offer: gas, fees, and a rollup's charge for data, of each what two
// endpoints ask, within MaxFee and what the key can pay. It sends nothing.
type pricing struct {
	*account
	limit  *big.Int   // MaxFee; nil: the chain's
	mu     sync.Mutex // guards rollup
	rollup *bool      // whether the chain charges for data; nil: not asked yet
}

// fees for a transaction to be mined soon: twice the base fee leaves room for six full blocks.
func (p *pricing) fees(ctx context.Context) (fees, error) {
	head, err := p.sight(ctx)
	if err != nil {
		return fees{}, err
	}
	return p.feesAt(ctx, head)
}

func (p *pricing) feesAt(ctx context.Context, head sight) (fees, error) {
	most, err := p.maxFee(ctx)
	if err != nil {
		return fees{}, err
	}
	tip, least, err := p.tips(ctx, head, most)
	if err != nil {
		return fees{}, err
	}
	if head.leastFee.Cmp(most) > 0 {
		p.log.Warn("the chain's base fee is above MaxFee: nothing is mined until it falls, or MaxFee is raised", "base_fee_wei", head.leastFee, "max_fee_wei", most)
	}
	f := fees{tip: tip, most: most, head: head, cap: new(big.Int).Add(tip, new(big.Int).Lsh(head.baseFee, 1))}
	f.cap = smaller(f.cap, most)
	f.tip = smaller(f.tip, f.cap)
	f.leastTip = smaller(f.tip, least)
	f.leastCap = smaller(f.cap, new(big.Int).Add(least, new(big.Int).Lsh(head.leastFee, 1)))
	return f, nil
}

func (p *pricing) maxFee(ctx context.Context) (*big.Int, error) {
	if p.limit != nil {
		return p.limit, nil
	}
	chain, err := p.chainID(ctx)
	return DefaultMaxFee(chain), err
}

// tips are the larger and the smaller of what two endpoints suggest, bounded: a false answer must neither give the purse away
// nor keep a transaction waiting. Where one suggests nothing, it is what the gas price leaves over the base fee.
func (p *pricing) tips(ctx context.Context, head sight, most *big.Int) (tip, least *big.Int, err error) {
	said, err := two(ctx, p.backend, func(ctx context.Context, b Backend) (*big.Int, error) {
		tip, err := b.SuggestGasTipCap(ctx)
		if err == nil || isTransport(err) && !errors.Is(err, ErrAnswer) {
			return tip, err
		}
		p.log.Debug("the endpoint suggests no tip", "err", err)
		if price, err := b.SuggestGasPrice(ctx); err == nil && price.Cmp(head.baseFee) > 0 {
			return new(big.Int).Sub(price, head.baseFee), nil
		}
		return big.NewInt(fallbackTip), nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("chain: asking for the tip: %w", decode(err))
	}
	least, tip = bounds(said, (*big.Int).Cmp)
	bound := larger(new(big.Int).Div(most, big.NewInt(maxTipShare)), smaller(most, big.NewInt(leastMaxTip)))
	if tip.Cmp(bound) > 0 {
		offered := bound
		if len(said) > 1 && least.Cmp(bound) <= 0 { // the one that is out of proportion is not believed
			offered = least
		}
		p.log.Warn("the endpoint suggests a tip that is out of proportion; less is offered", "suggested_wei", tip, "offered_wei", offered)
		tip = offered
	}
	return tip, smaller(least, tip), nil
}

// GasPrice is what a transaction that is mined now would pay, in wei per gas. A rollup's own charge for data is
// not in it: see DataFee.
func (s *Sender) GasPrice(ctx context.Context) (*big.Int, error) {
	f, err := s.parts().prices.fees(ctx)
	if err != nil {
		return nil, err
	}
	return smaller(new(big.Int).Add(f.head.baseFee, f.tip), f.cap), nil
}

// payable are these fees as far as the sender can pay them for a call: no less than what the endpoint asks that asks less.
// ErrFunds says that it cannot pay even that: the node would refuse the transaction, and it would block the nonce.
func (p *pricing) payable(ctx context.Context, call Call, gas uint64, f fees) (fees, error) {
	have, err := p.backend.BalanceAt(ctx, p.address(), nil)
	if err != nil {
		return f, Unread("the balance of "+p.address().String(), err)
	}
	need := f.price(gas)
	if have.Cmp(need) >= 0 {
		return f, nil
	}
	if f.leastCap != nil {
		less := f
		if f.leastData != nil {
			less.data = f.leastData
		}
		left := new(big.Int).Set(have)
		if less.data != nil {
			left.Sub(left, less.data)
		}
		less.cap = smaller(f.cap, left.Div(left, new(big.Int).SetUint64(gas)))
		less.tip = smaller(f.tip, less.cap)
		if less.cap.Cmp(f.leastCap) >= 0 {
			return less, nil
		}
	}
	return f, fmt.Errorf("%w: %s has %s wei and %s may take %s; send it native coin", ErrFunds, p.address(), have, call, need)
}

// bump is what replaces a stuck version: an eighth more than before, which is the least a node takes, or what a new
// transaction would offer if that is more. It reports false where MaxFee does not allow it.
func (f fees) bump(old *types.Transaction) (fees, bool) {
	next := f
	next.tip, next.cap = larger(raise(old.GasTipCap()), f.tip), larger(raise(old.GasFeeCap()), f.cap)
	next.cap = smaller(next.cap, f.most)
	next.tip = smaller(next.tip, next.cap)
	next.leastCap = next.cap // less replaces nothing
	return next, next.cap.Cmp(raise(old.GasFeeCap())) >= 0 && next.tip.Cmp(raise(old.GasTipCap())) >= 0
}

func raise(v *big.Int) *big.Int {
	eighth := new(big.Int).Rsh(v, 3)
	return eighth.Add(eighth, v).Add(eighth, big.NewInt(1))
}

func larger(a, b *big.Int) *big.Int { return slices.MaxFunc([]*big.Int{a, b}, (*big.Int).Cmp) }

func smaller(a, b *big.Int) *big.Int { return slices.MinFunc([]*big.Int{a, b}, (*big.Int).Cmp) }
