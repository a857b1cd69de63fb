package renter_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
)

// jumping is a host's clocks, which somebody sets, or which a suspended host or
// a paused virtual machine finds elsewhere.
type jumping struct{ boot, mono, wall atomic.Int64 }

func (j *jumping) Now() metering.Instant {
	now := testclock.Process().Now()
	return metering.Instant{Boot: now.Boot + j.boot.Load(), Mono: now.Mono + j.mono.Load(), Wall: now.Wall + j.wall.Load()}
}

func (j *jumping) After(d time.Duration) <-chan time.Time { return testclock.Process().After(d) }
func (j *jumping) BootID() string                         { return testclock.Process().BootID() }

// TestClockThatJumps: whatever a host's clocks do, the renter pays for no more
// than the time that passed, and nobody is taken for a liar.
func TestClockThatJumps(t *testing.T) {
	const day, hour = int64(24 * time.Hour), int64(time.Hour)
	m := testrig.NewMarket(t)
	for _, row := range []struct {
		name             string
		renter           bool // whose clock it is
		boot, mono, wall int64
	}{
		{"provider's wall clock a day ahead", false, 0, 0, day},
		{"provider's wall clock a day back", false, 0, 0, -day},
		{"provider's host slept an hour", false, hour, 0, hour},
		{"provider's virtual machine stood still for an hour", false, hour, hour, hour},
		{"renter's wall clock a day ahead", true, 0, 0, day},
		{"renter's wall clock a day back", true, 0, 0, -day},
		{"renter's host slept an hour", true, hour, 0, hour},
	} {
		t.Run(row.name, func(t *testing.T) {
			clock := &jumping{}
			server := serveProvider(t, m, func(c *provider.Config) {
				if !row.renter {
					c.Metering.Clock, c.Source = clock, sim.New(1, sim.Options{Clock: clock})
				}
			})
			config := renterrig.Config(t, m, m.Newcomer(t))
			if row.renter {
				config.Clock = clock
			}
			r := renterrig.Open(t, config)
			began := time.Now()
			l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			done := renterrig.Background(t.Context(), l)
			testrig.Eventually(t, "three records", func() bool { return l.Snapshot().Sequence >= 3 })
			clock.boot.Add(row.boot)
			clock.mono.Add(row.mono)
			clock.wall.Add(row.wall)
			at := l.Snapshot()
			testrig.Eventually(t, "three more, with time in them", func() bool {
				s := l.Snapshot()
				return s.Sequence >= at.Sequence+3 && s.Nanos > at.Nanos
			})
			closing, err := l.Close(t.Context())
			<-done
			most, chargeErr := l.Snapshot().Price.Charge(uint64(time.Since(began)))
			if err != nil || chargeErr != nil || closing.Owed.Gt(&most) || closing.Settled != closing.Owed {
				t.Errorf("%v %v: owed %s, settled %s, the time that passed comes to %s", err, chargeErr, closing.Owed.Dec(), closing.Settled.Dec(), most.Dec())
			}
			if kept, err := r.Evidence(t.Context(), closing.Channel); err != nil || len(kept) != 0 {
				t.Errorf("somebody is taken for a liar: %v, %v", kept, err)
			}
		})
	}
}
