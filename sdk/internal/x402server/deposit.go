package x402server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// DepositOf checks what can be checked of a deposit before gas is spent on it.
func (r *PaidRequest) DepositOf(tab Account) (chain.Authorization, error) {
	auth := chain.Authorization{Authorization: r.Paid.Payload.Authorization(), Signature: r.Paid.Payload.Deposit.Authorization.Signature[:]}
	now := time.Now()
	after := tab.Deposit
	after.Add(&after, &auth.Value)
	switch {
	case auth.Value.Lt(&r.Offer.Extra.MinDeposit.Int):
		return auth, fmt.Errorf("%w: the deposit is %s, the least that is taken is %s", x402.CodeDepositBelowMinimum, auth.Value.Dec(), r.Offer.Extra.MinDeposit.Dec())
	case r.Voucher.Cumulative.Gt(&after):
		return auth, fmt.Errorf("%w: the voucher is over %s, with the deposit channel %s holds %s", x402.CodeCumulativeExceedsBalance, r.Voucher.Cumulative.Dec(), r.ID, after.Dec())
	case auth.ValidAfter >= uint64(now.Unix()):
		return auth, fmt.Errorf("%w: the authorization is not valid yet", x402.CodeValidAfter)
	case auth.ValidBefore <= uint64(now.Add(chain.AuthorizationMargin).Unix()):
		return auth, fmt.Errorf("%w: the authorization ends within %s: its transaction could come too late", x402.CodeValidBefore, chain.AuthorizationMargin)
	}
	return auth, nil
}

// WorthDepositing refuses a deposit after which the request would be refused: by what
// the chain says of the channel now, and of a voucher that would not be taken.
func (a *Accounts) WorthDepositing(ctx context.Context, r *PaidRequest, tab Account, value uint256.Int) error {
	after := tab.State
	if tab.Known {
		s, _, err := a.Confirmed(ctx, r.Terms)
		if err != nil {
			return err
		}
		after = s
	}
	if after.Status != channel.Open {
		return fmt.Errorf("channel %s: %w", r.ID, ErrWithdrawing)
	}
	after.Deposit.Add(&after.Deposit, &value)
	_, err := a.Book.Judge(ctx, after, r.Voucher)
	return err
}

// Arrived waits until the chain has what a request's deposit was to bring. That it was sent, or mined, moves nothing here: what
// counts is what the contract says of the channel afterwards.
func (a *Accounts) Arrived(ctx context.Context, r *PaidRequest) (Account, error) {
	for {
		s, pending, err := a.Confirmed(ctx, r.Terms)
		if err != nil {
			return Account{}, err
		}
		if s.Status != channel.Open {
			return Account{}, fmt.Errorf("channel %s: %w", s.ID, ErrWithdrawing)
		}
		if !r.Voucher.Cumulative.Gt(&s.Deposit) || !pending {
			if err := a.RefreshNonce(ctx, r, s); err != nil {
				return Account{}, err
			}
			return a.Account(ctx, s)
		}
		if a.Pause(ctx) != nil {
			return Account{}, wire.Unavailable.With("the deposit of channel %s has not %d confirmations yet: send the same request again later", r.ID, a.Confirmations)
		}
	}
}

// Arrivals counts each payer's requests that bring a deposit, until they are served.
type Arrivals struct {
	mu      sync.Mutex
	byPayer map[common.Address]uint64
}

// Begin counts a request, until end, and returns how many of its payer there are beside it.
func (a *Arrivals) Begin(payer common.Address) (others uint64, end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byPayer == nil {
		a.byPayer = make(map[common.Address]uint64)
	}
	others = a.byPayer[payer]
	a.byPayer[payer]++
	return others, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.byPayer[payer]--; a.byPayer[payer] == 0 {
			delete(a.byPayer, payer)
		}
	}
}
