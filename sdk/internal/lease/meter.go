package lease

import (
	"context"
	"encoding/json"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/sharing"
	"github.com/gpupay/gpupay/sdk/wire"
)

// meterOf is the meter of a lease, fresh, or as the last one saved it.
func (l *Lease) meterOf(services sharing.Services, a gpu.Allocation, offer wire.Offer, saved json.RawMessage) (err error) {
	if a.Shared {
		s := services[offer.ClassID()]
		if s == nil {
			return OverError("its GPUs are not shared here any more")
		}
		l.slots, err = s.NewLease(l.ID, l.Terms.Payer, offer.Share.MaxTime(), a.Access, saved)
		l.Meter = l.slots
		return err
	}
	own, err := sharing.NewOwn(a.Devices, offer, saved)
	l.own, l.Meter = own.Meter, own
	return err
}

// join has a lease that shares its devices take requests.
func (l *Lease) join() (err error) {
	if l.slots == nil {
		return nil
	}
	if l.looked, err = l.slots.Join(l); err != nil {
		return OverError(err.Error()) // the service has other slots than it began with
	}
	return nil
}

// TakeSlot has a request that is paid by itself take a slot, of a lease that lasts for it.
func TakeSlot(ctx context.Context, l *Lease) (*sharing.Request, error) {
	if l.slots == nil {
		return nil, wire.NotServed.With("lease %s shares no GPUs", l.ID)
	}
	return l.slots.Take(ctx)
}

// leave is when nothing of the lease is measured any more.
func (l *Lease) leave() {
	if l.slots != nil {
		l.slots.Leave()
	}
}

// endRequests has no request of the lease run any more: those that it ends with are billed up to then, those with which the process stops
// are not. What ended waits for the readings by which it is billed: or leases shorter than a tick would be free, however many.
func (l *Lease) endRequests(req Stop) {
	cause, patience := sharing.ErrReleased, l.Deps.Timing.Tick+l.Deps.Timing.CallTimeout
	if req.Keep {
		cause = sharing.ErrStopped
	}
	l.slots.Close(cause, patience)
}

// Observed has a lease's requests end that have used up what it may owe, and a record made where a voucher is due and it would say more than
// the one before. It is not left to the lease's goroutine, which may be waiting for a disk.
func (l *Lease) Observed() {
	l.Balance.account.Tally(&l.Balance)
	v := l.Status.Look()
	if v.State != leasestore.Active {
		return
	}
	if l.Balance.exhausted(&v) {
		l.slots.Stop(sharing.ErrCredit)
		l.Inbox.Wake()
	}
	if nanos := uint64(l.Meter.Allocated()); nanos > v.Nanos && l.Credit.Postpaid() {
		l.Credit.sampled(&l.Balance, &v)
		l.Balance.write(nanos, &v)
	}
}

// write has a record be made once half of the credit stands in none: several requests that end at once use more than Covers left for one.
func (b *balance) write(nanos uint64, v *View) {
	var most uint256.Int
	most.Add(&v.Owed, most.Rsh(&b.MaxDebt, 1))
	if owed, err := b.owedAt(nanos); err == nil && !owed.Lt(&most) {
		b.Inbox.CutNow()
	}
}

// Covers reports whether another request may begin: what is vouchered and the credit cover it for two ticks beside all others, and what
// no record on disk states is within the credit. So a process that is killed loses no more than that, and the request that ended last.
func (l *Lease) Covers() bool {
	v := l.Status.Look()
	if v.State != leasestore.Active {
		return false
	}
	most := l.Balance.used() + l.Balance.ahead() + uint64(l.slots.Another(2*l.Deps.Timing.Tick))
	owed, err := l.Balance.owedAt(most)
	limit := l.Balance.Limit(&v)
	if !l.Credit.Postpaid() { // of one request, which states all of it as it ends
		return err == nil && !owed.Gt(&limit)
	}
	unwritten := v.Owed
	unwritten.Add(&unwritten, &l.MaxDebt)
	return err == nil && !owed.Gt(&limit) && !owed.Gt(&unwritten)
}

// lookAgain is how often a request that waits looks at the lease's money: what runs may end, too.
const lookAgain = 50 * time.Millisecond

// Affords waits until the lease covers another request, and has what it used be stated meanwhile: what no record says cannot be paid. When
// ctx is over, it says what has to be paid.
func (l *Lease) Affords(ctx context.Context) error {
	for !l.Covers() {
		v, changed := l.Status.Snapshot()
		if v.State != leasestore.Active {
			return sharing.Unknown.With("this lease is %s", v.State)
		}
		if uint64(l.Meter.Allocated()) > v.Nanos {
			l.Inbox.CutNow()
		}
		again := time.NewTimer(lookAgain)
		select {
		case <-ctx.Done():
			again.Stop()
			return l.unpaid()
		case <-changed:
		case <-again.C:
		}
		again.Stop()
	}
	return nil
}

// unpaid is what a client must do before it may ask again.
func (l *Lease) unpaid() error {
	needs := l.Balance.Needs(l.Status.Look())
	problem := wire.InsufficientBalance.With("channel %s has used what it may owe: pay for what the lease's records state, %s base units in all, and ask again; where its deposit of %s is less, top it up",
		needs.ChannelID, needs.RequiredCumulative.Dec(), needs.Deposit.Dec())
	problem.Needs = &needs
	return problem
}

// enforceShared asks for vouchers of a lease that shares its devices, and ends it where what it owes stands for too long. It is never
// suspended: who does not pay has no requests served, and is billed nothing.
func (l *Lease) enforceShared(v View) *Stop {
	if l.Credit.Postpaid() {
		l.Balance.Remind(v)
	}
	if l.Covers() || l.slots.Busy() {
		l.Suspension.since = time.Time{}
		return nil
	}
	if l.Suspension.since.IsZero() {
		l.Suspension.start()
	}
	if time.Since(l.Suspension.since) >= l.Deps.Timing.SuspendTimeout {
		return &Stop{Reason: "unpaid for " + l.Deps.Timing.SuspendTimeout.String()}
	}
	return nil
}
