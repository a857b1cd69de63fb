package lease

import (
	"sort"
	"sync/atomic"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// balance is what a lease owes and may owe, by what was used, vouchered and promised: a payercredit.Lease.
type balance struct {
	*core
	Share   atomic.Pointer[uint256.Int] // base units of the credit that it has, where a node meters it; nil: not told
	account *payercredit.Account        // of its payer, whose debts share the credit; nil: it has the credit for itself
}

// State is the lease's.
func (b *balance) State() leasestore.State { return b.Status.State() }

// Wake has the lease look at its money.
func (b *balance) Wake() { b.Inbox.Wake() }

// Reserve raises what a prepaid lease may use.
func (b *balance) Reserve(most uint256.Int) {
	b.Status.Update(func(v *View) { v.Reserved = most })
	b.Wake()
}

// Allow tells the lease its share of its payer's credit.
func (b *balance) Allow(share uint256.Int) {
	if was := b.Share.Swap(&share); was == nil || *was != share {
		b.Wake()
	}
}

// Claims has what a lease may use before it is read again off the credit of its payer's others, or no more. It is false,
// and nothing is taken, where the credit has no room for it: of several that go on at once only so many do as it has.
func (b *balance) Claims(serves bool) bool {
	return b.account.Claim(b, serves, func(debt, ahead uint256.Int) bool {
		v := b.Status.Look()
		return v.State == leasestore.Active || !b.exceeds(b.limitOf(&v, b.leftOf(debt, ahead)))
	})
}

// join counts the lease's debt with that of its payer's other channels, unless it has a credit for itself: a node's is told
// its share, and what is paid in advance takes none.
func (b *balance) join(owing []channel.State) {
	if b.Deps.Accounts != nil && b.Credit.Postpaid() {
		b.account = b.Deps.Accounts.Join(b.Terms.Payer, b, owing)
	}
}

// Leave undoes join. The lease's debt stands with its channel.
func (b *balance) Leave() { b.Deps.Accounts.Leave(b.Terms.Payer, b.account, b) }

// Debt is what was used and is not vouchered, of the newest reading.
func (b *balance) Debt() uint256.Int { return b.debtAfter(0) }

// DebtAhead is the debt two ticks of each GPU later: see exhausted.
func (b *balance) DebtAhead() uint256.Int { return b.debtAfter(b.ahead()) }

func (b *balance) debtAfter(nanos uint64) uint256.Int {
	v := b.Status.Look()
	owed := v.Owed
	if b.Meter != nil {
		if then, err := b.owedAt(b.used() + nanos); err == nil && then.Gt(&owed) {
			owed = then
		}
	}
	return u256.SaturatingSub(owed, v.Accepted)
}

// left is what of the credit the payer's other channels leave for this lease.
func (b *balance) left() uint256.Int { return b.leftOf(b.account.Others(b)) }

func (b *balance) leftOf(debt, ahead uint256.Int) uint256.Int {
	if share := b.Share.Load(); share != nil {
		return u256.Min(*share, b.MaxDebt)
	}
	return u256.SaturatingSub(u256.SaturatingSub(b.MaxDebt, debt), ahead)
}

// Observe tells the lease what its channel holds now. A state that comes late
// takes no newer voucher back: a lease that is paid is never left suspended.
func (b *balance) Observe(s channel.State) {
	b.Status.Update(func(v *View) {
		v.Deposit = s.Deposit
		v.hear(s, b.Deps.Row)
	})
	b.account.Tally(b)
	b.Wake()
}

// Pays tells the lease of a voucher, the newest or an older one. What it says of
// the deposit is not taken: of two that came together, either may be told last.
func (b *balance) Pays(s channel.State) {
	b.Status.Update(func(v *View) { v.hear(s, b.Deps.Row) })
	b.account.Tally(b)
	b.Wake()
}

// Limit is the most that may be owed, and never more than the deposit can pay.
func (b *balance) Limit(v *View) uint256.Int {
	return b.limitOf(v, b.left())
}

func (b *balance) limitOf(v *View, left uint256.Int) uint256.Int {
	return u256.Min(b.Credit.limit(v, left), v.Deposit)
}

// exhausted reports whether the next reading could take the debt over its limit. Two ticks are kept free, of these GPUs and of all that the
// payer's other leases have here: a reading may come late. One that comes later still, up to MaxGap, is billed, and is the provider's own
// risk.
func (b *balance) exhausted(v *View) bool { return b.exceeds(b.Limit(v)) }

func (b *balance) exceeds(limit uint256.Int) bool {
	owed, err := b.owedAt(b.used() + b.ahead())
	return err != nil || owed.Gt(&limit)
}

// ahead is the two ticks of each GPU that are kept free, nanoseconds.
func (b *balance) ahead() uint64 {
	if b.slots != nil {
		return uint64(b.slots.Ahead(2 * b.Deps.Timing.Tick))
	}
	return uint64(len(b.Allocation.Devices)) * uint64(2*b.Deps.Timing.Tick)
}

func (b *balance) owedAt(nanos uint64) (uint256.Int, error) {
	charge, err := b.Price.Charge(nanos)
	if err != nil {
		return uint256.Int{}, err
	}
	var owed uint256.Int
	owed.Add(&b.OwedBefore, &charge)
	return owed, nil
}

// wants reports whether it is time for a voucher: half of what may be used before the lease is suspended is, by it and the payer's other channels.
func (b *balance) wants(v *View, debt uint256.Int) bool {
	ahead, err := b.Price.Charge(b.ahead())
	if err != nil || debt.IsZero() {
		return false
	}
	used, theirs := b.account.Others(b)
	credit := u256.SaturatingSub(b.MaxDebt, theirs)
	if share := b.Share.Load(); share != nil {
		credit, used = *share, uint256.Int{}
	}
	half := u256.SaturatingSub(credit, ahead)
	half.Rsh(&half, 1)
	used.Add(&used, &debt)
	return used.Gt(&half)
}

// Remind asks for a voucher once when it is time, so that a renter that pays on demand is never suspended.
func (b *balance) Remind(v View) {
	var debt uint256.Int
	if v.Owed.Gt(&v.Accepted) {
		debt.Sub(&v.Owed, &v.Accepted)
	}
	wants := b.wants(&v, debt)
	if wants && v.Need == 0 {
		b.Status.Update(func(v *View) { v.Need++ })
	}
	if !wants && v.Need != 0 {
		b.Status.Update(func(v *View) { v.Need = 0 })
	}
}

// timeLeft is how long what may still be owed of a lease serves all of its devices.
func (b *balance) timeLeft() time.Duration {
	v := b.Status.Look()
	owed, err := b.owedAt(b.used())
	limit := b.Limit(&v)
	if err != nil || !limit.Gt(&owed) {
		return 0
	}
	var left uint256.Int
	left.Sub(&limit, &owed)
	const step, most = 100 * time.Millisecond, 24 * time.Hour
	n := sort.Search(int(most/step), func(n int) bool {
		cost, err := b.Price.Charge(uint64(len(b.Allocation.Devices)) * uint64(time.Duration(n)*step))
		return err != nil || cost.Gt(&left)
	})
	return time.Duration(max(n-1, 0)) * step
}

// Needs is what the renter must do before service goes on. Where the deposit is the limit, the amount named is over it: top up first.
func (b *balance) Needs(v View) wire.NeedVoucher {
	required := v.Owed
	var next uint256.Int
	next.Add(&v.Owed, &b.MaxDebt)
	if v.State == leasestore.Suspended && next.Gt(&v.Deposit) {
		required = next
	}
	return wire.NeedVoucher{
		ChannelID:          b.Terms.ID(),
		RequiredCumulative: wire.NewAmount(required),
		AcceptedCumulative: wire.NewAmount(v.Accepted),
		Deposit:            wire.NewAmount(v.Deposit),
	}
}

// Credit bounds what a lease may owe before it is suspended: postpaid or prepaid.
type Credit interface {
	// limit is the most that may be owed, before the deposit bounds it; left is what the payer's other channels leave of the credit.
	limit(v *View, left uint256.Int) uint256.Int
	// mayResume reports whether enough is paid that a lease that was suspended unpaid goes on.
	mayResume(b *balance, v View) bool
	// sampled acts on a reading of an active lease that is within its limit.
	sampled(b *balance, v *View)
	// quantumDone reports whether a record is due by what was metered.
	quantumDone(b *balance) bool
	// postpaid reports whether the lease owes out of the credit that its payer's leases share: it is billed to its last reading, the
	// clock cuts its records, and it is settled when it ends.
	Postpaid() bool
}

// Postpaid is the credit of a session: vouchers follow what records state.
type Postpaid struct{}

func (Postpaid) Postpaid() bool { return true }

func (Postpaid) quantumDone(*balance) bool { return false }

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
func (Postpaid) sampled(b *balance, v *View) {
	if v.Need == 0 && b.wants(v, b.Debt()) {
		b.Inbox.CutNow()
	}
}

// mayResume reports whether at least half of the credit is free again, so that a lease does not flap at its limit.
func (Postpaid) mayResume(b *balance, v View) bool {
	var want, least uint256.Int
	half := b.left() // of the credit that the payer's other channels leave
	half.Rsh(&half, 1)
	least.Rsh(&b.MaxDebt, 3)
	if b.Share.Load() != nil { // others leave no more of it, whoever pays
		least, _ = b.Price.Charge(uint64(len(b.Allocation.Devices)) * uint64(4*b.Deps.Timing.Tick))
	}
	if half.Lt(&least) {
		half = least // the rest must be paid in advance
	}
	owed, err := b.owedAt(b.used()) // also what no record could be stored of
	if err != nil {
		return false
	}
	want.Add(&owed, &half)
	limit := b.Limit(&v)
	return !want.Gt(&limit)
}

// Prepaid is the credit of a lease that is paid in advance: it may use what requests have reserved. Its records state so many device nanoseconds and
// are cut by what was metered: between two requests nothing is charged, so that what the client believes to have been charged stays right.
type Prepaid uint64

func (Prepaid) Postpaid() bool { return false }

func (Prepaid) limit(v *View, _ uint256.Int) uint256.Int { return v.Reserved }

// quantumDone reports whether a quantum was metered since the last record.
func (q Prepaid) quantumDone(b *balance) bool {
	return b.State() == leasestore.Active && uint64(b.Meter.Allocated()) >= b.Status.Look().Nanos+uint64(q)
}

func (q Prepaid) sampled(b *balance, _ *View) {
	if q.quantumDone(b) {
		b.Wake()
	}
}

// mayResume reports whether what is reserved pays for another quantum.
func (q Prepaid) mayResume(b *balance, v View) bool {
	owed, err := b.owedAt(v.Nanos + uint64(q))
	return err == nil && !owed.Gt(&v.Reserved)
}
