package lease

import (
	"context"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// suspension is for how long a lease has been suspended, whatever the reasons were since: it ends when the renter's time is up.
type suspension struct {
	*core
	timer   *time.Timer // ends the lease if it is still suspended then
	since   time.Time
	starved bool      // it could not be metered at some time of it: see starve
	Earlier time.Time // when an earlier process suspended it; zero if none did
}

// tells reports whether records are due by the clock: also of a lease that is paid and cannot be metered, so that its renter hears of it.
func (l *Lease) tells() bool {
	v := l.Status.Look()
	return v.State == leasestore.Active || v.State == leasestore.Suspended && (v.Reason == ReasonUnmetered || v.Reason == ReasonDead)
}

// enforce holds the lease to its credit: it suspends before the next reading could exceed it, resumes when vouchers have caught up, and
// gives up on a renter that stays away. A lease that nobody can meter is suspended alike. It returns why the lease is over, if it is.
func (l *Lease) enforce(ctx context.Context) *Stop {
	v := l.Status.Look()
	if l.slots != nil {
		return l.enforceShared(v)
	}
	why := l.Guard.hindrance(&v)
	switch v.State {
	case leasestore.Active:
		if why == "" && l.Guard.bills() { // a voucher may have come between the reading that stopped the bill and now
			l.Balance.Remind(v)
			return nil
		}
		if why == "" { // it was paid after its devices had been suspended: see guard.backstop
			defer l.Inbox.Wake()
			why = reasonUnpaid
		}
		if err := l.suspend(ctx, why); err != nil {
			return l.failed(ctx, endedFor(why)+", and could not be suspended", err)
		}
		l.Suspension.start()
		l.starve(why)
	case leasestore.Suspended:
		if why == "" && !l.Balance.Claims(true) { // another one that went on meanwhile took what was left
			why = v.Reason
		}
		if why == "" {
			if err := l.resume(ctx); err != nil {
				return l.failed(ctx, "could not be resumed", err)
			}
			if l.Suspension.starved {
				l.health.watchdog.Resumed(l.Suspension.since)
			}
			return nil
		}
		if why != v.Reason {
			if err := l.suspendFor(ctx, v.Reason, why); err != nil {
				return l.failed(ctx, endedFor(why)+", and could not be suspended", err)
			}
		}
		if l.Records.unwritten() { // it is our fault that nothing counts
			l.Suspension.start()
		}
		if l.Suspension.since.IsZero() { // suspended by an earlier process
			l.Suspension.startAt(leasestore.SuspendedSince(l.Suspension.Earlier, time.Now(), l.Deps.Timing.SuspendTimeout))
		}
		l.starve(why)
		if time.Since(l.Suspension.since) >= l.Deps.Timing.SuspendTimeout {
			return &Stop{Reason: fmt.Sprintf("%s for %s", endedFor(why), l.Deps.Timing.SuspendTimeout)}
		}
		l.Guard.armBackstop() // where its command failed
	}
	return nil
}

// failed is why a lease is over whose command failed: its own failure, unless the
// command was cut off since the process stops, or is another gateway's to give.
func (l *Lease) failed(ctx context.Context, reason string, err error) *Stop {
	if l.Fence.Tenure != nil && l.Fence.Tenure.Err() != nil {
		l.Fence.Lost.Store(true)
	}
	switch {
	case l.Fence.Lost.Load():
		return &Stop{Reason: "another gateway runs it"}
	case ctx.Err() != nil:
		return &Stop{Reason: "the provider stops", Keep: true}
	}
	l.Deps.Log.Error("a command on a lease's devices failed: it ends", "lease", l.ID, "reason", reason, "error", err)
	return &Stop{Reason: reason}
}

// suspendFor changes why a lease is suspended. What was dead may never have been, whatever its command said.
func (l *Lease) suspendFor(ctx context.Context, before, why string) error {
	if before == ReasonDead {
		l.Devices.Given.Store(true)
		return l.suspend(ctx, why)
	}
	l.Records.Enter(ctx, leasestore.Suspended, why)
	return nil
}

// endedFor is what is said of a lease that ends because it was suspended.
func endedFor(why string) string {
	if why == reasonUnpaid {
		return "unpaid"
	}
	return why
}

// start has the lease end if it is still suspended when the renter's time is up.
func (s *suspension) start() {
	s.starved = false
	s.startAt(time.Now())
}

// starve has a suspension count from earlier on in which the lease could not be metered: by all of that kind before it.
func (l *Lease) starve(why string) {
	if why == ReasonUnmetered && !l.Suspension.starved {
		l.Suspension.starved = true
		l.Suspension.startAt(l.health.watchdog.Since(l.Suspension.since))
	}
}

func (s *suspension) startAt(since time.Time) {
	s.since = since
	left := s.Deps.Timing.SuspendTimeout - time.Since(since)
	if s.timer == nil {
		s.timer = time.AfterFunc(left, s.Inbox.Wake)
		return
	}
	s.timer.Reset(left)
}

// suspend stops the meter and the renter's use of its devices. It waits for no
// disk, and for a server no longer than records.inCredit: what cannot be written now is tried again.
func (l *Lease) suspend(ctx context.Context, why string) error {
	l.Meter.Pause() // before the command: a renter does not pay for a slow suspension
	if err := l.Records.Make(ctx, false); l.Fence.Lost.Load() {
		return err // the lease is another gateway's, and so are its devices
	}
	if err := l.Fence.Command(ctx, l.Devices.Suspend); err != nil && (l.Fence.Lost.Load() || why != ReasonDead && !l.health.liveness.Lifeless(ctx, l.Allocation, l.Deps.asks())) {
		return err
	}
	l.Records.Enter(ctx, leasestore.Suspended, why)
	l.Guard.armBackstop() // where its command failed
	return nil
}

// handOver has the devices of a lease that an earlier process ran in the renter's hands, before a second of them is billed: whoever
// suspended them may have died before the database took it. It returns why the lease is over, if they cannot be.
func (l *Lease) handOver(ctx context.Context) *Stop {
	err := l.Fence.Command(ctx, l.Devices.Resume)
	if err != nil && !l.Fence.Lost.Load() && ctx.Err() == nil { // a command may refuse what is not suspended
		if err = l.Fence.Command(ctx, l.Devices.Suspend); err == nil {
			err = l.Fence.Command(ctx, l.Devices.Resume)
		}
	}
	if err != nil || l.Fence.Lost.Load() || ctx.Err() != nil {
		return l.failed(ctx, "could not be resumed", err)
	}
	l.unsure = false
	return nil
}

func (l *Lease) resume(ctx context.Context) error {
	l.Guard.giving.Store(true)
	defer l.Guard.giving.Store(false)
	if err := l.Fence.Command(ctx, l.Devices.Resume); err != nil {
		if ctx.Err() != nil && !l.Fence.Lost.Load() { // cut off, and perhaps done: the next process resumes what is active, before it is billed
			l.Records.unsaved = true
			l.Records.Show(leasestore.Active, "")
		}
		return err
	}
	l.Guard.resumeMeter() // after the command: the renter has its devices again
	l.Records.Enter(ctx, leasestore.Active, "")
	return nil
}
