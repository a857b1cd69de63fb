package wire

import (
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
)

// MaxGPUs bounds what one lease may ask for.
const MaxGPUs = 1024

// The states of a lease as Lease and Status name them.
const (
	StateAllocating = "allocating"
	StateActive     = "active"
	StateSuspended  = "suspended"
	StateEnding     = "ending" // nothing is metered any more; its devices may be taken back already
	StateEnded      = "ended"
)

// MaxGap bounds the MaxGap of an offer: what a late reading can be billed for.
const MaxGap = time.Minute

// MaxGapOfTicks bounds how late a provider's reading may be where it is paid by ticks: so
// much time may be used beyond what was reserved, and be billed for each time that a
// renter is away. An offer of a longer MaxGap is not made, nor taken.
const MaxGapOfTicks = 10 * time.Second

// MinCredit is the GPU time ahead of vouchers without which a lease of so many GPUs would
// be suspended at once.
func MinCredit(gpus int, tick time.Duration) time.Duration { return time.Duration(gpus) * 4 * tick }

// MinLease is what a lease needs to begin, base units: what a record of each GPU
// may be for.
func MinLease(price metering.Price, gpus int, recordEvery, tick time.Duration) (uint256.Int, error) {
	return price.Charge(uint64(gpus) * uint64(recordEvery+4*tick))
}

// MinRecordEvery is how long an honest provider's records are apart at the least, on the
// average: a lease that is suspended and paid in turn states one each time, and has
// at least four ticks of credit in between.
func (o Offer) MinRecordEvery() time.Duration {
	return max(metering.MinRecordEvery, time.Millisecond*time.Duration(min(o.RecordEvery, 4*o.Tick)))
}

// Meters returns l with what the offer says of how its devices are metered
// and what they are: records are held to it by whoever checks them.
func (o Offer) Meters(l metering.Lease) metering.Lease {
	l.MaxGap, l.Tick = time.Duration(o.MaxGap)*time.Millisecond, time.Duration(o.Tick)*time.Millisecond
	l.Simulated, l.Share = o.Simulated, o.Share.metering()
	if o.Class != nil {
		l.Models = append(l.Models, o.Class.model())
		return l
	}
	for _, d := range o.Devices {
		l.Models = append(l.Models, metering.Model{Name: d.Model, MemoryBytes: d.MemoryBytes})
	}
	return l
}

// Uncharged is what rounding leaves of a lease that used nanos, in
// metering.Fractions. Of a lease without a final record nothing is carried: one
// side may have more of it than the other.
func (o Offer) Uncharged(nanos uint64, final bool) (uint64, error) {
	price, err := o.Price()
	if err != nil || !final {
		return 0, err
	}
	return price.Fraction(nanos)
}

// CarriesTo reports whether a lease may begin with so much owed, where the records
// before it say owed and parts, in metering.Fractions, were not charged, and what is left
// of these then. A provider that has forgotten leases carries less.
func CarriesTo(owed, begins uint256.Int, parts uint64) (left uint64, ok bool) {
	var more uint256.Int
	if _, under := more.SubOverflow(&begins, &owed); under || !more.IsUint64() || more.Uint64() > parts/metering.Fractions {
		return parts, false
	}
	return parts - more.Uint64()*metering.Fractions, true
}
