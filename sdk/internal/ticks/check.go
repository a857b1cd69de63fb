package ticks

import (
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Ask is what ticks are asked for under: a provider's offer, its price, and how many GPUs are paid for.
type Ask struct {
	Offer wire.SignedOffer
	Price metering.Price
	GPUs  int
}

// Knows reports whether a tick is of the lease that is known, which keeps the offer that it began under.
func (b *Book) Knows(said wire.Tick) bool { return b.Ticking != nil && b.Ticking.Lease == said.LeaseID }

// Check holds a tick to the offer, our clocks and the record before, and returns its lease with that checked. A *Violation is what
// the provider is caught at. Nothing is kept before Accept.
func (c *Channel) Check(said wire.Tick, a Ask) (*Lease, error) {
	lease, err := c.lease(said, a)
	if err != nil {
		return nil, err
	}
	boot := c.Clock.BootID()
	if c.forfeit(lease, a.Price, c.Clock.Now(), boot) {
		c.apart = true
		c.Spans = c.Billed.Part(c.Spans, boot)
		c.Log.Warn("this host's clock may have missed time, after a reboot or a pause: the lease is taken to have run for what was signed for",
			"channel", c.ID, "lease", lease.Lease)
	}
	if err := c.checkRecord(lease, *said.Record); err != nil {
		return nil, err
	}
	if c.Resent { // it was metered before it was heard of, and another lease may have run since
		lease.Checker.Elapsed = min(lease.Checker.Elapsed, lease.ran())
		lease.Together.Elapsed = min(lease.Together.Elapsed, lease.ranTogether())
	}
	return lease, nil
}

// Accept takes a lease whose record was checked into the book, unless that bills for a GPU's time twice. What is billed for is
// booked, and the record is still to be written.
func (c *Channel) Accept(lease *Lease, rec metering.SignedRecord) error {
	spans, err := c.bookOnce(lease, rec)
	if err != nil {
		return err
	}
	if old := c.Ticking; old == nil || old.Lease != lease.Lease {
		c.Other = uint256.Int{}
	}
	c.Ticking, c.Spans = lease, spans
	return nil
}

// lease is the one that a tick is of: ours, or one that has just begun.
func (c *Channel) lease(said wire.Tick, a Ask) (*Lease, error) {
	if c.Knows(said) {
		kept := *c.Ticking
		return &kept, nil
	}
	if len(said.Devices) != a.GPUs {
		return nil, Violationf("%w: %d in the lease, %d were paid", verify.ErrDevices, len(said.Devices), a.GPUs)
	}
	for _, uuid := range said.Devices {
		if uuid == "" || uuid != peer.Printable(uuid) {
			return nil, Violationf("%w: a device is called %.60q", peer.ErrProtocol, uuid)
		}
	}
	p := c.Tick
	before, err := a.before(p.Base)
	if err != nil {
		return nil, err
	}
	if said.Record.OwedBefore.Gt(&before) {
		return nil, Violationf("%w: the lease begins with %s owed, %s was charged", peer.ErrDemand, said.Record.OwedBefore.Dec(), p.Base.Dec())
	}
	earlier, err := a.earlier(c.Book, *said.Record)
	if err != nil {
		return nil, err
	}
	if err := c.hasPassed(earlier, *said.Record); err != nil {
		return nil, err
	}
	each, together := a.startOf(c.Book, *said.Record, earlier)
	kept, err := c.overfull()
	if err != nil {
		return nil, err
	}
	return &Lease{
		Lent:  max(c.Ticking.ahead(p), c.unpassed(earlier, p, len(said.Devices))),
		Began: each.Start, BeganBoot: p.Boot, Together: together,
		Lease: said.LeaseID, Offer: a.Offer.Document, Devices: said.Devices, OwedBefore: said.Record.OwedBefore,
		Checker: verify.State{BootID: p.Boot, Start: each.Start, Owed: said.Record.OwedBefore, Kept: kept},
	}, nil
}

// before is what may be owed of earlier leases where so much was charged: of one that read its GPUs late, what is over
// its ceiling is charged with the next tick. Our clock counts that as time of theirs.
func (a Ask) before(charged uint256.Int) (uint256.Int, error) {
	if charged.IsZero() {
		return charged, nil
	}
	late, err := a.Price.Charge(uint64(a.GPUs) * uint64(lateIn(a.Offer.Offer)))
	late.Add(&late, &charged)
	return late, err
}

// earlier is what a new lease's first record that is shown says is owed for all before it: for the leases before, and in
// records of its own that were never shown. It may only have cost what was charged already.
func (a Ask) earlier(b *Book, rec metering.SignedRecord) (uint256.Int, error) {
	p := b.Tick
	added := uint64(max(0, rec.Evidence.Nanos))
	if added > rec.Nanos {
		return uint256.Int{}, Violationf("%w: %d ns are new of %d", verify.ErrBackwards, added, rec.Nanos)
	}
	earlier, err := a.Price.Charge(rec.Nanos - added)
	if err != nil {
		return earlier, err
	}
	most, err := a.before(p.Base)
	if err != nil {
		return earlier, err
	}
	if b.Found { // it may have run on since the claim, and have records that we lost: as far as this tick is signed for
		most = p.Most
	}
	if earlier.Add(&earlier, &rec.OwedBefore); earlier.Gt(&most) {
		return earlier, Violationf("%w: %s owed before this tick, %s was charged", peer.ErrDemand, earlier.Dec(), p.Base.Dec())
	}
	return earlier, nil
}

// hasPassed refuses a new lease that says of the time before it, which no record that we saw states, that more was used than
// passed on our clock since the lease before: the allowance for a reading that came late would be taken at every lease.
func (c *Channel) hasPassed(earlier uint256.Int, rec metering.SignedRecord) error {
	l := c.Ticking
	if l == nil || c.Found {
		return nil
	}
	now := &Pending{Asked: c.Clock.Now(), Boot: c.Clock.BootID(), Prior: c.Tick.Prior} // it may have begun long after it was asked for
	tolerance := int64(c.allowance())
	over := c.unpassed(earlier, now, len(rec.Evidence.Devices))
	for _, d := range rec.Evidence.Devices {
		over = max(over, d.Total-d.Nanos.Allocated-l.each().since(now, l.reserved(now.Prior, metering.Price{}, 1)))
	}
	if over > tolerance {
		return Violationf("%w: %s owed before this tick is %s more GPU time than passed since lease %s", verify.ErrClock, earlier.Dec(), time.Duration(over), l.Lease)
	}
	return nil
}

// startOf is where our clocks start for a lease, of each GPU and of all together: when it was asked for. One that ran
// before, as for a renter that lost its database, began so much earlier as its record says.
func (a Ask) startOf(b *Book, rec metering.SignedRecord, earlier uint256.Int) (each, together leaseClock) {
	p, before := b.Tick, rec.Nanos-uint64(max(0, rec.Evidence.Nanos))
	idle, ofOne := a.idle(b, rec, earlier)
	ran, ofAll := int64(0), idle+int64(min(before, maxLasts)/uint64(a.GPUs))
	for _, d := range rec.Evidence.Devices {
		ran = max(ran, d.Total-d.Nanos.Allocated+ofOne)
		if b.Found { // it may be the copy of an answer from before
			ran, ofAll = max(ran, p.Asked.Wall-d.From.Wall), max(ofAll, p.Asked.Wall-d.From.Wall)
		}
	}
	each.set(ran, p.Asked, p.Boot)
	together.set(ofAll, p.Asked, p.Boot)
	each.Elapsed, together.Elapsed = 0, 0 // no record was checked
	return each, together
}

// idle is for how long all GPUs of a lease can have run, or one of them alone, between
// its record before and this tick, in ns: while the voucher before covered it.
func (a Ask) idle(b *Book, rec metering.SignedRecord, earlier uint256.Int) (all, one int64) {
	if rec.Sequence <= 1 {
		return 0, 0
	}
	p, late := b.Tick, int64(0)
	if !p.Base.IsZero() {
		late = int64(lateIn(a.Offer.Offer))
	}
	all = int64(covered(p.Prior, earlier, a.Price, a.GPUs))
	all, one = late+all, late+all*int64(a.GPUs)
	if l := b.Ticking; l != nil && !b.Found {
		all = min(all, l.together().since(p, l.reserved(p.Prior, a.Price, len(l.Devices))))
		one = min(one, l.each().since(p, l.reserved(p.Prior, a.Price, 1)))
	}
	return all, one
}

// checkRecord checks a record and remembers it in lease.
func (c *Channel) checkRecord(lease *Lease, rec metering.SignedRecord) error {
	state, err := lease.Checker.Skip(rec)
	if err != nil {
		return &Violation{err}
	}
	checker, err := c.checker(lease, state)
	if err != nil {
		return err
	}
	if err := checker.Check(rec); err != nil {
		return &Violation{err}
	}
	lease.Checker = checker.State()
	all := &lease.Together
	all.Elapsed = max(0, c.Clock.Now().Boot-all.Start.Boot)
	if most := all.Elapsed + int64(c.tolerance(lease)); lease.ranTogether() > most {
		return Violationf("lease %s, record %d: %w: %d ns over %d GPUs, and of each at most %d ns were paid for, or passed here",
			rec.LeaseID, rec.Sequence, verify.ErrClock, rec.Nanos, len(lease.Devices), most)
	}
	return nil
}

// tolerance is by how much a lease may run ahead of our clock.
func (c *Channel) tolerance(l *Lease) time.Duration {
	return max(0, c.allowance()-time.Duration(l.Lent))
}

// checker of a lease's records, which are as many as there are ticks: no offer says how long these are.
func (c *Channel) checker(lease *Lease, state verify.State) (*verify.Checker, error) {
	offer, err := wire.ParseOffer(lease.Offer)
	if err != nil {
		return nil, fmt.Errorf("channel %s: its offer on disk does not parse; restore the database from its backup: %w", c.ID, err)
	}
	unit, err := metering.ParseUnit(offer.Unit)
	if err != nil {
		return nil, err
	}
	checker, err := verify.Resume(verify.Config{
		Key: common.Address(offer.Meter), Tolerance: c.tolerance(lease), Clock: c.Clock,
		RecordEvery: metering.MinRecordEvery,
		Lease: offer.Meters(metering.Lease{
			ID: lease.Lease, ChannelID: c.ID, OfferHash: offer.Hash, ChainID: c.Terms.ChainID, Escrow: c.Terms.Escrow,
			Price: metering.Price{Amount: offer.Amount.Int, Unit: unit}, OwedBefore: lease.OwedBefore, Devices: lease.Devices,
		}),
	}, state)
	if err != nil {
		return nil, &Violation{fmt.Errorf("%w: %w", peer.ErrProtocol, err)}
	}
	return checker, nil
}

// overfull is by how many bytes the records of the lease before take more than its
// time allows: a new lease at each tick has no more room than one that goes on.
func (c *Channel) overfull() (uint64, error) {
	last := c.Ticking
	if last == nil {
		return 0, nil
	}
	checker, err := c.checker(last, last.Checker)
	if err != nil {
		return 0, err
	}
	return checker.Overfull(), nil
}
