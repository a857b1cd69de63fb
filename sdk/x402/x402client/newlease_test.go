package x402client

import (
	"errors"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/ticks"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// mill is a provider of ticks that begins another lease at every tick, and its stall.
type mill struct {
	*testrig.Mill
	t       *testing.T
	s       *stall
	other   bool   // what is asked for is no tick
	settled uint64 // claimed
}

func newMill(t *testing.T, past bool, worth func(lease, covered uint64) time.Duration) *mill {
	t.Helper()
	s := newStall(t, testrig.NewX402Market(t))
	m := &mill{Mill: testrig.NewMill(t, s.Seller, worth), t: t, s: s}
	m.Past = past
	return m
}

// TestX402NewLeasesFillNoDisk: a provider that begins a lease at every tick, and answers each at once with a record that is
// as large as one may be, is given as much room on the renter's disk as one lease has in that time.
func TestX402NewLeasesFillNoDisk(t *testing.T) {
	m := newMill(t, false, func(uint64, uint64) time.Duration { return 0 })
	m.Fill = true
	x := m.s.client(wallet.Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, Options{MaxPrice: wallet.Unlimited})
	rental, err := x.Rent(t.Context(), m.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	kept, began := 0, time.Now()
	for range 100 {
		var tick Tick
		if tick, err = rental.Tick(t.Context()); err != nil {
			break
		}
		kept += len(tick.Record.Evidence.Encode())
	}
	most := (int(time.Since(began)/metering.MinRecordEvery) + 100) * int(verify.RecordRoom(1))
	if kept > most || kept == 0 {
		t.Errorf("%d bytes are kept, in this time there is room for %d", kept, most)
	}
	if err != nil && !errors.Is(err, verify.ErrRoom) {
		t.Error(err)
	}
}

// TestX402NewLeasesBillNoMoreThanPassed: a provider that begins a lease at every tick bills the time that passed on our
// clock and the tolerance, which it has once on a channel, whatever its vouchers would cover.
func TestX402NewLeasesBillNoMoreThanPassed(t *testing.T) {
	late := func(past bool, before, hidden time.Duration) *mill {
		m := newMill(t, past, func(lease, _ uint64) time.Duration { return time.Duration(2-min(lease, 2)) * 50 * time.Millisecond })
		m.Before, m.Hidden = before, hidden
		return m
	}
	before, hidden, halves := late(false, 2900*time.Millisecond, 0), late(true, 0, 2900*time.Millisecond), late(true, 1400*time.Millisecond, 1400*time.Millisecond)
	for name, m := range map[string]*mill{
		"the time of the voucher before": newMill(t, true, func(lease, covered uint64) time.Duration {
			if lease == 1 {
				return 200 * time.Millisecond
			}
			return time.Duration(min(covered, 30_000)) * time.Millisecond
		}),
		"the tolerance at every lease":         newMill(t, false, func(uint64, uint64) time.Duration { return 200 * time.Millisecond }),
		"a late reading before every lease":    before,
		"a late reading in a hidden record":    hidden,
		"half of a late reading, and the rest": halves,
	} {
		t.Run(name, func(t *testing.T) {
			x := m.s.client(wallet.Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, Options{MaxPrice: wallet.Unlimited})
			rental, err := x.Rent(t.Context(), m.URL, 1)
			if err != nil {
				t.Fatal(err)
			}
			var paid uint64
			began := time.Now()
			for range 100 {
				var tick Tick
				if tick, err = rental.Tick(t.Context()); err != nil {
					break
				}
				paid += tick.Charged.Uint64()
			}
			var d *wallet.Dispute
			if most := uint64((time.Since(began) + ticks.Tolerance).Milliseconds()); paid > most || paid == 0 {
				t.Errorf("%d ms were paid for, %d passed and are tolerated", paid, most)
			}
			if !errors.As(err, &d) || !errors.Is(err, verify.ErrClock) {
				t.Errorf("%v, want a dispute about the clock", err)
			}
		})
	}
}
