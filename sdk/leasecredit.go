package sdk

import (
	"context"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// leaseCredit bounds what a lease may owe before it is suspended: postpaid or prepaid.
type leaseCredit interface {
	// limit is the most that may be owed, before the deposit bounds it; left is what the payer's other channels leave of the credit.
	limit(v *leaseView, left uint256.Int) uint256.Int
	// mayResume reports whether enough is paid that a lease that was suspended unpaid goes on.
	mayResume(l *lease, v leaseView) bool
	// sampled acts on a reading of an active lease that is within its limit.
	sampled(l *lease, v *leaseView)
	// quantumDone reports whether a record is due by what was metered.
	quantumDone(l *lease) bool
	// postpaid reports whether the lease owes out of the credit that its payer's leases share: it is billed to its last reading, the
	// clock cuts its records, and it is settled when it ends.
	postpaid() bool
}

// postpaid is the credit of a session: vouchers follow what records state.
type postpaid struct{}

func (postpaid) postpaid() bool          { return true }
func (postpaid) quantumDone(*lease) bool { return false }

// limit is what is vouchered and the credit. Where the payer's other channels leave no credit, only what is collectible counts: or
// each of them would give a little more.
func (postpaid) limit(v *leaseView, left uint256.Int) (limit uint256.Int) {
	if left.IsZero() {
		return v.collectible
	}
	limit.Add(&v.accepted, &left)
	return limit
}

// sampled asks for a record where a voucher is due: the renter pays what records state, and the next one by the clock may come too late.
func (postpaid) sampled(l *lease, v *leaseView) {
	if v.need == 0 && l.wants(v, l.Debt()) {
		l.cutNow()
	}
}

// mayResume reports whether at least half of the credit is free again, so that a lease does not flap at its limit.
func (postpaid) mayResume(l *lease, v leaseView) bool {
	var want, least uint256.Int
	half := l.left() // of the credit that the payer's other channels leave
	half.Rsh(&half, 1)
	least.Rsh(&l.maxDebt, 3)
	if l.share.Load() != nil { // others leave no more of it, whoever pays
		least, _ = l.price.Charge(uint64(len(l.allocation.Devices)) * uint64(4*l.deps.timing.tick))
	}
	if half.Lt(&least) {
		half = least // the rest must be paid in advance
	}
	owed, err := l.owedAt(l.used()) // also what no record could be stored of
	if err != nil {
		return false
	}
	want.Add(&owed, &half)
	limit := l.limit(&v)
	return !want.Gt(&limit)
}

// prepaid is the credit of a channel of x402: a lease may use what requests have reserved. Its records state so many device
// nanoseconds and are cut by what was metered: between two requests nothing is charged, so that what the client believes to have
// been charged stays right.
type prepaid uint64

func (prepaid) postpaid() bool                                { return false }
func (prepaid) limit(v *leaseView, _ uint256.Int) uint256.Int { return v.reserved }

// quantumDone reports whether a quantum was metered since the last record.
func (q prepaid) quantumDone(l *lease) bool {
	return l.State() == leasestore.Active && uint64(l.meter.Allocated()) >= l.look().nanos+uint64(q)
}

func (q prepaid) sampled(l *lease, _ *leaseView) {
	if q.quantumDone(l) {
		l.Wake()
	}
}

// mayResume reports whether what is reserved pays for another quantum.
func (q prepaid) mayResume(l *lease, v leaseView) bool {
	owed, err := l.owedAt(v.nanos + uint64(q))
	return err == nil && !owed.Gt(&v.reserved)
}

// prepay has a new lease run on what is reserved for it, base units, in records of a quantum of device nanoseconds.
func (l *lease) prepay(quantum uint64, reserved uint256.Int) {
	l.maxDebt.Clear()
	l.credit, l.view.reserved = prepaid(quantum), reserved
}

// reserve raises what a prepaid lease may use.
func (l *lease) reserve(most uint256.Int) {
	l.update(func(v *leaseView) { v.reserved = most })
	l.Wake()
}

// cutNow asks for a record of what was metered, a quantum or not.
func (l *lease) cutNow() { l.tell(func(m *leaseMail) { m.cut = true }) }

// sample has the devices read from now on, whatever state they are in. Of a lease
// that lasts for one request they are read before the request is served, and the
// request waits for that: nil if nothing of it could be metered.
func (l *lease) sample(ctx context.Context) *metering.Sampled {
	if l.read == nil {
		return l.deps.sampling.Attend(l.meter, 0, l)
	}
	defer close(l.read)
	sampled, err := l.deps.sampling.AddRead(ctx, l.meter, 0, l)
	if err != nil {
		l.deps.log.Error("a request is not served: its GPUs cannot be metered", "lease", l.id, "error", err)
	}
	return sampled
}

// open lets the renter have its devices when they were looked at.
func (l *lease) open(looked <-chan struct{}) {
	select {
	case <-looked:
	case <-l.done:
	}
	close(l.opened)
}

// endSampling reads no more. The devices of a lease that was asked to end are read
// a last time, for the time up to that: or leases shorter than a tick would be free,
// however many. What a channel has paid for in windows is not: see prepaid.
func (l *lease) endSampling(req stopRequest) {
	if l.sampled == nil {
		return
	}
	if req.at != nil {
		l.sampled.Finish(*req.at)
	}
	l.sampled.Stop()
}
