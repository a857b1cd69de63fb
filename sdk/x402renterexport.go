package sdk

import (
	"cmp"
	"context"
	"slices"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// export adds the leases whose records were checked for ticks, in the order in which
// they ran.
func (s slates) export(ctx context.Context, b *audit.Bundle) error {
	records, err := s.records(ctx, b.Channel)
	if err != nil {
		return err
	}
	for _, rec := range records { // of one lease they follow one another
		if n := len(b.Leases); n > 0 && b.Leases[n-1].ID == rec.LeaseID {
			b.Leases[n-1].Records = append(b.Leases[n-1].Records, rec)
			continue
		}
		l := audit.Lease{ID: rec.LeaseID, OwedBefore: wire.NewAmount(rec.OwedBefore), Records: []metering.SignedRecord{rec}}
		for _, d := range rec.Evidence.Devices {
			l.Devices = append(l.Devices, d.Device.UUID)
		}
		if l.Offer, err = s.offer(ctx, rec.OfferHash); err != nil {
			return err
		}
		b.Leases = append(b.Leases, l)
	}
	slices.SortStableFunc(b.Leases, func(l, o audit.Lease) int {
		one, two := l.Records[len(l.Records)-1].Owed, o.Records[len(o.Records)-1].Owed
		return cmp.Or(l.OwedBefore.Cmp(&o.OwedBefore.Int), one.Cmp(&two))
	})
	return nil
}
