package model

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
)

const (
	interval = time.Minute      // between the settlers' passes
	maxAge   = 10 * time.Minute // nothing waits longer for settlement
)

const tillFile = "till.db"

// A till is the payee's program: two schemes over one database and one key, as a provider with X402 has it.
type till struct {
	w       *world
	db      *store.DB
	sender  *chain.Sender
	session *chain.Escrow
	batch   *chain.BatchSettlement
	desks   []*desk
}

// A desk is what there is for each contract.
type desk struct {
	contract chain.Contract
	payee    *channel.Payee
	settler  *settle.Settler
	watcher  *settle.Watcher
}

func openTill(w *world) *till {
	k := &till{w: w}
	var err error
	k.db, err = store.OpenAlone(w.ctx, filepath.Join(w.dir, tillFile))
	w.must(err)
	txs, err := chain.OpenStore(w.ctx, k.db)
	w.must(err)
	k.sender = &chain.Sender{Backend: w.chain, Key: w.payee, Store: txs, Poll: time.Nanosecond, Now: w.now}
	k.session, err = chain.NewEscrow(w.ctx, w.chain, w.escrow)
	w.must(err)
	k.batch, err = chain.NewBatchSettlement(w.ctx, w.chain)
	w.must(err)
	for _, contract := range []chain.Contract{k.session, k.batch} {
		d := &desk{contract: contract, payee: &channel.Payee{Store: k.db.Payee(), Domain: contract.Domain()}}
		d.settler = &settle.Settler{Payee: d.payee, Contract: contract, Sender: k.sender,
			Policy: settle.Policy{Interval: interval, MaxAge: maxAge}, Now: w.now}
		d.settler.Expect(channel.Terms{Payee: w.payee.Address(), Token: w.token.Address}) // as a provider does
		d.watcher = &settle.Watcher{Payee: d.payee, Contract: contract, Confirmations: confirmations, Store: txs, Now: w.now,
			OnChange: func(_, now channel.State) {
				if now.Status == channel.Closing {
					d.settler.Urgent(now.ID)
				}
			}}
		k.desks = append(k.desks, d)
	}
	return k
}

func (k *till) close() { _ = k.db.Close() }

// desk is the one of a scheme.
func (k *till) desk(s channel.Scheme) *desk { return k.desks[s] }

func (k *till) state(a *account) channel.State {
	s, err := k.desk(a.terms.Scheme).payee.State(k.w.ctx, a.id)
	k.w.must(err)
	return s
}

// work is one round of what the program does each interval, and reports whether all of it could be done. What a transaction of
// before had to be waited for is looked at once more, as a program does some seconds later: the node may have dropped it.
func (k *till) work() bool {
	done := true
	for _, d := range k.desks {
		done = k.w.during("watching", d.watcher.Check) == nil && done
	}
	done = k.w.during("the outbox", k.sender.Sync) == nil && done
	flying, err := k.sender.InFlight(k.w.ctx)
	k.w.must(err)
	for range 1 + min(1, len(flying)) {
		for _, d := range k.desks {
			done = k.w.during("settling", d.settler.Once) == nil && done
		}
	}
	return done
}

// lookAround is the first thing that a program does on a database that may be old, when the chain has gone on.
func (k *till) lookAround() {
	if k.w.sick() {
		return
	}
	for range confirmations {
		_, err := k.w.chain.Mine()
		k.w.must(err)
	}
	for _, d := range k.desks {
		k.w.must(k.w.during("watching", d.watcher.Check))
	}
}

// register has the payee know a channel as the chain has it, with what is confirmed of its deposit.
func (k *till) register(a *account) error {
	d := k.desk(a.terms.Scheme)
	return d.contract.Record(func() error {
		views, _, err := d.contract.Confirmed(k.w.ctx, []common.Hash{a.id}, confirmations)
		if err != nil {
			return err
		}
		_, err = d.payee.Register(k.w.ctx, a.terms, views[0].View)
		return err
	})
}

// unrefunded is what a desk looks at before it takes a voucher of x402, as a provider's does: whether a refund of the channel
// is under way, or undone by a re-org, and what it took.
func (k *till) unrefunded(a *account) (bool, error) {
	refunds, err := k.sender.Find(k.w.ctx, a.id, chain.Refund)
	if err != nil {
		return false, err
	}
	for _, tx := range refunds {
		switch stands, err := k.sender.Stands(k.w.ctx, tx); {
		case err != nil || !stands:
			return false, nil // nothing is served of what the chain does not tell either
		case tx.State != chain.Final:
			if err := k.register(a); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// settleNow settles one channel, whatever its age.
func (k *till) settleNow(a *account) error {
	return k.w.during("settling at once", func(ctx context.Context) error {
		return k.desk(a.terms.Scheme).settler.Settle(ctx, a.id)
	})
}

// submit sends a call of the payee's and waits for it.
func (k *till) submit(call chain.Call) error {
	return k.w.during(call.String(), func(ctx context.Context) error {
		id, err := k.sender.Submit(ctx, call)
		if err != nil {
			return err
		}
		_, err = k.sender.Wait(ctx, id, 1)
		return err
	})
}

func isRevert(err error) bool {
	var refused *chain.Revert
	var reverted *chain.Reverted
	return errors.As(err, &refused) || errors.As(err, &reverted)
}
