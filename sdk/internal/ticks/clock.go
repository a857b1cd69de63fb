package ticks

import (
	"math"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/wire"
)

// leaseClock is for how long a lease may have run, on our clocks.
type leaseClock struct {
	BootID  string           `json:"bootId"`
	Start   metering.Instant `json:"start"`
	Elapsed int64            `json:"elapsed,string"` // ns the lease had run when this was kept
}

// forfeit takes the time away from a lease that it was not paid for: between two ticks a provider meters at most what
// the voucher before still covers, and one reading that comes late. Without it, a renter that was away could be billed
// for all of that time at once. One GPU of several may have run for all of what is covered, while the others were down,
// and all together for no more: each is held to a clock, and so is their sum.
//
// Where our clocks have parted nobody knows how much time they missed: then the lease may have run for all of that, and
// after the tick was asked for for all that its own voucher covers. No provider can bring that about. It reports
// whether they have.
func (b *Book) forfeit(l *Lease, price metering.Price, now metering.Instant, boot string) (apart bool) {
	p, s := b.Tick, &l.Checker
	if p == nil {
		return false
	}
	each := l.each()
	l.Together = l.together()
	hold := func(c *leaseClock, ran int64, gpus int) bool {
		before := min(ran, c.Elapsed)
		missed := s.Sequence > 0 && c.cut(p, before+l.reserved(p.Prior, price, gpus))
		return c.skipAhead(p, before+l.reserved(p.Most, price, gpus), now, boot) || missed
	}
	one, all := hold(&each, l.ran(), 1), hold(&l.Together, l.ranTogether(), len(l.Devices))
	s.BootID, s.Start, s.Elapsed = each.BootID, each.Start, each.Elapsed
	return one || all
}

// cut has the clock say that the lease ran for no longer than most when a tick was
// asked for, and for as long where our clocks have parted.
func (c *leaseClock) cut(p *Pending, most int64) (apart bool) {
	apart = parted(c.BootID, c.Start, p.Boot, p.Asked)
	if apart || most < p.Asked.Boot-c.Start.Boot {
		c.set(most, p.Asked, p.Boot)
	}
	return apart
}

// skipAhead has the clock go on where ours have parted since a tick was asked for: the
// lease may have run for as long as most.
func (c *leaseClock) skipAhead(p *Pending, most int64, now metering.Instant, boot string) (apart bool) {
	if !parted(c.BootID, c.Start, boot, now) {
		c.Start.Wall += int64(min(0, advanced(c.Start, now))) // a wall clock that was set back is compared from there
		return false
	}
	c.set(max(p.Asked.Boot-c.Start.Boot, most), now, boot)
	return true
}

// set has the clock say that at a moment the lease had run for so many ns.
func (c *leaseClock) set(ran int64, at metering.Instant, boot string) {
	*c = leaseClock{boot, metering.Instant{Boot: at.Boot - ran, Mono: at.Mono - ran, Wall: at.Wall - ran}, ran}
}

// parted reports whether our clocks may have missed time between two moments: the host was rebooted, or stopped, as a
// virtual machine is, and its wall clock was set since. Where boots have no names, each process has a clock of its own.
func parted(bootThen string, then metering.Instant, boot string, now metering.Instant) bool {
	missed := advanced(then, now)
	if boot == "" {
		missed = missed.Abs()
	}
	return boot != bootThen || missed > Tolerance/2 // so much in all is within the tolerance
}

// advanced is how far the wall clock went ahead of the one that nobody sets.
func advanced(then, now metering.Instant) time.Duration {
	return time.Duration((now.Wall - now.Boot) - (then.Wall - then.Boot))
}

// ran is for how many ns the lease ran, by the GPU of it that ran the longest.
func (l *Lease) ran() (most int64) {
	for _, d := range l.Checker.Devices {
		most = max(most, d.Total)
	}
	return most
}

// ranTogether is for how many ns the lease ran if all of its GPUs ran alike.
func (l *Lease) ranTogether() int64 {
	return int64(min(l.Checker.Nanos, maxLasts) / uint64(max(1, len(l.Devices))))
}

// since is how many ns passed on our clocks from the lease's newest record until a tick was asked for: another lease
// cannot have run for longer before it. Where these have parted, that is no less than what was signed for.
func (c leaseClock) since(p *Pending, reserved int64) int64 {
	if parted(c.BootID, c.Start, p.Boot, p.Asked) {
		return max(p.Asked.Wall-c.Start.Wall-c.Elapsed, reserved)
	}
	return max(0, p.Asked.Boot-c.Start.Boot-c.Elapsed)
}

// together is the clock that all GPUs of the lease in sum are held to.
func (l *Lease) together() leaseClock {
	if l.Together == (leaseClock{}) { // kept by an earlier version
		return l.each()
	}
	return l.Together
}

// each is the clock that each GPU of the lease is held to.
func (l *Lease) each() leaseClock {
	return leaseClock{l.Checker.BootID, l.Checker.Start, l.Checker.Elapsed}
}

// ahead is by how many ns the channel's leases, this one and those before it, ran
// ahead of our clock when a tick was asked for; zero for no lease.
func (l *Lease) ahead(p *Pending) int64 {
	if l == nil {
		return 0
	}
	each := l.each()
	return max(0, l.Lent+l.ran()-each.Elapsed-each.since(p, l.reserved(p.Prior, metering.Price{}, 1)))
}

// reserved is for how long so many GPUs of a lease could run, in ns, on what is signed for and not charged with a
// record, and how late a reading may be. What was signed for since that record may be many ticks: those that a restored
// database has forgotten, or that others paid for.
func (l *Lease) reserved(signed uint256.Int, price metering.Price, gpus int) int64 {
	late := time.Duration(0)
	if offer, err := wire.ParseOffer(l.Offer); err == nil {
		late = lateIn(offer.Offer)
		if own, err := offer.Price(); err == nil {
			price = own
		}
	}
	return int64(late + lasts(signed, l.Checker.Owed, price, gpus))
}

// lateIn is how late a reading may be under an offer.
func lateIn(offer wire.Offer) time.Duration {
	return time.Duration(max(0, min(offer.MaxGap, wire.MaxGapOfTicks.Milliseconds()))) * time.Millisecond
}

// covered is for how long all of a lease's GPUs can run from what is owed up to
// what is signed for: no tick reserves more than MaxTick of each.
func covered(signed, owed uint256.Int, price metering.Price, gpus int) time.Duration {
	return min(lasts(signed, owed, price, gpus), MaxTick)
}

// maxLasts is more time than any lease takes, and can be added to without overflow.
const maxLasts = math.MaxInt64 / 4

// lasts is how long each of so many GPUs runs from one amount to another.
func lasts(signed, owed uint256.Int, price metering.Price, gpus int) time.Duration {
	hourly, err := price.Charge(uint64(time.Hour))
	if err != nil {
		return 0
	}
	return lastsAt(signed, owed, hourly, gpus)
}

// lastsAt is lasts at a price of a GPU-hour.
func lastsAt(signed, owed, hourly uint256.Int, gpus int) time.Duration {
	if hourly.IsZero() || !signed.Gt(&owed) || gpus < 1 {
		return 0
	}
	var open uint256.Int
	open.Sub(&signed, &owed)
	open.Mul(&open, uint256.NewInt(uint64(time.Hour)))
	open.Div(&open, hourly.Mul(&hourly, uint256.NewInt(uint64(gpus))))
	if open.Gt(uint256.NewInt(maxLasts)) {
		return maxLasts
	}
	return time.Duration(open.Uint64())
}

// hearing is when a tick's record came. What the renter forfeits moves the checker's start, and not when the lease can
// have begun. Where our clocks have parted that is as long ago as it ran, and where its tick was asked for before, as
// long as it may have run since. After a reboot of ours the wall clock tells that too.
func (c *Channel) hearing(l *Lease) billed.Hearing {
	now, boot := c.Clock.Now(), c.Clock.BootID()
	if l.BeganBoot != boot {
		l.Began.Boot, l.BeganBoot = now.Boot-(now.Wall-l.Began.Wall), boot
	}
	if c.apart && c.Resent {
		l.Began.Boot = min(l.Began.Boot, l.Checker.Start.Boot)
	} else if c.apart {
		l.Began.Boot = min(l.Began.Boot, now.Boot-l.ran())
	}
	return billed.Hearing{Boot: boot, Began: l.Began.Boot, Now: now.Boot}
}

// bookOnce refuses to pay for a GPU's time twice, in whatever leases, and returns what the channel is billed for with a
// record. That is booked, and the record is still to be written.
func (c *Channel) bookOnce(l *Lease, rec metering.SignedRecord) ([]billed.Span, error) {
	spans := billed.Add(c.Spans, billed.RealOnly(rec), c.hearing(l))
	if err := c.Billed.Book(c.Terms.Payee, c.ID, spans, c.Tolerance); err != nil {
		return nil, &Violation{err}
	}
	return spans, nil
}
