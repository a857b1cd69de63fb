package renter_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// ownClock has the renter live by a clock that only the test moves.
func ownClock(config *renter.Config) *sim.Clock {
	clock := sim.NewClock()
	config.Clock = clock
	return clock
}

// oneMeter has all streams of a hostile provider go on with the meter of the first, and its answers to a release, one after the other.
func oneMeter(v *testrig.Hostile, script func(stream int, p *testrig.Stream), final func(*testrig.Stream) metering.SignedRecord) {
	var mu sync.Mutex
	var first *testrig.Stream
	streams := 0
	v.Script = func(p *testrig.Stream) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = p
		}
		p.Meter, p.Recorder, p.Clock, p.Source = first.Meter, first.Recorder, first.Clock, first.Source
		streams++
		script(streams, p)
	}
	v.Final = func() metering.SignedRecord {
		mu.Lock()
		defer mu.Unlock()
		return final(first)
	}
}

// TestNothingIsBilledAfterTheRelease: a renter gives its lease back. The provider answers late and with a record whose number
// lies far ahead, and bills what passes meanwhile, in the stream and in the answer, also after the renter began anew.
func TestNothingIsBilledAfterTheRelease(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, func(o *wire.Offer) { o.RecordEvery = 500; o.Credit = 3600 })
	config := renterrig.Config(t, m, m.Payer)
	clock := ownClock(&config)
	const half = 500 * time.Millisecond
	bill := func(p *testrig.Stream, records int) {
		for range records {
			clock.Advance(half)
			p.Usage(p.Next(half))
		}
	}
	oneMeter(v, func(stream int, p *testrig.Stream) {
		if bill(p, 6); stream > 1 {
			bill(p, 14)
			panic(http.ErrAbortHandler)
		}
	}, func(p *testrig.Stream) metering.SignedRecord {
		clock.Advance(10 * time.Second)
		rec := p.Sent
		rec.Sequence += 1000
		return rec
	})
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "six records", func() bool { return l.Snapshot().Sequence == 6 })
	for range 2 {
		if _, err := l.Close(t.Context()); !errors.Is(err, peer.ErrRefused) { // this provider does not close
			t.Fatalf("Close: %v", err)
		}
		s, most := l.Snapshot(), 3*testrig.HostilePrice+uint64(config.Tolerance.Seconds()*testrig.HostilePrice)
		if s.Sequence < 26 || s.Paid.Uint64() != most || s.Owed.Uint64() != most {
			t.Errorf("after record %d %s are owed and %s paid, at most %d were owed when the lease was given back", s.Sequence, s.Owed.Dec(), s.Paid.Dec(), most)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		r = renterrig.Open(t, config)
		if l, err = r.Resume(t.Context(), l.ID()); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// TestNothingIsBilledAfterTheProviderEnded: a provider says that the lease has ended, and its final record, in the answer to a
// close that comes later, bills the time until then.
func TestNothingIsBilledAfterTheProviderEnded(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, func(o *wire.Offer) { o.Credit = 3600 })
	config := renterrig.Config(t, m, m.Payer)
	clock := ownClock(&config)
	oneMeter(v, func(_ int, p *testrig.Stream) {
		clock.Advance(time.Second)
		p.Usage(p.Next(time.Second))
		p.Send(0, wire.EventStatus, wire.Status{State: wire.StateEnded, Reason: "we need the GPU"})
	}, func(p *testrig.Stream) metering.SignedRecord { return p.Next(10 * time.Second) })
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	clock.Advance(10 * time.Second)
	if _, err = l.Close(t.Context()); !errors.Is(err, peer.ErrRefused) {
		t.Errorf("Close: %v", err)
	}
	s, most := l.Snapshot(), testrig.HostilePrice+uint64(config.Tolerance.Seconds()*testrig.HostilePrice)
	if s.Sequence < 2 || s.Paid.Uint64() != most {
		t.Errorf("after record %d %s are paid, at most %d were owed when the provider said that the lease had ended", s.Sequence, s.Paid.Dec(), most)
	}
}

// TestHonestProviderOfARenterWhoseClockMissedTime: a renter's host is rebooted and its wall clock wakes up late, or its virtual
// machine is stopped and started again. The lease goes on meanwhile, on credit, and all of it is paid.
func TestHonestProviderOfARenterWhoseClockMissedTime(t *testing.T) {
	m := testrig.NewMarket(t)
	for name, wake := range map[string]func(*partedClock){
		"rebooted, an hour behind": func(c *partedClock) { c.boot, c.wall = "second", -int64(time.Hour) },
		"stopped":                  func(c *partedClock) { c.wall = int64(5 * time.Second) },
	} {
		for _, paysFirst := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				v := testrig.NewHostile(t, m, func(o *wire.Offer) { o.Credit = 20 })
				oneMeter(v, func(stream int, p *testrig.Stream) {
					if stream == 1 {
						p.Honest(4)
					} else if stream == 2 {
						p.Usage(p.Next(5 * time.Second)) // all of it while the renter's clocks stood
					}
				}, func(p *testrig.Stream) metering.SignedRecord { return p.Next(0) })
				config := renterrig.Config(t, m, m.Payer)
				config.Caps.PerDay = wallet.Unlimited
				config.Clock = &partedClock{Clock: testclock.Process(), boot: "first"}
				r := renterrig.Open(t, config)
				l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(t.Context())
				done := renterrig.Background(ctx, l)
				testrig.Eventually(t, "four records", func() bool { return l.Snapshot().Sequence == 4 })
				stop()
				<-done
				_ = r.Close()
				again := &partedClock{Clock: testclock.Process(), boot: "first"}
				wake(again)
				config.Clock = again
				r = renterrig.Open(t, config)
				if l, err = r.Resume(t.Context(), l.ID()); err != nil {
					t.Fatal(err)
				}
				if paysFirst {
					done = renterrig.Background(t.Context(), l)
					testrig.Eventually(t, "what was used meanwhile", func() bool { return l.Snapshot().Sequence == 5 || len(done) > 0 })
				}
				if _, err := l.Close(t.Context()); errors.As(err, new(*wallet.Dispute)) {
					t.Errorf("an honest provider is caught: %v", err)
				}
				if s := l.Snapshot(); s.Paid.Uint64() != 5200 || s.Owed.Uint64() != 5200 {
					t.Errorf("%s paid of %s, 5200 were used", s.Paid.Dec(), s.Owed.Dec())
				}
			})
		}
	}
}

// TestStoppedLateInALongLease: a renter's virtual machine is stopped when its lease has run for long. What is billed for that time
// takes up none of its GPU's, on the renter's own clock, that was billed before.
func TestStoppedLateInALongLease(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, func(o *wire.Offer) { o.Credit, o.RecordEvery = 20, 500 })
	config := renterrig.Config(t, m, m.Payer)
	config.Caps.PerDay = wallet.Unlimited
	simulated := ownClock(&config)
	clock := &partedClock{Clock: simulated, boot: "first"}
	config.Clock = clock
	var rental atomic.Pointer[renter.Rental]
	oneMeter(v, func(_ int, p *testrig.Stream) {
		var last *metering.SignedRecord
		send := func(worth time.Duration) {
			rec := p.Resign(p.Real(p.Next(worth)), func(r *metering.SignedRecord) {
				if last != nil {
					r.Previous = last.Digest(metering.Domain(31337, m.Escrow))
				}
			})
			last = &rec
			p.Usage(rec)
			testrig.Eventually(t, "the record is paid", func() bool {
				l := rental.Load()
				return p.Gone.Err() != nil || l != nil && l.Snapshot().Paid == rec.Owed
			})
		}
		for range 6 {
			simulated.Advance(10 * time.Second)
			send(10 * time.Second)
		}
		clock.stood.Add(int64(6 * time.Second)) // the renter's clock stands, and its wall clock is set
		for range 3 {
			send(2 * time.Second)
		}
		for range 3 {
			simulated.Advance(time.Second)
			send(time.Second)
		}
		p.Send(0, wire.EventStatus, wire.Status{State: wire.StateEnded, Reason: "done"})
	}, func(p *testrig.Stream) metering.SignedRecord { return p.Next(0) })
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	rental.Store(l)
	if err := l.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := l.Snapshot(); s.Sequence != 12 {
		t.Errorf("%d records were taken", s.Sequence)
	}
}

// partedClock is a host of that boot, whose wall clock is off.
type partedClock struct {
	metering.Clock
	boot string
	wall int64 // ns

	stood atomic.Int64 // ns of the wall clock too, while it runs
}

func (c *partedClock) BootID() string { return c.boot }
func (c *partedClock) Now() metering.Instant {
	now := c.Clock.Now()
	now.Wall += c.wall + c.stood.Load()
	return now
}

// TestRecordsBeforeTheLastMayTakeTheirTime: the records before the final one may come one by one, all of them later than one of them
// may be. They are read, and all is paid.
func TestRecordsBeforeTheLastMayTakeTheirTime(t *testing.T) {
	t.Parallel()
	const worth = 50 * time.Millisecond
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(*testrig.Stream) {}
	config := renterrig.Config(t, m, m.Payer)
	config.Patience, config.Tolerance = time.Second, time.Second
	l, err := renterrig.Open(t, config).Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	meter := v.NewStream(nil, l.ID())
	before := []metering.SignedRecord{meter.Next(worth), meter.Next(worth), meter.Next(worth), meter.Next(worth)}
	last := meter.Resign(meter.Next(worth), func(r *metering.SignedRecord) { r.Final = true })
	v.Mu.Lock()
	v.Final = func() metering.SignedRecord { return last }
	v.Script = func(p *testrig.Stream) {
		for _, rec := range before {
			time.Sleep(config.Patience * 3 / 8)
			p.Usage(rec)
		}
	}
	v.Mu.Unlock()
	if _, err := l.Close(t.Context()); !errors.Is(err, peer.ErrRefused) { // this provider does not close
		t.Errorf("Close: %v", err)
	}
	if s := l.Snapshot(); s.Owed.Uint64() != 5*testrig.HostilePrice/20 || s.Paid != s.Owed {
		t.Errorf("%s owed and %s paid of %d", s.Owed.Dec(), s.Paid.Dec(), 5*testrig.HostilePrice/20)
	}
}
