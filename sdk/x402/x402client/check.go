package x402client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
)

// check holds a tick to the receipt, the offer, our clock and the record before.
func (t *Rental) check(ctx context.Context, b *payment, document []byte) (Tick, *metering.SignedRecord, error) {
	var said wire.Tick
	if len(document) > peer.MaxAnswer || exactjson.Unmarshal(document, &said) != nil || said.Record == nil {
		return Tick{}, nil, violationf("%w: a tick was charged and its record is not there", peer.ErrProtocol)
	}
	rec := said.Record
	if rec.LeaseID != said.LeaseID || said.ChannelID != b.id || !b.booked {
		return Tick{}, nil, violationf("%w: the answer, its record and its receipt are about different things", peer.ErrProtocol)
	}
	lease, err := t.lease(ctx, b, said)
	if err != nil {
		return Tick{}, nil, err
	}
	clock := b.x.w.Clock
	if boot := clock.BootID(); b.forfeit(lease, t.price, clock.Now(), boot) {
		b.clocksParted = true
		b.account.Spans = b.x.w.Billed.Part(b.account.Spans, boot)
		b.x.w.Log.Warn("this host's clock may have missed time, after a reboot or a pause: the lease is taken to have run for what was signed for",
			"channel", b.id, "lease", lease.Lease)
	}
	if err := b.checkRecord(lease, *rec); err != nil {
		return Tick{}, nil, err
	}
	if b.resent { // it was metered before it was heard of, and another lease may have run since
		lease.Checker.Elapsed = min(lease.Checker.Elapsed, lease.ran())
		lease.Together.Elapsed = min(lease.Together.Elapsed, lease.ranTogether())
	}
	var owed uint256.Int
	if base := b.account.Tick.Base; rec.Owed.Gt(&base) {
		owed.Sub(&rec.Owed, &base)
	}
	if b.charge.Gt(&owed) || said.Charged.Int != b.charge { // what is over its ceiling is charged with the next
		return Tick{}, nil, violationf("%w: charged %s, its record adds %s", ErrOvercharged, b.charge.Dec(), owed.Dec())
	}
	access, err := peer.PlainJSON(said.Access)
	if err != nil {
		return Tick{}, nil, violationf("%w: how to reach the GPUs: %w", peer.ErrProtocol, err)
	}
	spans, err := b.bookOnce(lease, *rec)
	if err != nil {
		return Tick{}, nil, err
	}
	if old := b.account.Ticking; old == nil || old.Lease != lease.Lease {
		b.account.Other = uint256.Int{}
	}
	b.account.Ticking, b.account.Spans = lease, spans
	return Tick{
		Channel: b.id, Lease: said.LeaseID, Devices: lease.Devices, Access: access, State: peer.Printable(said.State), Charged: b.charge, Record: *rec,
	}, rec, nil
}

// adoptOffer goes by the offer that a lease has begun under: the provider's current one, or one of another gateway of it, which
// signed its own a moment, or some difference of clocks, before.
func (t *Rental) adoptOffer(ctx context.Context, b *payment, hash common.Hash) error {
	if hash == t.offer.Hash {
		return nil
	}
	err := t.agree(ctx)
	if err != nil {
		return err
	}
	offer := t.offer
	if hash != offer.Hash {
		offer, err = t.peer.PastOffer(ctx, hash)
	}
	switch {
	case errors.Is(err, peer.ErrUnreachable):
		return err
	case err != nil:
		return violationf("%w: the lease is under offer %s, the provider's is %s, and it shows no other: %w", peer.ErrOffer, hash, t.offer.Hash, err)
	case common.Address(offer.Payee) != b.terms.Payee: // its meter's signature would accuse another
		return violationf("%w: the lease is under offer %s of payee %s, and pays %s", peer.ErrOffer, hash, offer.Payee, b.terms.Payee)
	}
	return t.agreeOn(ctx, offer)
}

// lease is the one that a tick is of: ours, or one that has just begun.
func (t *Rental) lease(ctx context.Context, b *payment, said wire.Tick) (*tickLease, error) {
	if l := b.account.Ticking; l != nil && l.Lease == said.LeaseID {
		kept := *l
		return &kept, nil
	}
	if err := t.adoptOffer(ctx, b, said.OfferHash); err != nil {
		return nil, err
	}
	if len(said.Devices) != t.gpus {
		return nil, violationf("%w: %d in the lease, %d were paid", metering.ErrDevices, len(said.Devices), t.gpus)
	}
	for _, uuid := range said.Devices {
		if uuid == "" || uuid != peer.Printable(uuid) {
			return nil, violationf("%w: a device is called %.60q", peer.ErrProtocol, uuid)
		}
	}
	p := b.account.Tick
	before, err := t.before(p.Base)
	if err != nil {
		return nil, err
	}
	if said.Record.OwedBefore.Gt(&before) {
		return nil, violationf("%w: the lease begins with %s owed, %s was charged", peer.ErrDemand, said.Record.OwedBefore.Dec(), p.Base.Dec())
	}
	earlier, err := t.earlier(b.account, *said.Record)
	if err != nil {
		return nil, err
	}
	if err := b.hasPassed(earlier, *said.Record); err != nil {
		return nil, err
	}
	each, together := t.startOf(b.account, *said.Record, earlier)
	kept, err := b.overfull()
	if err != nil {
		return nil, err
	}
	return &tickLease{
		Lent:  max(b.account.Ticking.ahead(p), b.account.unpassed(earlier, p, len(said.Devices))),
		Began: each.Start, BeganBoot: p.Boot, Together: together,
		Lease: said.LeaseID, Offer: t.offer.Document, Devices: said.Devices, OwedBefore: said.Record.OwedBefore,
		Checker: metering.CheckerState{BootID: p.Boot, Start: each.Start, Owed: said.Record.OwedBefore, Kept: kept},
	}, nil
}

// before is what may be owed of earlier leases where so much was charged: of one that
// read its GPUs late, what is over its ceiling is charged with the next tick. Our
// clock counts that as time of theirs.
func (t *Rental) before(charged uint256.Int) (uint256.Int, error) {
	if charged.IsZero() {
		return charged, nil
	}
	late, err := t.price.Charge(uint64(t.gpus) * uint64(lateIn(t.offer.Offer)))
	late.Add(&late, &charged)
	return late, err
}

// earlier is what a new lease's first record that is shown says is owed for all before it: for the leases before, and in
// records of its own that were never shown. It may only have cost what was charged already.
func (t *Rental) earlier(s account, rec metering.SignedRecord) (uint256.Int, error) {
	p := s.Tick
	added := uint64(max(0, rec.Evidence.Nanos))
	if added > rec.Nanos {
		return uint256.Int{}, violationf("%w: %d ns are new of %d", metering.ErrBackwards, added, rec.Nanos)
	}
	earlier, err := t.price.Charge(rec.Nanos - added)
	if err != nil {
		return earlier, err
	}
	most, err := t.before(p.Base)
	if err != nil {
		return earlier, err
	}
	if s.Found { // it may have run on since the claim, and have records that we lost: as far as this tick is signed for
		most = p.Most
	}
	if earlier.Add(&earlier, &rec.OwedBefore); earlier.Gt(&most) {
		return earlier, violationf("%w: %s owed before this tick, %s was charged", peer.ErrDemand, earlier.Dec(), p.Base.Dec())
	}
	return earlier, nil
}

// hasPassed refuses a new lease that says of the time before it, which no record that we saw states, that more was used than
// passed on our clock since the lease before: the allowance for a reading that came late would be taken at every lease.
func (b *ledger) hasPassed(earlier uint256.Int, rec metering.SignedRecord) error {
	l := b.account.Ticking
	if l == nil || b.account.Found {
		return nil
	}
	clock := b.x.w.Clock
	now := &pendingTick{Asked: clock.Now(), Boot: clock.BootID(), Prior: b.account.Tick.Prior} // it may have begun long after it was asked for
	tolerance := int64(min(tickTolerance, b.x.w.Tolerance))
	over := b.account.unpassed(earlier, now, len(rec.Evidence.Devices))
	for _, d := range rec.Evidence.Devices {
		over = max(over, d.Total-d.Nanos.Allocated-l.each().since(now, l.reserved(now.Prior, metering.Price{}, 1)))
	}
	if over > tolerance {
		return violationf("%w: %s owed before this tick is %s more GPU time than passed since lease %s", metering.ErrClock, earlier.Dec(), time.Duration(over), l.Lease)
	}
	return nil
}

// startOf is where our clocks start for a lease, of each GPU and of all together:
// when it was asked for. One that ran before, as for a renter that lost its database,
// began so much earlier as its record says.
func (t *Rental) startOf(s account, rec metering.SignedRecord, earlier uint256.Int) (each, together leaseClock) {
	p, before := s.Tick, rec.Nanos-uint64(max(0, rec.Evidence.Nanos))
	idle, ofOne := t.idle(s, rec, earlier)
	ran, ofAll := int64(0), idle+int64(min(before, maxLasts)/uint64(t.gpus))
	for _, d := range rec.Evidence.Devices {
		ran = max(ran, d.Total-d.Nanos.Allocated+ofOne)
		if s.Found { // it may be the copy of an answer from before
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
func (t *Rental) idle(s account, rec metering.SignedRecord, earlier uint256.Int) (all, one int64) {
	if rec.Sequence <= 1 {
		return 0, 0
	}
	p, late := s.Tick, int64(0)
	if !p.Base.IsZero() {
		late = int64(lateIn(t.offer.Offer))
	}
	all = int64(covered(p.Prior, earlier, t.price, t.gpus))
	all, one = late+all, late+all*int64(t.gpus)
	if l := s.Ticking; l != nil && !s.Found {
		all = min(all, l.together().since(p, l.reserved(p.Prior, t.price, len(l.Devices))))
		one = min(one, l.each().since(p, l.reserved(p.Prior, t.price, 1)))
	}
	return all, one
}

// checkRecord checks a record and remembers it in lease.
func (b *ledger) checkRecord(lease *tickLease, rec metering.SignedRecord) error {
	state, err := lease.Checker.Skip(rec)
	if err != nil {
		return &violation{err}
	}
	checker, err := b.checker(lease, state)
	if err != nil {
		return err
	}
	if err := checker.Check(rec); err != nil {
		return &violation{err}
	}
	lease.Checker = checker.State()
	all := &lease.Together
	all.Elapsed = max(0, b.x.w.Clock.Now().Boot-all.Start.Boot)
	if most := all.Elapsed + int64(b.tolerance(lease)); lease.ranTogether() > most {
		return violationf("lease %s, record %d: %w: %d ns over %d GPUs, and of each at most %d ns were paid for, or passed here",
			rec.LeaseID, rec.Sequence, metering.ErrClock, rec.Nanos, len(lease.Devices), most)
	}
	return nil
}

// tolerance is by how much a lease may run ahead of our clock.
func (b *ledger) tolerance(l *tickLease) time.Duration {
	return max(0, min(tickTolerance, b.x.w.Tolerance)-time.Duration(l.Lent))
}

// checker of a lease's records, which are as many as there are ticks: no offer says
// how long these are.
func (b *ledger) checker(lease *tickLease, state metering.CheckerState) (*metering.Checker, error) {
	offer, err := wire.ParseOffer(lease.Offer)
	if err != nil {
		return nil, fmt.Errorf("channel %s: its offer on disk does not parse; restore the database from its backup: %w", b.id, err)
	}
	unit, err := metering.ParseUnit(offer.Unit)
	if err != nil {
		return nil, err
	}
	checker, err := metering.ResumeChecker(metering.CheckerConfig{
		Key: common.Address(offer.Meter), Tolerance: b.tolerance(lease), Clock: b.x.w.Clock,
		RecordEvery: metering.MinRecordEvery,
		Lease: offer.Meters(metering.Lease{
			ID: lease.Lease, ChannelID: b.id, OfferHash: offer.Hash, ChainID: b.terms.ChainID, Escrow: b.terms.Escrow,
			Price: metering.Price{Amount: offer.Amount.Int, Unit: unit}, OwedBefore: lease.OwedBefore, Devices: lease.Devices,
		}),
	}, state)
	if err != nil {
		return nil, &violation{fmt.Errorf("%w: %w", peer.ErrProtocol, err)}
	}
	return checker, nil
}

// overfull is by how many bytes the records of the lease before take more than its
// time allows: a new lease at each tick has no more room than one that goes on.
func (b *ledger) overfull() (uint64, error) {
	last := b.account.Ticking
	if last == nil {
		return 0, nil
	}
	checker, err := b.checker(last, last.Checker)
	if err != nil {
		return 0, err
	}
	return checker.Overfull(), nil
}
