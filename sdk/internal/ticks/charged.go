package ticks

import (
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/wire"
)

// passed reports whether a base that no record states can be GPU time: all that was charged since the lease began that
// is paid by ticks, that base included, took no longer than passed on our clocks. Without it, a provider that meters
// little and begins a lease at every tick takes the whole ceiling of each.
func (c *Channel) passed(base uint256.Int) bool {
	clock := c.Clock
	if c.Found || !base.Gt(&c.Plain) {
		return true
	}
	now := &Pending{Asked: clock.Now(), Boot: clock.BootID(), Prior: c.Prior}
	return c.unpassed(base, now, 0) <= int64(c.allowance())
}

// unpassed is by how many ns what is charged on a channel, since the lease began that is paid by ticks, ran ahead of
// our clock at a tick; zero for no lease. gpus is how many may have run, if those are more than that lease's.
func (b *Book) unpassed(charged uint256.Int, p *Pending, gpus int) int64 {
	l := b.Ticking
	if l == nil || b.Found {
		return 0
	}
	from := new(uint256.Int).Add(&l.OwedBefore, &b.Other)
	from.AddUint64(from, 1) // a lease's charge is rounded up
	offer, err := wire.ParseOffer(l.Offer)
	if err != nil {
		return 0 // the next record is not checked under it either
	}
	price, err := offer.Price()
	if err != nil {
		return 0
	}
	all := l.together()
	return max(0, l.Lent+int64(lasts(charged, *from, price, max(gpus, len(l.Devices))))-all.Elapsed-all.since(p, l.reserved(p.Prior, price, len(l.Devices))))
}

// Allows reports whether a base that is above what is known can be what was charged with no record that we saw: what a
// lease ran on after its newest one, or what is no tick. All else is a tick that was charged and not answered: no
// provider gets a second voucher for what no record states.
func (c *Channel) Allows(base uint256.Int) bool {
	return !base.Gt(&c.Plain) || !base.Gt(&c.Ceiling) || c.ranFor(c.Open, base)
}

// Plausible reports whether so much can be charged on a channel that is paid by ticks where no record that we saw states it:
// what was signed for what is no tick; up to what the newest record's tick was signed for, time that passed; and what a tick
// whose answer never came can have run for since it was asked for. It is asked at every door by which a server's base
// comes: a tick, another request, a refund. Else whoever meters ticks takes the whole ceiling of each at another one.
func (c *Channel) Plausible(base uint256.Int) bool {
	switch {
	case !c.Ticked || !base.Gt(&c.Charged) || !base.Gt(&c.Plain):
		return true
	case c.ForTick: // and allowed
		return c.passed(base) || c.ranFor(c.Open, base)
	case !base.Gt(&c.Ceiling) && c.passed(base):
		return true
	}
	return c.ranFor(c.Tick, base) || c.ranFor(c.Open, base)
}

// ranFor reports whether a tick that was not answered can have run up to a base since it was asked for. Where our clocks have
// parted it may have for all that it was signed for.
func (c *Channel) ranFor(p *Pending, base uint256.Int) bool {
	if p == nil || base.Gt(&p.Most) {
		return false
	}
	from, clock := p.Base, c.Clock
	if c.Ceiling.Gt(&from) && c.passed(c.Ceiling) { // the lease before ran on until it was begun
		from = c.Ceiling
	}
	now, boot := clock.Now(), clock.BootID()
	tolerance := int64(c.allowance())
	return parted(p.Boot, p.Asked, boot, now) || int64(lastsAt(base, from, p.Hourly, p.GPUs)) <= now.Boot-p.Asked.Boot+tolerance
}

// after is a tick that is given up after another one: both, where the provider has counted nothing in between.
func (p *Pending) after(open *Pending) *Pending {
	both := *p
	if open != nil && open.Base == p.Base && open.Boot == p.Boot {
		both.Asked = open.Asked
		both.Most, both.GPUs = u256.Max(open.Most, p.Most), max(open.GPUs, p.GPUs)
	}
	return &both
}

// GiveUp gives up the tick that was asked for, if one was: it may still be charged.
func (b *Book) GiveUp() {
	if b.Tick != nil {
		b.Open = b.Tick.after(b.Open)
	}
}

// CountOther counts what is charged up to now for what is no tick.
func (b *Book) CountOther(total uint256.Int) {
	if total.Gt(&b.Charged) {
		b.Other.Add(&b.Other, new(uint256.Int).Sub(&total, &b.Charged))
	}
}

// AdoptBase has the next voucher count from a base: what of it is no tick is told apart.
func (b *Book) AdoptBase(base uint256.Int) {
	if !b.Ticked || !base.Gt(&b.Plain) {
		b.CountOther(base)
	}
	b.Charged = base
}
