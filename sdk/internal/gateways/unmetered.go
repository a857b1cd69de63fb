package gateways

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// watchOver keeps a lease that was let go, because the database was not reached,
// from being served for nothing: nobody meters it then. When the credit that was
// left to its payer is used up, by our own clock and by all of the payer's leases here, its devices are suspended, unless another
// owner that runs it was heard of. Who finds it running, later, has them resumed.
func (g *Gateway) watchOver(l *lease.Lease) {
	if !l.MetersHere() { // a node does so by itself
		return
	}
	if !g.leases.Go(func(ctx context.Context) {
		defer l.Balance.Leave()
		select {
		case <-l.Done:
			g.guardCredit(ctx, l)
		case <-ctx.Done():
		}
	}) {
		l.Balance.Leave() // the process stops: see guard.LeaveSuspended in lease
	}
}

// guardCredit goes on until somebody runs the lease, and until its devices are suspended where they have to be. It needs no answer of
// the database for that. When the process stops it suspends what it has watched over, and nobody would from then on.
func (g *Gateway) guardCredit(ctx context.Context, l *lease.Lease) {
	l.Devices.CountUnmetered()
	ask, stop := context.WithCancel(ctx)
	defer stop()
	heard := make(chan leasestore.Row, 1)
	go g.listen(ask, l, heard)
	var pace chain.Backoff
	suspended, next := false, time.Now()
	for {
		select {
		case row := <-heard:
			if suspended && row.State == wire.StateActive {
				g.Undo(ctx, l, row)
			}
			return // where its row is gone its devices are taken back as those of any forgotten lease
		case <-ctx.Done():
			g.lastLook(context.WithoutCancel(ctx), l)
			return
		case <-time.After(g.Poll()):
		}
		if g.leases.RunsAgain(l) && !l.Guard.HalfResumed() {
			return
		}
		if !l.Guard.Overspent() || time.Now().Before(next) {
			continue
		}
		g.Log.Warn("nobody meters a lease and its credit is used up: its devices are suspended", "lease", l.ID, "channel", l.Terms.ID())
		err := l.Guard.SuspendLate(ctx)
		switch {
		case err == nil:
			suspended = true
			l.Balance.Claims(false)
		case errors.Is(err, leasestore.ErrNotOwner):
			g.Log.Info("another gateway of this host runs a lease that was let go: its devices are left alone", "lease", l.ID, "error", err)
			return
		default:
			l.Guard.CannotSuspend(err)
			next = time.Now().Add(pace.Next())
		}
	}
}

// listen says when somebody runs the lease, with its row, or without where that is gone.
func (g *Gateway) listen(ctx context.Context, l *lease.Lease, heard chan<- leasestore.Row) {
	for chain.Pause(ctx, g.Poll()) == nil {
		row, err := g.seen(ctx, l)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			heard <- leasestore.Row{}
			return
		case err != nil || row.State == wire.StateSuspended && l.Guard.HalfResumed():
		case row.State != wire.StateActive || row.Term != l.Term && g.isRun(ctx, l, row):
			heard <- row
			return
		}
	}
}

// lastLook is the guard's as its process stops: what it watched over is suspended, unless the database answers, and says that somebody
// has it, or that the next process can take it up as any lease that has credit left.
func (g *Gateway) lastLook(ctx context.Context, l *lease.Lease) {
	row, err := g.seen(ctx, l)
	if err == nil && (row.Term != l.Term || !l.Guard.Overspent()) {
		return
	}
	l.Guard.LeaveSuspended(ctx)
}

// seen is the lease's row, if the database answers.
func (g *Gateway) seen(ctx context.Context, l *lease.Lease) (leasestore.Row, error) {
	ask, cancel := context.WithTimeout(ctx, leasestore.OwnerTimeout)
	defer cancel()
	return g.leases.Store.Leases.ByID(ask, l.ID.Hex())
}

// isRun reports whether somebody runs a lease that was taken over. Who could not read what he needs for that, as this gateway
// itself under its new name, gives it back: nobody meters it meanwhile.
func (g *Gateway) isRun(ctx context.Context, l *lease.Lease, row leasestore.Row) bool {
	if g.leases.Running(l.Terms.ID()) != nil {
		return true
	}
	ask, cancel := context.WithTimeout(ctx, leasestore.OwnerTimeout)
	defer cancel()
	lives, err := g.members.Lives(ask, row.Owner)
	return err == nil && lives && row.Owner != g.Identity()
}

// halt suspends a lease that this gateway took over and cannot go on with. Who goes on with it has it resumed.
func (g *Gateway) halt(ctx context.Context, row leasestore.Row) error {
	a, err := row.Allocated()
	if err != nil || row.State != wire.StateActive || a.Node != "" { // a node does so by itself
		return err
	}
	g.Log.Warn("a lease of a gateway that is gone cannot be taken up, and its credit is used up: its devices are suspended", "lease", row.ID, "channel", row.Channel)
	call, cancel := context.WithTimeout(ctx, g.CallTimeout)
	defer cancel()
	return g.leases.Deps.Placer.Suspend(call, a)
}

// Undo gives the devices of a lease that runs again back to its renter, unless whoever runs it has done so after they were suspended,
// as the file of this host's gateways says: it may have suspended them again.
func (g *Gateway) Undo(ctx context.Context, l *lease.Lease, row leasestore.Row) {
	a := l.Allocation
	a.Term = row.Term
	if ran, err := g.leases.Deps.Marks.Ran(ctx, l.ID, row.Term); err == nil && ran {
		return
	}
	call, cancel := context.WithTimeout(ctx, l.Deps.Timing.CallTimeout)
	defer cancel()
	if err := l.Deps.Placer.Resume(call, a); err != nil && !errors.Is(err, leasestore.ErrNotOwner) && ctx.Err() == nil { // else the process stops, and the next one resumes it
		g.Log.Error("a lease that runs again could not be resumed: it ends", "lease", l.ID, "error", err)
		_ = g.leases.Store.Leases.Command(ctx, l.ID, "could not be resumed")
	}
}
