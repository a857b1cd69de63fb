package sdk

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// safeToServe refuses a lease on a channel that somebody can close below what the
// lease will be paid: the holder of a key that is not ours any more, or whoever
// sends a close that is signed already. No voucher that comes after is worth anything
// then.
func (p *Provider) safeToServe(ctx context.Context, s channel.State) error {
	if s.Status != channel.Open {
		return fmt.Errorf("channel %s: %w", s.ID, channel.ErrClosing)
	}
	if s.Terms.Payee != p.config.Key.Address() {
		return wire.NotServed.With("channel %s pays %s, whose key this provider does not use any more: ask again for the price and open another", s.ID, s.Terms.Payee)
	}
	closes, err := p.closeStands(ctx, s.ID)
	if err != nil {
		return err
	}
	if closes {
		return fmt.Errorf("channel %s: %w: its close is signed, and can be sent by anyone who has it", s.ID, channel.ErrClosing)
	}
	return p.outboxIsWhole(ctx)
}

// closeStands reports whether a close of a channel was mined, or still can be: it is
// in flight under this key, or was signed for whoever sends it, and its deadline has
// not passed by the chain's clock. What became of its own transaction does not matter
// then: the calldata was public.
func (p *Provider) closeStands(ctx context.Context, id common.Hash) (bool, error) {
	all, err := p.sender.Find(ctx, id)
	if err != nil {
		return false, err
	}
	for _, tx := range all {
		if tx.Call.Kind != chain.Close {
			continue
		}
		if p.stands(tx) {
			return true, nil
		}
		deadline, signed := chain.CloseDeadline(tx.Call)
		if !signed {
			continue
		}
		now, err := p.escrow.Now(ctx)
		if err != nil {
			return false, err
		}
		if uint64(now.Unix()) <= deadline {
			return true, nil
		}
	}
	return false, nil
}

// outboxIsWhole refuses to begin anything while transactions of this key may still
// be mined that the outbox does not know: the database is from a backup, and a close
// or a refund may be among them. Once it knows all of them it always will, since it
// is written before anything is sent.
func (p *Provider) outboxIsWhole(ctx context.Context) error {
	if p.whole.Load() {
		return nil
	}
	unknown, err := p.sender.Unknown(ctx)
	if err != nil {
		return err
	}
	if unknown > 0 {
		return wire.Unavailable.With("%d transactions of this provider's key are on their way that its database does not know, as after a restore: nothing begins before they are mined or replaced", unknown)
	}
	p.whole.Store(true)
	return nil
}
