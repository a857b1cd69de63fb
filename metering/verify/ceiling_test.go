package verify_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/verify"
)

// creditSeconds is what the payee of these tests serves unpaid, over all devices.
const creditSeconds = 20

// within is what a payer asks of a record: the voucher, the credit and a late
// reading of each device.
func (m *market) within(signed uint64) uint256.Int {
	late := 2 * uint64(metering.DefaultMaxGap/time.Second)
	return *uint256.NewInt(signed + (creditSeconds+late)*555 + 1)
}

func (m *market) owes() uint64 {
	s := m.check.State()
	return s.Owed.Uint64()
}

// absence has a payee cut records of time that it did not serve, of two devices
// each, and a payer that pays each record at once: what it got out of it.
func (m *market) absence(perDevice, wait time.Duration, most int) (stolen uint64, err error) {
	before := m.owes()
	paid := before
	for range most {
		m.clock.Advance(wait)
		for left := perDevice; left > 0; left -= time.Second {
			m.now++
			m.tick()
		}
		s := m.next()
		if err := m.check.CheckWithin(s, m.within(paid)); err != nil {
			return paid - before, err
		}
		paid = s.Owed.Uint64()
	}
	return paid - before, nil
}

// TestAbsenceIsNoBank: a payee has time that it did not serve, of a payer that
// was away or of records of nothing, and bills it in records that are each
// within the credit. All of them together are.
func TestAbsenceIsNoBank(t *testing.T) {
	bound := (creditSeconds + 2*uint64(metering.DefaultMaxGap/time.Second) + 2*2 + 2) * 555 // and the tolerance, and what passes
	for _, per := range []time.Duration{time.Second, 5 * time.Second, 13 * time.Second} {
		t.Run(fmt.Sprintf("away/%s", per), func(t *testing.T) {
			m := newMarket(t)
			m.clock.Advance(15 * time.Minute)
			stolen, err := m.absence(per, 20*time.Millisecond, 68)
			if !errors.Is(err, verify.ErrCredit) || stolen > bound {
				t.Errorf("%d stolen, %d is the bound: %v", stolen, bound, err)
			}
		})
		t.Run(fmt.Sprintf("restarted/%s", per), func(t *testing.T) {
			m := newMarket(t)
			m.clock.Advance(15 * time.Minute)
			stolen, err := uint64(0), error(nil)
			for range 68 {
				if m.check, err = verify.Resume(m.conf, rig.ThroughJSON(t, m.check.State())); err != nil {
					t.Fatal(err)
				}
				got := uint64(0)
				if got, err = m.absence(per, 20*time.Millisecond, 1); err != nil {
					break
				}
				stolen += got
			}
			if !errors.Is(err, verify.ErrCredit) || stolen > bound {
				t.Errorf("%d stolen, %d is the bound: %v", stolen, bound, err)
			}
		})
		t.Run(fmt.Sprintf("banked/%s", per), func(t *testing.T) {
			m := newMarket(t)
			for range 15 {
				if stolen, err := m.absence(0, time.Minute, 1); err != nil || stolen != 0 {
					t.Fatal(stolen, err)
				}
			}
			stolen, err := m.absence(per, 20*time.Millisecond, 68)
			if !errors.Is(err, verify.ErrCredit) || stolen > bound {
				t.Errorf("%d stolen, %d is the bound: %v", stolen, bound, err)
			}
		})
	}
}

// TestCeilingOfAnOldState: a state from before there was a ceiling loads, and one
// with it comes back as it was.
func TestCeilingOfAnOldState(t *testing.T) {
	m := newMarket(t)
	old, err := json.Marshal(m.check.State())
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(old, &fields); err != nil || fields["ceiling"] != nil {
		t.Errorf("%s, %v", old, err)
	}
	if m.check, err = verify.Resume(m.conf, rig.ThroughJSON(t, m.check.State())); err != nil {
		t.Fatal(err)
	}
	m.run(2)
	most := m.within(m.owes())
	if err := m.check.CheckWithin(m.next(), most); err != nil {
		t.Fatal(err)
	}
	s := m.check.State()
	if back := rig.ThroughJSON(t, s); s.Ceiling == nil || *s.Ceiling != *back.Ceiling || s.Ceiling.Owed != most || s.Ceiling.At != s.Elapsed {
		t.Errorf("%+v, back %+v", s.Ceiling, back.Ceiling)
	}
	for range 2 { // no bound at all is none later, either
		m.run(1)
		if err := m.check.CheckWithin(m.next(), *new(uint256.Int).SetAllOne()); err != nil {
			t.Fatal(err)
		}
	}
}

// honest is a payee that suspends at its credit, with vouchers and records on
// their way for as long as it pleases the network, and a payer that comes and goes.
type honest struct {
	*market
	random  *rand.Rand
	sent    []metering.SignedRecord // and not yet with the payer
	owed    uint64
	known   uint64 // the voucher that the payee has
	signed  uint64
	prepay  uint64
	paused  bool
	drift   float64 // of the payee's clock against the payer's
	records int
	passes  func(time.Duration) // on the payer's clocks; nil: on all of them
}

// serve lets time pass. The payee reads its devices late or in time.
func (h *honest) serve(passed time.Duration) {
	for passed > 0 {
		step := min(passed, time.Duration(1+h.random.Int64N(int64(2900*time.Millisecond))))
		passed -= step
		if h.passes == nil {
			h.clock.Advance(step)
		} else {
			h.passes(step)
		}
		h.now += step.Seconds() * (1 + h.drift)
		h.tick()
		if h.paused {
			continue
		}
		s := h.next()
		h.sent, h.owed = append(h.sent, s), s.Owed.Uint64()
		h.enforce()
	}
}

// enforce suspends at the credit, and goes on when there is room again.
func (h *honest) enforce() {
	over := h.owed >= h.known+creditSeconds*555
	switch {
	case over && !h.paused:
		h.meter.Pause()
	case !over && h.paused:
		h.meter.Resume()
		h.tick()
	}
	h.paused = over
}

// hear checks some of the records that wait, and pays for them, at once or later.
func (h *honest) hear(most int) {
	for ; most > 0 && len(h.sent) > 0; most-- {
		s := h.sent[0]
		h.sent = h.sent[1:]
		if err := h.check.CheckWithin(s, h.within(h.signed)); err != nil {
			h.t.Fatalf("an honest payee is caught: %v", err)
		}
		h.records++
		if h.random.IntN(3) > 0 {
			h.pay(s.Owed.Uint64() + h.random.Uint64N(h.prepay+1))
		}
	}
}

func (h *honest) pay(target uint64) {
	h.signed = max(h.signed, target)
	if h.random.IntN(4) > 0 {
		h.known = h.signed
		h.enforce()
	}
}

func (h *honest) restart() {
	saved := rig.ThroughJSON(h.t, h.check.State())
	if h.random.IntN(3) == 0 {
		saved.BootID = "the boot before"
	}
	var err error
	if h.check, err = verify.Resume(h.conf, saved); err != nil {
		h.t.Fatal(err)
	}
}

// miss is time that the payer's clock does not count: its virtual machine is
// stopped, or it is rebooted and its wall clock wakes up late, or is set back.
func (h *honest) miss() {
	missed := time.Duration(h.random.Int64N(int64(time.Minute)))
	h.passes = func(step time.Duration) { h.clock.SetWall(h.clock.Now().Wall + int64(step)) }
	reboot := h.random.IntN(2) == 0
	if reboot {
		h.passes = func(time.Duration) {}
		h.clock.SetWall(h.clock.Now().Wall - h.random.Int64N(int64(time.Hour)))
	}
	h.serve(missed)
	h.passes = nil
	if !reboot {
		return
	}
	saved := rig.ThroughJSON(h.t, h.check.State())
	saved.BootID = "the boot before"
	var err error
	if h.check, err = verify.Resume(h.conf, saved); err != nil {
		h.t.Fatal(err)
	}
}

func (h *honest) step() {
	switch h.random.IntN(11) {
	case 10:
		h.miss()
	case 0: // away, stopped, asleep, or cut off: what was sent is buffered
		h.serve(time.Duration(h.random.Int64N(int64(3 * time.Minute))))
	case 1:
		h.restart()
	case 2: // it comes back, and has the newest voucher taken
		h.known = h.signed
		h.enforce()
	case 3:
		h.hear(len(h.sent))
	case 4:
		h.pay(h.owes() + h.prepay)
	default:
		h.serve(time.Duration(h.random.Int64N(int64(4 * time.Second))))
		h.hear(h.random.IntN(6))
	}
}

// TestCeilingNeverCatchesTheHonest: whenever records and vouchers come, an honest
// payee is under the ceiling. Its clock may be slewed against the payer's.
func TestCeilingNeverCatchesTheHonest(t *testing.T) {
	total := 0
	for seed := range uint64(30) {
		m := newMarket(t)
		h := &honest{market: m, random: rand.New(rand.NewPCG(seed, 1)), owed: m.owes()}
		h.signed, h.known = h.owed, h.owed
		h.prepay = []uint64{0, 0, 1000, 60 * 555}[seed%4]
		h.drift = []float64{0, 500e-6, -500e-6}[seed%3]
		for range 200 {
			h.step()
		}
		if total += h.records; h.records < 20 {
			t.Errorf("seed %d: %d records tell nothing", seed, h.records)
		}
	}
	t.Logf("%d records", total)
}

// TestCeilingAfterTheCreditWasUsed: a payee that used up the credit and a late
// reading, to the second, goes on for hours by a clock that is slewed, and over a
// reboot of the payer, whose wall clock woke up late.
func TestCeilingAfterTheCreditWasUsed(t *testing.T) {
	m := newMarket(t)
	paid, payee := m.owes(), 1.0
	serve := func(seconds int) {
		t.Helper()
		for range seconds {
			m.now += payee
			m.tick()
		}
		s := m.next()
		if err := m.check.CheckWithin(s, m.within(paid)); err != nil {
			t.Fatalf("an honest payee is caught: %v", err)
		}
		paid = s.Owed.Uint64()
	}
	const all = creditSeconds/2 + int(metering.DefaultMaxGap/time.Second)
	m.clock.Advance(time.Hour)
	serve(all)
	for payee = 1 + 500e-6; m.now < 7200; serve(10) {
		m.clock.Advance(10 * time.Second)
	}
	saved := rig.ThroughJSON(t, m.check.State())
	saved.BootID = "the boot before"
	payee = 1
	var err error
	if m.check, err = verify.Resume(m.conf, saved); err != nil { // an hour passed, and no clock tells
		t.Fatal(err)
	}
	serve(all)
}

// TestClockThatMissedTime: a payer's host was rebooted and its wall clock woke up
// late, or its virtual machine was stopped. An honest payee that served meanwhile
// is believed, and one that makes up time gets its credit once for each such event.
func TestClockThatMissedTime(t *testing.T) {
	const late = 2 * uint64(metering.DefaultMaxGap/time.Second)
	reboot := func(m *market, wall time.Duration) {
		m.clock.SetWall(m.clock.Now().Wall + int64(wall))
		saved := rig.ThroughJSON(t, m.check.State())
		saved.BootID = "the boot before"
		var err error
		if m.check, err = verify.Resume(m.conf, saved); err != nil {
			t.Fatal(err)
		}
	}
	for name, miss := range map[string]func(m *market){
		"rebooted, an hour behind":  func(m *market) { reboot(m, -time.Hour) },
		"rebooted, seconds behind":  func(m *market) { reboot(m, 4*time.Second) },
		"stopped":                   func(m *market) { m.clock.SetWall(m.clock.Now().Wall + 8e9) },
		"stopped, and started anew": func(m *market) { m.clock.SetWall(m.clock.Now().Wall + 8e9); m.restart() },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMarket(t)
			paid := m.owes()
			serve := func(seconds int) error {
				for range seconds {
					m.now++
					m.tick()
				}
				s := m.next()
				err := m.check.CheckWithin(s, m.within(paid))
				if err == nil {
					paid = s.Owed.Uint64()
				}
				return err
			}
			for range 3 { // each time the clock misses 8 seconds, which are served and shown in pieces
				miss(m)
				for range 8 {
					if err := serve(1); err != nil {
						t.Fatalf("an honest payee is caught: %v", err)
					}
					m.restart()
				}
				for range 60 {
					m.clock.Advance(time.Second)
					if err := serve(1); err != nil {
						t.Fatalf("an honest payee is caught later: %v", err)
					}
				}
			}
			miss(m)
			bound := (creditSeconds + late + 2*2*2 + 2) * 555
			stolen, err := m.absence(time.Second, 20*time.Millisecond, 68)
			if stolen > bound || !errors.Is(err, verify.ErrClock) && !errors.Is(err, verify.ErrCredit) {
				t.Errorf("%d stolen, %d is the bound: %v", stolen, bound, err)
			}
		})
	}
}

// restart goes on from what is on disk.
func (m *market) restart() {
	m.t.Helper()
	var err error
	if m.check, err = verify.Resume(m.conf, rig.ThroughJSON(m.t, m.check.State())); err != nil {
		m.t.Fatal(err)
	}
}

// TestNothingIsPayableAfterTheEnd: the payer gave the lease back. What was metered
// before, and shown late, is owed; what was metered after is not, over the
// tolerance, in however many records, and is no lie of a payee that heard late.
func TestNothingIsPayableAfterTheEnd(t *testing.T) {
	m := newMarket(t)
	owed := func(perDevice time.Duration) uint64 {
		o, err := m.conf.Lease.Owed(uint64(2 * perDevice))
		if err != nil {
			t.Fatal(err)
		}
		return o.Uint64()
	}
	within := func() uint256.Int { return *uint256.NewInt(1e9) }
	m.run(3)
	before := m.next()
	m.run(1)
	m.check.Stop(within()) // after 14 s
	m.clock.Advance(time.Minute)
	m.check.Stop(within())
	if err := m.check.CheckWithin(before, within()); err != nil || m.owes() != owed(13*time.Second) {
		t.Errorf("%d owed of time before the end, want %d: %v", m.owes(), owed(13*time.Second), err)
	}
	m.restart()
	for i := range 3 {
		m.run(5)
		if err := m.check.CheckWithin(m.next(), within()); err != nil || m.owes() != owed(16*time.Second) {
			t.Errorf("record %d: %d owed, want %d: %v", i, m.owes(), owed(16*time.Second), err)
		}
		saved := rig.ThroughJSON(t, m.check.State())
		saved.BootID = "the boot before"
		var err error
		if m.check, err = verify.Resume(m.conf, saved); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEndOfALeaseWhoseClockMissedTime: what a payee served while its payer was
// rebooted is owed also where the payer gives the lease back first of all.
func TestEndOfALeaseWhoseClockMissedTime(t *testing.T) {
	m := newMarket(t)
	saved := rig.ThroughJSON(t, m.check.State())
	saved.BootID = "the boot before"
	m.clock.SetWall(m.clock.Now().Wall - int64(time.Hour))
	var err error
	if m.check, err = verify.Resume(m.conf, saved); err != nil {
		t.Fatal(err)
	}
	m.check.Stop(m.within(m.owes()))
	for range 8 {
		m.now++
		m.tick()
	}
	s := m.next()
	if err := m.check.CheckWithin(s, m.within(m.owes())); err != nil || m.owes() != s.Owed.Uint64() {
		t.Errorf("%d owed, want %s: %v", m.owes(), s.Owed.Dec(), err)
	}
}
