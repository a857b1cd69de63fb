package sdk

import (
	"context"
	"slices"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxLate bounds how late a provider's reading may be, whatever gap its offer
// allows: so much time may be used beyond what was reserved.
const maxLate = 10 * time.Second

// forfeit takes the time away from a lease that it was not paid for: between two
// ticks a provider meters at most what the voucher before still covers, and one
// reading that comes late. Without it, a renter that was away could be billed for
// all of that time at once.
func (b *buying) forfeit(l *ticking, price metering.Price) {
	p, s := b.slate.Tick, &l.Checker
	if p == nil || s.Sequence == 0 {
		return
	}
	elapsed := p.Asked.Boot - s.Start.Boot
	if p.Boot == "" || p.Boot != s.BootID {
		elapsed = max(p.Asked.Wall-s.Start.Wall, s.Elapsed)
	}
	var ran int64
	for _, d := range s.Devices {
		ran = max(ran, d.Total)
	}
	ran = min(ran, s.Elapsed) + b.reserved(l, price)
	if ran >= elapsed {
		return
	}
	s.BootID, s.Elapsed = p.Boot, ran
	s.Start = metering.Instant{Boot: p.Asked.Boot - ran, Mono: p.Asked.Mono - ran, Wall: p.Asked.Wall - ran}
}

// since is how many ns passed on our clocks from the lease's newest record until
// a tick was asked for: another lease cannot have run for longer before it.
func (l *ticking) since(p *pendingTick) int64 {
	s := l.Checker
	if p.Boot == "" || p.Boot != s.BootID {
		return max(0, p.Asked.Wall-s.Start.Wall-s.Elapsed)
	}
	return max(0, p.Asked.Boot-s.Start.Boot-s.Elapsed)
}

// ahead is by how many ns the channel's leases, this one and those before it, ran
// ahead of our clock when a tick was asked for; zero for no lease.
func (l *ticking) ahead(p *pendingTick) int64 {
	if l == nil {
		return 0
	}
	var ran int64
	for _, d := range l.Checker.Devices {
		ran = max(ran, d.Total)
	}
	return max(0, l.Lent+ran-l.Checker.Elapsed-l.since(p))
}

// reserved is for how long each GPU of a lease could run, in ns, on what was
// signed for before this tick and not charged with a record, and how late a
// reading may be.
func (b *buying) reserved(l *ticking, price metering.Price) int64 {
	late := time.Duration(0)
	if offer, err := wire.ParseOffer(l.Offer); err == nil {
		late = min(time.Duration(max(0, min(offer.MaxGap, maxLate.Milliseconds())))*time.Millisecond, maxLate)
		if own, err := offerPrice(offer.Offer); err == nil {
			price = own
		}
	}
	return int64(late + covered(b.slate.Tick.Prior, l.Checker.Owed, price, len(l.Devices)))
}

// covered is for how long each of a lease's GPUs can run from what is owed up to
// what is signed for.
func covered(signed, owed uint256.Int, price metering.Price, gpus int) time.Duration {
	hourly, err := price.Charge(uint64(time.Hour))
	if err != nil || hourly.IsZero() || !signed.Gt(&owed) || gpus < 1 {
		return 0
	}
	var open uint256.Int
	open.Sub(&signed, &owed)
	open.Mul(&open, uint256.NewInt(uint64(time.Hour)))
	open.Div(&open, hourly.Mul(&hourly, uint256.NewInt(uint64(gpus))))
	if open.Gt(uint256.NewInt(uint64(maxTick))) {
		return maxTick // no tick reserves more
	}
	return time.Duration(open.Uint64())
}

// deviceSpan is the time on a device's own clock that a lease was billed for it.
type deviceSpan struct {
	UUID   string `json:"uuid"`
	BootID string `json:"bootId"`
	From   int64  `json:"from,string"`
	To     int64  `json:"to,string"`
}

// once refuses to pay for a GPU's time in two leases, and notes the time that a
// record bills.
func (b *buying) once(ctx context.Context, l *ticking, rec metering.SignedRecord) error {
	all, err := b.x.slates().list(ctx)
	if err != nil {
		return err
	}
	for _, d := range rec.Evidence.Devices {
		if d.Nanos.Allocated == 0 {
			continue
		}
		span := l.note(deviceSpan{UUID: d.Device.UUID, BootID: d.Device.BootID, From: d.From.Mono, To: d.To.Mono})
		for _, s := range all {
			if other := s.Ticking; other != nil && other.Lease != l.Lease && other.bills(span) {
				return caught("%w: %s is let for the same time in lease %s on channel %s", metering.ErrDevices, span.UUID, other.Lease, s.ID)
			}
		}
	}
	return nil
}

func (l *ticking) bills(span deviceSpan) bool {
	return slices.ContainsFunc(l.Spans, func(s deviceSpan) bool {
		return s.UUID == span.UUID && s.BootID == span.BootID && s.From < span.To && span.From < s.To
	})
}

// note adds a span to what the lease has of the device, and returns all of that: a
// lease keeps its GPUs from its first record to its last, also while it is
// suspended.
func (l *ticking) note(span deviceSpan) deviceSpan {
	for i, s := range l.Spans {
		if s.UUID == span.UUID && s.BootID == span.BootID {
			l.Spans[i].To = max(s.To, span.To)
			return l.Spans[i]
		}
	}
	l.Spans = append(l.Spans, span)
	return span
}
