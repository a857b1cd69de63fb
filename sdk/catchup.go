package sdk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// startTimeout bounds the look at all channels before the first request.
const startTimeout = time.Minute

// catchUp compares the channels with the chain before anything is served from
// them. Where it has settled more than this database knows of, the database is
// from before that, and what was paid for was served: it is charged. Its voucher
// is public and buys nothing any more.
func catchUp(ctx context.Context, p *Provider) error {
	states, err := p.payee.Channels(ctx, channel.Open, channel.Closing)
	if err != nil || len(states) == 0 {
		return err
	}
	ids := make([]common.Hash, len(states))
	for i, s := range states {
		ids[i] = s.ID
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return p.escrow.Record(func() error {
		views, _, err := p.escrow.Confirmed(ctx, ids, p.config.Confirmations)
		if err != nil {
			return fmt.Errorf("what the chain says of %d channels: %w", len(ids), err)
		}
		for i, s := range states {
			err = errors.Join(err, catchUpOne(ctx, p, s, views[i].View))
		}
		return err
	})
}

// catchUpOne also keeps what else changed, where nobody else may be about to do
// that and to act on it.
func catchUpOne(ctx context.Context, p *Provider, s channel.State, view channel.ChainView) (err error) {
	if s.Settled = view.Settled; s.Behind() {
		warnBehind(p, s)
		_, err = p.payee.CatchUp(ctx, s.ID, s.Settled)
	}
	if p.replicas == nil && err == nil {
		_, err = p.payee.Observe(ctx, s.ID, view)
	}
	return err
}

// settledUnseen charges what was settled of a channel and is not known here, and ends the
// lease that runs on it: its records may have been signed before.
func settledUnseen(p *Provider, s channel.State) {
	warnBehind(p, s)
	if l := p.running(s.ID); l != nil && l.MetersHere() {
		l.Abort()
	}
	p.leases.Go(func(ctx context.Context) { // or the next process finds it at its start
		if err := chargeUnseen(ctx, p, s); err != nil && ctx.Err() == nil {
			p.config.Log.Error("what the chain has settled could not be charged: a voucher for it may be served again", "channel", s.ID, "error", err)
		}
	})
}

// chargeUnseen is settledUnseen for a lease at whatever gateway. What a node meters goes
// on: it has all records and delivers them.
func chargeUnseen(ctx context.Context, p *Provider, s channel.State) error {
	if _, err := p.payee.CatchUp(ctx, s.ID, s.Settled); err != nil {
		return err
	}
	row, ok, err := p.store.Leases.Newest(ctx, s.ID)
	if err != nil || !ok || row.State == wire.StateEnded {
		return err
	}
	if a, err := row.Allocated(); err != nil || a.Node != "" {
		return err
	}
	return p.muteLease(ctx, s.ID, row)
}

// muteLease ends a lease, wherever it runs, without another signature.
func (p *Provider) muteLease(ctx context.Context, channelID common.Hash, row leasestore.Row) error {
	if l := p.running(channelID); l != nil && l.ID.Hex() == row.ID {
		l.Abort()
		select {
		case <-l.Done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if p.replicas == nil || row.State == wire.StateEnded {
		return nil
	}
	return p.replicas.end(ctx, common.HexToHash(row.ID), leasestore.ErrRolledBack.Error())
}

func warnBehind(p *Provider, s channel.State) {
	p.config.Log.Error("the chain has settled more of a channel than this database knows: it was restored from a backup, or somebody settled a voucher that was not shown here; it is charged, and buys nothing more",
		"channel", s.ID, "settled", s.Settled.Dec(), "accepted", s.Accepted.Dec(), "charged", s.Spent.Dec())
}
