package verify

import (
	"fmt"
	"math"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
)

// offered checks evidence against what the lease's offer says of its devices.
func offered(l metering.Lease, e metering.Evidence) error {
	if l.MaxGap > 0 && e.MaxGap > int64(l.MaxGap) {
		return fmt.Errorf("%w: it bills gaps of %d ns, the offer allows %s", metering.ErrEvidence, e.MaxGap, l.MaxGap)
	}
	if l.Tick > 0 && e.Tick != int64(l.Tick) {
		return fmt.Errorf("%w: it was read each %d ns, the offer says %s", metering.ErrEvidence, e.Tick, l.Tick)
	}
	if e.Simulated && !l.Simulated { // also where the offer names no devices: a simulated one is not looked for in other leases
		return fmt.Errorf("%w: they are simulated, and the offer's are not", ErrDevices)
	}
	for _, d := range e.Devices {
		if err := l.Sells(d.Device); err != nil && d.Nanos.Allocated > 0 {
			return fmt.Errorf("%w: %w", ErrDevices, err)
		}
	}
	return nil
}

// maxLasts is more nanoseconds than any lease takes, and can be added to without
// overflow.
const maxLasts = math.MaxInt64 / 4

// lasts is how long, in nanoseconds over all devices, the lease runs until more
// than an amount is owed.
func lasts(l metering.Lease, owed uint256.Int) int64 {
	if l.Price.Amount.IsZero() || owed.BitLen() > 96 { // more than a channel can hold
		return maxLasts
	}
	var open uint256.Int // 97 + 42 bits do not overflow 256
	if owed.Gt(&l.OwedBefore) {
		open.Sub(&owed, &l.OwedBefore)
	}
	open.AddUint64(&open, 1) // a charge is rounded down
	open.Mul(&open, uint256.NewInt(l.Price.Unit.Nanos()))
	open.Div(&open, &l.Price.Amount)
	if open.Gt(uint256.NewInt(maxLasts)) {
		return maxLasts
	}
	return int64(open.Uint64())
}
