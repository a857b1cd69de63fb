package gateways

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// hopeless is how long a gateway does not try a lease again that it could not
// take up.
const hopeless = 30 * time.Second

// Sweep resolves what nobody runs: leases of gateways that died, those of ours that do not run here (the database failed us when they began
// or ended, or its clock was set), and devices of leases that ended without them.
func (g *Gateway) Sweep(ctx context.Context) error {
	rows, err := g.leases.Store.Leases.Orphans(ctx, g.Identity(), time.Now().Add(-2*g.CallTimeout))
	for _, row := range rows {
		if row.State == wire.StateEnded && row.AtNode() {
			continue // remote.Nodes.Collect asks for it
		}
		if failed := g.Resolve(ctx, row, ""); !errors.Is(failed, lease.ErrHeld) {
			err = errors.Join(err, failed)
		}
	}
	return err
}

// Resolve is the manager's, by one gateway at a time, which owns the lease meanwhile. What is done in its name is cut off when others
// may take the lease: then it is an orphan, and tried again under the next name.
func (g *Gateway) Resolve(ctx context.Context, row leasestore.Row, wish string) error {
	unlock, free := g.leases.Busy.TryLock(common.HexToHash(row.ID))
	if !free {
		return nil
	}
	defer unlock()
	if g.leases.Runs(row) != nil || wish == "" && g.refused.has(row.ID) {
		return nil
	}
	tenure, owner := g.Tenure(), g.Identity()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(tenure, cancel)()
	if err := g.resolveAs(ctx, owner, row, wish); tenure.Err() == nil {
		return err
	}
	return nil
}

// resolveAs is Resolve in a gateway's name. A lease whose devices are on another host, or that is paid by a scheme which this
// gateway does not take, is left to the gateways there or that do, unless its renter wishes that it ends, or for as long as one that
// does not pay would have them.
func (g *Gateway) resolveAs(ctx context.Context, owner string, row leasestore.Row, wish string) error {
	now, err := g.leases.Store.Leases.ByID(ctx, row.ID)
	if err != nil || now.Term != row.Term || now.State != row.State || now.Held != row.Held {
		return err // somebody was faster, or it ended by itself
	}
	row = now
	silent, err := g.members.Silent(ctx, row.Owner)
	if err != nil {
		return err
	}
	where := placement.Locate(ctx, g.leases.Deps.Placer, row, nil) // before it is taken: who lives after all keeps it
	if err := ctx.Err(); err != nil {
		return err
	}
	why := where
	if where == nil && row.Owner != owner {
		if why = g.untaken(ctx, row); why != nil && !errors.Is(why, errUntaken) {
			return why
		}
	}
	if left := errors.Is(why, placement.ErrNotHere) || errors.Is(why, errUntaken); left && wish == "" && (row.State == wire.StateEnded || silent <= g.SuspendTimeout) {
		g.refused.add(row.ID)
		g.Log.Warn("lease of a gateway that is gone is left to the others", "lease", row.ID, "reason", why)
		if where == nil && silent > g.Credit {
			return g.halt(ctx, row)
		}
		return nil
	}
	before := row.Owner
	if ok, err := g.leases.Store.Leases.TakeOver(ctx, &row, owner); err != nil || !ok {
		return err
	}
	if err = g.outdo(ctx, &row); err == nil {
		err = g.leases.Resolve(ctx, row, where, cmp.Or(wish, "its host is gone"))
	}
	switch {
	case errors.Is(err, lease.ErrHeld):
		g.refused.add(row.ID)
	case err != nil:
		if where == nil && !errors.Is(err, lease.ErrMetered) && silent > g.Credit && ctx.Err() == nil {
			err = errors.Join(err, g.halt(ctx, row)) // it may be unpaid, and nobody meters it
		}
		return errors.Join(err, g.leases.Store.Leases.GiveBack(ctx, row, before))
	case g.leases.Runs(row) != nil:
		g.Log.Info("lease taken over from a gateway that is gone", "lease", row.ID, "gateway", before, "term", row.Term)
	}
	return err
}

// outdo has a lease that was taken over be in a later term than its commands on this host were: a database that was restored counts from
// before them. One whose devices were taken back ends in whatever term it is.
func (g *Gateway) outdo(ctx context.Context, row *leasestore.Row) error {
	id := common.HexToHash(row.ID)
	next, err := g.leases.Deps.Marks.Above(ctx, id, row.Term)
	if err != nil {
		g.Log.Warn("in which term a lease's commands ran on this host is not known", "lease", row.ID, "error", err)
	}
	if err != nil || next == row.Term {
		return nil
	}
	if err = g.leases.Store.Leases.RaiseTerm(ctx, id, row.Term, next); err == nil {
		row.Term = next
	}
	return err
}

// errUntaken is a lease that a gateway beside this one can go on with, and this one would end.
var errUntaken = errors.New("it is paid by a scheme that this gateway does not take")

// untaken is errUntaken for a lease that is paid otherwise than this gateway takes.
func (g *Gateway) untaken(ctx context.Context, row leasestore.Row) error {
	a, err := row.Allocated()
	if err != nil || placement.ForOneRequest(a) || row.State != wire.StateActive && row.State != wire.StateSuspended {
		return err // it goes on nowhere: its devices are taken back
	}
	s, err := g.leases.Channel(ctx, row)
	if err != nil || s.Status != channel.Open || g.Takes(s.Terms) {
		return err
	}
	return errUntaken
}

// refusals are leases that could not be taken up here, and until when they are not tried again.
type refusals struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (r *refusals) has(lease string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.until[lease])
}

func (r *refusals) add(lease string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.until == nil {
		r.until = make(map[string]time.Time)
	}
	r.until[lease] = time.Now().Add(hopeless)
}

// TryAgain has leases that could not be taken up here tried by the next sweep.
func (g *Gateway) TryAgain() {
	g.refused.mu.Lock()
	defer g.refused.mu.Unlock()
	clear(g.refused.until)
}
