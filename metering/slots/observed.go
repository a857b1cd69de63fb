package slots

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/gpupay/gpupay/metering"
)

// observed holds each request against the readings of its devices: it is billed nothing
// in their holes, and of the time since the record before no more than each was seen
// healthy. So no healthy time in which nothing ran makes up for time in which a device was
// away. Of time before that record other evidence speaks. The evidence is valid.
func observed(e metering.Evidence) error {
	seen, away := int64(math.MaxInt64), []metering.Hole(nil)
	for _, d := range e.Devices {
		seen, away = min(seen, d.To.Mono), append(away, holes(d)...)
	}
	for _, r := range e.Slots.Requests {
		if most := outside(away, r.From, min(r.To, seen)); r.Nanos > max(0, most) {
			return fmt.Errorf("%w: request %d is billed %d ns from %d to %d, and outside of the holes of its devices there are %d: %d too many",
				metering.ErrEvidence, r.ID, r.Nanos, r.From, min(r.To, seen), most, r.Nanos-most)
		}
		for _, d := range e.Devices {
			before := max(0, d.From.Mono-r.From)
			if len(d.Stretches()) > 1 { // the clock that it ran by began in this record
				before = 0
			}
			if r.Nanos-before > d.Nanos.Allocated {
				return fmt.Errorf("%w: request %d is billed %d ns, of which %d can be before %d, and since then %s was healthy for %d: %d too many",
					metering.ErrEvidence, r.ID, r.Nanos, before, d.From.Mono, d.Device.UUID, d.Nanos.Allocated, r.Nanos-before-d.Nanos.Allocated)
			}
		}
	}
	return nil
}

// holes are those of a device on the clock of the boot that its evidence names.
func holes(d metering.DeviceEvidence) []metering.Hole {
	for i, g := range slices.Backward(d.Gaps) {
		if g.Reason == metering.ReasonReboot {
			return d.Gaps[i+1:]
		}
	}
	return d.Gaps
}

// outside is how much of a time, in nanoseconds, lies in none of the holes, which may overlap.
func outside(holes []metering.Hole, from, to int64) int64 {
	slices.SortFunc(holes, func(a, b metering.Hole) int { return cmp.Compare(a.From, b.From) })
	left, at := to-from, from
	for _, g := range holes {
		if lo, hi := max(at, g.From), min(to, g.To); lo < hi {
			left, at = left-(hi-lo), hi
		}
	}
	return left
}
