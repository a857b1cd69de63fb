package lease

import (
	"context"
	"errors"
	"time"

	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// End asks the lease to end and waits until it has: nothing is billed after it returns, also where it says that the end could not be
// written yet. The first to ask gives the reason.
func (l *Lease) End(ctx context.Context, req Stop) error {
	if req.At == nil && l.Meter != nil && l.Credit.Postpaid() {
		now := l.Deps.Clock.Now()
		req.At = &now
	}
	l.Inbox.post(func(m *Mail) {
		if m.Stop == nil {
			m.Stop = &req
		}
	})
	for {
		v, changed := l.Status.Snapshot()
		select {
		case <-l.Done:
			return nil
		default:
		}
		if v.stalled {
			return wire.Unavailable.With("lease %s ends, is billed no more, and this could not be written yet: try again", l.ID)
		}
		select {
		case <-l.Done:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// detach leaves the lease to who runs it. What was measured since the last record is not billed by anybody. One whose row is gone runs
// nowhere: its devices are taken back as those of any forgotten lease.
func (l *Lease) detach() {
	l.Deps.Log.Warn("a lease is left to the gateway that runs it", "lease", l.ID, "channel", l.Terms.ID())
	l.Status.Update(func(v *View) { v.Version++; v.Reason = "another gateway runs it" })
	l.Deps.Dropped(l)
}

// conclude has the last record on disk.
func (l *Lease) conclude(ctx context.Context, req Stop) error {
	if !l.MetersHere() {
		return l.Remote.Collect(ctx, req)
	}
	if l.Status.State() == leasestore.Active {
		l.Meter.Pause()
	}
	return l.Records.Make(ctx, !req.Keep)
}

// finish states the last record and takes the devices back. A lease that is kept goes on in the next process: its devices stay with the
// renter, and the time in between is not billed.
func (l *Lease) finish(life context.Context, req Stop) {
	ctx := context.WithoutCancel(life)
	var unwritten error
	if req.Keep && !l.Fence.Lost.Load() && !l.Fence.Aborted.Load() {
		unwritten = errors.Join(l.Records.SaveState(ctx), l.conclude(ctx, req)) // logged: the next process goes on from what is on disk
	}
	defer func() {
		if life.Err() != nil && (unwritten != nil || l.Fence.Lost.Load() || !req.Keep && l.Status.State() != leasestore.Ended) {
			l.Guard.LeaveSuspended(ctx)
		}
	}()
	switch {
	case l.Fence.Lost.Load():
		l.detach()
	case req.Keep:
		l.Status.Update(func(v *View) { v.Version++; v.Reason = req.Reason })
	default:
		l.expire(life, req)
	}
}

// expire ends the lease in two steps that are on disk: that it ends, with its last record, before its devices are taken back, and that it has ended, after. So
// whoever takes it up in between, after a crash or on a full disk, neither meters it without its devices nor leaves them with the renter.
func (l *Lease) expire(life context.Context, req Stop) {
	ctx, asked := context.WithoutCancel(life), time.Now()
	l.Ending.Store(true) // its devices are another lease's as soon as they are taken back
	if !l.until(life, func() error { return l.concluded(ctx, req, asked) }) {
		return
	}
	err := l.Fence.Command(ctx, l.Devices.Release)
	if err != nil {
		l.Deps.Log.Error("the devices of a lease could not be taken back: they are suspended, and it is tried again", "lease", l.ID, "error", err)
		l.hold(ctx)
	}
	fault.Point(fault.LeaseReleased)
	l.Guard.returned = err == nil
	if !l.until(life, func() error { return l.Deps.Store.Leases.SetEnded(ctx, l.ID, l.Term, req.Reason, !l.Guard.returned) }) {
		return
	}
	l.Deps.Log.Info("lease ended", "lease", l.ID, "channel", l.Terms.ID(), "reason", req.Reason)
	l.Status.Update(func(v *View) { v.State, v.Reason = leasestore.Ended, req.Reason; v.Version++ })
	l.Deps.Ended(l)
}

// hold suspends devices that could not be taken back: their renter's bill has ended.
func (l *Lease) hold(ctx context.Context) {
	if err := l.Fence.Command(ctx, l.Devices.Suspend); err != nil {
		l.Guard.CannotSuspend(err)
	}
}

// concluded has it on disk that the lease ends, and, where its node is still to say what it metered, until when that counts.
func (l *Lease) concluded(ctx context.Context, req Stop, asked time.Time) error {
	var err error
	if !l.Fence.Aborted.Load() {
		err = l.conclude(ctx, req)
	}
	switch {
	case l.Fence.Lost.Load():
		return err
	case !l.Fence.Aborted.Load() && (l.Records.draft != nil || l.Records.Unstored != nil):
		return err
	case err != nil: // nothing of it is left to write
		l.Deps.Log.Error("lease ends without a last record", "lease", l.ID, "error", err)
	case l.MetersHere() && !l.Fence.Aborted.Load():
		return nil // it is there with the final record
	}
	return l.Deps.Store.Leases.SetState(ctx, l.ID, l.Term, leasestore.Ending, req.Reason, asked.Unix())
}

// until tries a write of the lease's end each few seconds until it is on disk. It is false if that did not come about: the process stops first, or the lease
// is another gateway's. Meanwhile nobody has the use of the devices, and who asked for the end hears so.
func (l *Lease) until(life context.Context, write func() error) bool {
	pace := chain.Backoff{Most: 5 * time.Second}
	for {
		err := write()
		l.Fence.Check(err)
		switch {
		case l.Fence.Lost.Load():
			l.detach()
			return false
		case err == nil:
			return true
		}
		l.stall(context.WithoutCancel(life), err)
		if chain.Pause(life, pace.Next()) != nil {
			l.Status.Update(func(v *View) { v.Version++; v.Reason = "the provider stops" })
			return false
		}
	}
}

// stall suspends what cannot be ended yet, however often that takes.
func (l *Lease) stall(ctx context.Context, err error) {
	if v := l.Status.Look(); !v.stalled {
		l.Deps.Log.Error("lease ends, and this cannot be written: it is tried again until it can", "lease", l.ID, "channel", l.Terms.ID(), "error", err)
		l.Status.Update(func(v *View) { v.stalled = true })
	} else {
		l.Deps.Log.Debug("lease ends, and this cannot be written yet", "lease", l.ID, "error", err)
	}
	if l.Guard.returned {
		return
	}
	if err := l.Fence.Command(ctx, l.Devices.Suspend); err != nil && !l.Fence.Lost.Load() {
		l.Guard.CannotSuspend(err)
	}
}
