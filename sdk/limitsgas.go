package sdk

import (
	"context"
	"math/big"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// lostGasWindow is the time over which Limits.LostGas counts.
const lostGasWindow = time.Hour

// refrain is how long challenges do not offer to send deposits after one was
// refused for what others have cost. Then somebody may ask again.
const refrain = time.Minute

// sponsor decides whether we still send deposits for strangers. What they have
// cost is read from the outbox, so that neither a restart nor a re-org, nor
// another process on the same database, forgets it.
type sponsor struct {
	turn chan struct{} // held between looking at the budget and being in the outbox
	rest atomic.Int64  // unix seconds until which we do not offer to
}

func newSponsor() *sponsor { return &sponsor{turn: make(chan struct{}, 1)} }

// sponsors reports whether challenges offer to send deposits.
func (p *Provider) sponsors() bool {
	return p.gasless && time.Now().Unix() >= p.sponsor.rest.Load()
}

// submitSponsored sends a renter's deposit if what such deposits have cost
// leaves room for one that reverts.
func (p *Provider) submitSponsored(ctx context.Context, call chain.Call) (chain.TxID, error) {
	select {
	case p.sponsor.turn <- struct{}{}:
		defer func() { <-p.sponsor.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if err := p.affordRevert(ctx); err != nil {
		return "", err
	}
	return p.sender.Submit(ctx, call)
}

func (p *Provider) affordRevert(ctx context.Context) error {
	lost, risked, err := p.sender.Wasted(ctx, time.Now().Add(-lostGasWindow), chain.Open, chain.TopUp, chain.Deposit)
	if err != nil {
		return err
	}
	budget := p.config.Limits.LostGas
	if new(big.Int).Add(lost, risked).Cmp(budget) < 0 || lost.Cmp(budget) < 0 && risked.Sign() == 0 {
		if p.sponsor.rest.Swap(0) != 0 {
			p.config.Log.Info("deposits are sent for renters again", "lost_wei", lost, "budget_wei", budget)
		}
		return nil
	}
	if lost.Cmp(budget) < 0 {
		return wire.Unavailable.With("this provider has as many deposits of others in flight as it risks: send the same request again later")
	}
	if p.sponsor.rest.Swap(time.Now().Add(refrain).Unix()) == 0 {
		p.config.Log.Warn("deposits that reverted have cost as much gas as Limits.LostGas allows in an hour: renters must send their own until it has passed",
			"lost_wei", lost, "budget_wei", budget)
	}
	return wire.Unavailable.With("this provider sends no deposits for others at the moment: send the transaction yourself and give its hash, or come back within an hour")
}
