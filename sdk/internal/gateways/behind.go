package gateways

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// startTimeout bounds the look at all channels before the first request.
const startTimeout = time.Minute

// CatchUp compares the channels with the chain before anything is served from
// them. Where it has settled more than this database knows of, the database is
// from before that, and what was paid for was served: it is charged. Its voucher
// is public and buys nothing any more.
func (d *Directory) CatchUp(ctx context.Context, escrow *chain.Escrow, confirmations uint64) error {
	states, err := d.Payee.Channels(ctx, channel.Open, channel.Closing)
	if err != nil || len(states) == 0 {
		return err
	}
	ids := make([]common.Hash, len(states))
	for i, s := range states {
		ids[i] = s.ID
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return escrow.Record(func() error {
		views, _, err := escrow.Confirmed(ctx, ids, confirmations)
		if err != nil {
			return fmt.Errorf("what the chain says of %d channels: %w", len(ids), err)
		}
		for i, s := range states {
			err = errors.Join(err, d.catchUpOne(ctx, s, views[i].View))
		}
		return err
	})
}

// catchUpOne also keeps what else changed, where nobody else may be about to do
// that and to act on it.
func (d *Directory) catchUpOne(ctx context.Context, s channel.State, view channel.ChainView) (err error) {
	if s.Settled = view.Settled; s.Behind() {
		d.warnBehind(s)
		_, err = d.Payee.CatchUp(ctx, s.ID, s.Settled)
	}
	if d.Gateway == nil && err == nil {
		_, err = d.Payee.Observe(ctx, s.ID, view)
	}
	return err
}

// Changed hears of every change the chain made to a channel.
func (d *Directory) Changed(now channel.State) {
	if now.Behind() && d.Payee.Domain.Holds(now.Terms) == nil {
		d.settledUnseen(now)
	}
	l := d.Running(now.ID)
	if l == nil {
		return
	}
	l.Balance.Observe(now)
	if now.Status == channel.Open {
		return
	}
	// What is metered from here on might never be paid.
	d.EndSoon(l, "the channel is "+now.Status.String())
}

// settledUnseen charges what was settled of a channel and is not known here, and ends the
// lease that runs on it: its records may have been signed before.
func (d *Directory) settledUnseen(s channel.State) {
	d.warnBehind(s)
	if l := d.Running(s.ID); l != nil && l.MetersHere() {
		l.Abort()
	}
	d.Go(func(ctx context.Context) { // or the next process finds it at its start
		if err := d.chargeUnseen(ctx, s); err != nil && ctx.Err() == nil {
			d.Deps.Log.Error("what the chain has settled could not be charged: a voucher for it may be served again", "channel", s.ID, "error", err)
		}
	})
}

// chargeUnseen is settledUnseen for a lease at whatever gateway. What a node meters goes
// on: it has all records and delivers them.
func (d *Directory) chargeUnseen(ctx context.Context, s channel.State) error {
	if _, err := d.Payee.CatchUp(ctx, s.ID, s.Settled); err != nil {
		return err
	}
	row, ok, err := d.Store.Leases.Newest(ctx, s.ID)
	if err != nil || !ok || row.State == wire.StateEnded {
		return err
	}
	if a, err := row.Allocated(); err != nil || a.Node != "" {
		return err
	}
	return d.Mute(ctx, s.ID, row)
}

// Mute ends a lease, wherever it runs, without another signature.
func (d *Directory) Mute(ctx context.Context, channelID common.Hash, row leasestore.Row) error {
	if l := d.Running(channelID); l != nil && l.ID.Hex() == row.ID {
		l.Abort()
		select {
		case <-l.Done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d.Gateway == nil || row.State == wire.StateEnded {
		return nil
	}
	return d.Gateway.end(ctx, common.HexToHash(row.ID), leasestore.ErrRolledBack.Error())
}

func (d *Directory) warnBehind(s channel.State) {
	d.Deps.Log.Error("the chain has settled more of a channel than this database knows: it was restored from a backup, or somebody settled a voucher that was not shown here; it is charged, and buys nothing more",
		"channel", s.ID, "settled", s.Settled.Dec(), "accepted", s.Accepted.Dec(), "charged", s.Spent.Dec())
}
