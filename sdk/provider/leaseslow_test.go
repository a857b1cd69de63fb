package provider

import (
	"context"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// slowDriver answers rightly, after a while: as NVML does under load.
type slowDriver struct {
	metering.Source
	read, list time.Duration
}

func (s slowDriver) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	time.Sleep(s.read)
	return s.Source.Read(ctx, uuid)
}

func (s slowDriver) Devices(ctx context.Context) ([]metering.Device, error) {
	time.Sleep(s.list)
	return s.Source.Devices(ctx)
}

// TestShortLeasesOnASlowDriver: a renter is told how its GPUs are reached when they were read first, and is billed from then
// on: leases that are shorter than a reading takes are not free, however many.
func TestShortLeasesOnASlowDriver(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]slowDriver{
		"reads": {read: 400 * time.Millisecond},
		"lists": {list: 1500 * time.Millisecond},
		"both":  {read: 400 * time.Millisecond, list: 1500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *Config) {
				c.Metering.Tick, c.Metering.MaxGap, c.Metering.RecordEvery, c.Terms.Credit = time.Second, 5*time.Second, 5*time.Second, time.Minute
				s.Source = c.Source
				c.Source = s
			})
			lease := &tab{rig: r, key: r.payer, terms: r.terms(r.payer.Address(), 1)}
			var owed uint64
			for n := range 3 {
				if n == 0 {
					lease.attach(r.do("GET", "?gpus=2", r.openCredential(r.payer, lease.terms, 500_000, 0)))
				} else {
					lease.attach(lease.beginAgain("?gpus=2", owed))
				}
				got := r.config.Metering.Clock.Now().Mono
				time.Sleep(500 * time.Millisecond)
				used := r.config.Metering.Clock.Now().Mono - got
				final := lease.release()
				if billed, least := final.Owed.Uint64()-owed, uint64(used/1_000_000)*2; billed < least {
					t.Errorf("lease %d: %d were used and %d billed", n, least, billed)
				}
				owed = final.Owed.Uint64()
			}
		})
	}
}
