package lease

import (
	"context"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// Credit bounds what a lease may owe before it is suspended: postpaid or prepaid.
type Credit interface {
	// limit is the most that may be owed, before the deposit bounds it; left is what the payer's other channels leave of the credit.
	limit(v *View, left uint256.Int) uint256.Int
	// mayResume reports whether enough is paid that a lease that was suspended unpaid goes on.
	mayResume(l *Lease, v View) bool
	// sampled acts on a reading of an active lease that is within its limit.
	sampled(l *Lease, v *View)
	// quantumDone reports whether a record is due by what was metered.
	quantumDone(l *Lease) bool
	// postpaid reports whether the lease owes out of the credit that its payer's leases share: it is billed to its last reading, the
	// clock cuts its records, and it is settled when it ends.
	Postpaid() bool
}

// Postpaid is the credit of a session: vouchers follow what records state.
type Postpaid struct{}

func (Postpaid) Postpaid() bool { return true }

func (Postpaid) quantumDone(*Lease) bool { return false }

// limit is what is vouchered and the credit. Where the payer's other channels leave no credit, only what is collectible counts: or
// each of them would give a little more.
func (Postpaid) limit(v *View, left uint256.Int) (limit uint256.Int) {
	if left.IsZero() {
		return v.Collectible
	}
	limit.Add(&v.Accepted, &left)
	return limit
}

// sampled asks for a record where a voucher is due: the renter pays what records state, and the next one by the clock may come too late.
func (Postpaid) sampled(l *Lease, v *View) {
	if v.Need == 0 && l.wants(v, l.Debt()) {
		l.CutNow()
	}
}

// mayResume reports whether at least half of the credit is free again, so that a lease does not flap at its limit.
func (Postpaid) mayResume(l *Lease, v View) bool {
	var want, least uint256.Int
	half := l.left() // of the credit that the payer's other channels leave
	half.Rsh(&half, 1)
	least.Rsh(&l.MaxDebt, 3)
	if l.Share.Load() != nil { // others leave no more of it, whoever pays
		least, _ = l.Price.Charge(uint64(len(l.Allocation.Devices)) * uint64(4*l.Deps.Timing.Tick))
	}
	if half.Lt(&least) {
		half = least // the rest must be paid in advance
	}
	owed, err := l.owedAt(l.used()) // also what no record could be stored of
	if err != nil {
		return false
	}
	want.Add(&owed, &half)
	limit := l.Limit(&v)
	return !want.Gt(&limit)
}

// Prepaid is the credit of a channel of x402: a lease may use what requests have reserved. Its records state so many device
// nanoseconds and are cut by what was metered: between two requests nothing is charged, so that what the client believes to have
// been charged stays right.
type Prepaid uint64

func (Prepaid) Postpaid() bool { return false }

func (Prepaid) limit(v *View, _ uint256.Int) uint256.Int { return v.Reserved }

// quantumDone reports whether a quantum was metered since the last record.
func (q Prepaid) quantumDone(l *Lease) bool {
	return l.State() == leasestore.Active && uint64(l.Meter.Allocated()) >= l.Look().Nanos+uint64(q)
}

func (q Prepaid) sampled(l *Lease, _ *View) {
	if q.quantumDone(l) {
		l.Wake()
	}
}

// mayResume reports whether what is reserved pays for another quantum.
func (q Prepaid) mayResume(l *Lease, v View) bool {
	owed, err := l.owedAt(v.Nanos + uint64(q))
	return err == nil && !owed.Gt(&v.Reserved)
}

// Prepay has a new lease run on what is reserved for it, base units, in records of a quantum of device nanoseconds.
func (l *Lease) Prepay(quantum uint64, reserved uint256.Int) {
	l.MaxDebt.Clear()
	l.Credit, l.View.Reserved = Prepaid(quantum), reserved
}

// Reserve raises what a prepaid lease may use.
func (l *Lease) Reserve(most uint256.Int) {
	l.Update(func(v *View) { v.Reserved = most })
	l.Wake()
}

// CutNow asks for a record of what was metered, a quantum or not.
func (l *Lease) CutNow() { l.post(func(m *Inbox) { m.cut = true }) }

// sample has the devices read from now on, whatever state they are in. Of a lease
// that lasts for one request they are read before the request is served, and the
// request waits for that: nil if nothing of it could be metered.
func (l *Lease) sample(ctx context.Context) *metering.Sampled {
	if l.Read == nil {
		return l.Deps.sampling.Attend(l.Meter, 0, l)
	}
	defer close(l.Read)
	sampled, err := l.Deps.sampling.AddRead(ctx, l.Meter, 0, l)
	if err != nil {
		l.Deps.Log.Error("a request is not served: its GPUs cannot be metered", "lease", l.ID, "error", err)
	}
	return sampled
}

// open lets the renter have its devices when they were looked at.
func (l *Lease) open(looked <-chan struct{}) {
	select {
	case <-looked:
	case <-l.Done:
	}
	close(l.opened)
}

// endSampling reads no more. The devices of a lease that was asked to end are read
// a last time, for the time up to that: or leases shorter than a tick would be free,
// however many. What a channel has paid for in windows is not: see prepaid.
func (l *Lease) endSampling(req Stop) {
	if l.sampled == nil {
		return
	}
	if req.At != nil {
		l.sampled.Finish(*req.At)
	}
	l.sampled.Stop()
}

// Allow tells the lease its share of its payer's credit.
func (l *Lease) Allow(share uint256.Int) {
	if was := l.Share.Swap(&share); was == nil || *was != share {
		l.Wake()
	}
}

// Claims has what a lease may use before it is read again off the credit of its payer's others, or no more. It is false,
// and nothing is taken, where the credit has no room for it: of several that go on at once only so many do as it has.
func (l *Lease) Claims(serves bool) bool {
	return l.account.Claim(l, serves, func(debt, ahead uint256.Int) bool {
		v := l.Look()
		return v.State == leasestore.Active || !l.exceeds(l.limitOf(&v, l.leftOf(debt, ahead)))
	})
}

// ChannelID is its channel.
func (l *Lease) ChannelID() common.Hash { return l.Terms.ID() }

// joinCredit counts the lease's debt with that of its payer's other channels, unless it has a credit for itself: a node's is told
// its share, and what is paid in advance takes none.
func (l *Lease) joinCredit(owing []channel.State) {
	if l.Deps.Accounts != nil && l.Credit.Postpaid() {
		l.account = l.Deps.Accounts.Join(l.Terms.Payer, l, owing)
	}
}

// LeaveCredit undoes joinCredit. The lease's debt stands with its channel.
func (l *Lease) LeaveCredit() { l.Deps.Accounts.Leave(l.Terms.Payer, l.account, l) }

// Debt is what was used and is not vouchered, of the newest reading.
func (l *Lease) Debt() uint256.Int { return l.debtAfter(0) }

// DebtAhead is the debt two ticks of each GPU later: see exhausted.
func (l *Lease) DebtAhead() uint256.Int { return l.debtAfter(l.ahead()) }

func (l *Lease) debtAfter(nanos uint64) uint256.Int {
	v := l.Look()
	owed := v.Owed
	if l.Meter != nil {
		if then, err := l.owedAt(l.used() + nanos); err == nil && then.Gt(&owed) {
			owed = then
		}
	}
	return u256.SaturatingSub(owed, v.Accepted)
}

// left is what of the credit the payer's other channels leave for this lease.
func (l *Lease) left() uint256.Int { return l.leftOf(l.account.Others(l)) }

func (l *Lease) leftOf(debt, ahead uint256.Int) uint256.Int {
	if share := l.Share.Load(); share != nil {
		return u256.Min(*share, l.MaxDebt)
	}
	return u256.SaturatingSub(u256.SaturatingSub(l.MaxDebt, debt), ahead)
}
