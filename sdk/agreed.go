package sdk

import (
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// densest is how long an honest provider's records are apart at the least, on the
// average: a lease that is suspended and paid in turn states one each time, and has
// at least four ticks of credit in between.
func densest(o wire.Offer) time.Duration {
	return max(metering.MinRecordEvery, time.Millisecond*time.Duration(min(o.RecordEvery, 4*o.Tick)))
}

// agreed is a lease with what its signed offer says of how its devices are metered
// and what they are: records are held to it by whoever checks them.
func agreed(l metering.Lease, o wire.Offer) metering.Lease {
	l.MaxGap, l.Tick = time.Duration(o.MaxGap)*time.Millisecond, time.Duration(o.Tick)*time.Millisecond
	l.Simulated = o.Simulated
	for _, d := range o.Devices {
		l.Models = append(l.Models, metering.Model{Name: d.Model, MemoryBytes: d.MemoryBytes})
	}
	return l
}
