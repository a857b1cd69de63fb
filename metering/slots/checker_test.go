package slots_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/metering/verify"
)

// shared is a lease of seven slots and its renter's checker, whose clock goes with the readings.
type shared struct {
	*service
	clock    *sim.Clock
	config   verify.Config
	check    *verify.Checker
	recorder *usage.Recorder
	now      int64 // ms
	ids      uint64
}

func newShared(t *testing.T) *shared {
	s := &shared{service: newService(t, 7, gpu), clock: sim.NewClock(), now: 1000}
	s.ok(s.meter.Describe("sim", metering.Device{UUID: gpu, Name: "Good GPU", BootID: "boot"}))
	s.config = verify.Config{
		Lease: s.terms(lease, 7), Key: meterKey.Address(), Tolerance: time.Second, RecordEvery: 5 * time.Second, Clock: s.clock,
	}
	var err error
	s.check, err = verify.New(s.config)
	s.ok(err)
	s.recorder, err = usage.NewRecorder(s.config.Lease, meterKey, nil)
	s.ok(err)
	s.read(s.now)
	return s
}

// run is five seconds in which so many requests of 40 ms are served, one after the other.
func (s *shared) run(requests int) metering.SignedRecord {
	s.t.Helper()
	at := s.now
	for range requests {
		s.ids++
		s.take(lease, s.ids, at)
		at += 40
		s.give(lease, s.ids, at, metering.RequestDone)
	}
	s.every(s.now+1000, s.now+5000)
	s.now += 5000
	s.clock.Advance(5 * time.Second)
	record, err := s.recorder.Next(context.Background(), s.cut(lease, false), false)
	s.ok(err)
	return record
}

func sent(t *testing.T, r metering.SignedRecord) (got metering.SignedRecord) {
	t.Helper()
	document, err := json.Marshal(r)
	if err == nil {
		err = json.Unmarshal(document, &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestCheckerOfSlots: a renter's checker accepts what a meter of slots cuts, record after record, over a restart of the renter, with as many
// requests in each as are listed and more: none of that fills its disk by more than it allows.
func TestCheckerOfSlots(t *testing.T) {
	s := newShared(t)
	for i := range 300 {
		record := sent(t, s.run([]int{64, 100, 0, 125}[i%4]))
		if err := s.check.Check(record); err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 {
			state, err := json.Marshal(s.check.State())
			s.ok(err)
			var kept verify.State
			s.ok(json.Unmarshal(state, &kept))
			s.check, err = verify.Resume(s.config, kept)
			s.ok(err)
		}
	}
	if want := uint64(300 / 4 * (64 + 100 + 125) * 40 * ms / 7); s.check.State().Nanos != want {
		t.Errorf("%d ns, want %d", s.check.State().Nanos, want)
	}
}

func TestCheckerOfSlotsRefuses(t *testing.T) {
	sign := func(s *shared, r *metering.SignedRecord) {
		owed, err := s.config.Lease.Owed(uint64(r.Evidence.Total))
		s.ok(err)
		r.Nanos, r.Owed, r.EvidenceHash = uint64(r.Evidence.Total), owed, r.Evidence.Hash()
		r.Signature, err = meterKey.Sign(context.Background(), r.Digest(s.domain()))
		s.ok(err)
	}
	for name, cheat := range map[string]func(s *shared, r *metering.SignedRecord){
		"time of devices that nobody has for itself": func(_ *shared, r *metering.SignedRecord) {
			e := &r.Evidence
			e.Kind, e.Slots, e.Nanos, e.Total = "", nil, e.Devices[0].Nanos.Allocated, e.Devices[0].Total
		},
		"fewer slots than were offered": func(_ *shared, r *metering.SignedRecord) {
			e := &r.Evidence
			before := e.Total - e.Nanos
			e.Slots.Slots = 3 // what is carried fits into three
			e.Nanos, e.Slots.Rest, _ = e.Slots.Share().Bill(e.Slots.SlotNanos, e.Slots.Carried)
			e.Total = before + e.Nanos
		},
		"more carried over than was left": func(_ *shared, r *metering.SignedRecord) {
			e := &r.Evidence
			before := e.Total - e.Nanos
			e.Slots.Carried++
			e.Nanos, e.Slots.Rest, _ = e.Slots.Share().Bill(e.Slots.SlotNanos, e.Slots.Carried)
			e.Total = before + e.Nanos
		},
		"a request that is billed a nanosecond more than it ran": func(_ *shared, r *metering.SignedRecord) {
			*r = relied(*r, func(e *metering.SlotEvidence) { e.Requests[0].Nanos++ })
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShared(t)
			s.ok(s.check.Check(s.run(3)))
			honest := s.run(4)
			bad := sent(t, honest)
			cheat(s, &bad)
			sign(s, &bad)
			if err := s.check.Check(bad); !errors.Is(err, metering.ErrEvidence) {
				t.Errorf("got %v", err)
			}
			if err := s.check.Check(honest); err != nil {
				t.Errorf("the honest record after it: %v", err)
			}
		})
	}
	t.Run("slots of a lease that has its devices for itself", func(t *testing.T) {
		s := newShared(t)
		s.config.Lease.Share = metering.Share{}
		check, err := verify.New(s.config)
		s.ok(err)
		if err := check.Check(s.run(3)); !errors.Is(err, metering.ErrEvidence) {
			t.Errorf("got %v", err)
		}
	})
}

func relied(r metering.SignedRecord, change func(e *metering.SlotEvidence)) metering.SignedRecord {
	r.Evidence = lie(r.Evidence, change)
	return r
}

// idle lets so many seconds pass, of which the renter's own clock sees some.
func (s *shared) idle(seconds, seen int64) {
	s.t.Helper()
	s.every(s.now+1000, s.now+seconds*1000)
	s.now += seconds * 1000
	wall := s.clock.Now().Wall + seconds*1e9
	s.clock.Advance(time.Duration(seen) * time.Second)
	s.clock.SetWall(wall)
}

// credit is what the lease may owe, with so many GPU-seconds more.
func (s *shared) credit(seconds uint64) uint256.Int {
	s.t.Helper()
	most, err := s.config.Lease.Owed(s.check.State().Nanos + seconds*1e9)
	s.ok(err)
	return most
}

// TestRenterThatWasStopped: a renter's machine stood still while the devices of its lease, of which it used none, ran on. Its provider is no liar,
// and may bill no more for that.
func TestRenterThatWasStopped(t *testing.T) {
	s := newShared(t)
	s.ok(s.check.Check(s.run(3)))
	s.idle(1000, 1000)
	for range 3 {
		s.idle(600, 0)
		if err := s.check.CheckWithin(s.run(64), s.credit(60)); err != nil {
			t.Fatal(err)
		}
	}
	if limit := time.Duration(s.check.Limit()); limit > 1022*time.Second { // that its own clock saw, and the tolerance
		t.Errorf("its clock allows %s", limit)
	}
}

// TestEndedAtTheCredit: a request that runs when its lease has used its credit is ended there, is paid, and disputes nothing.
func TestEndedAtTheCredit(t *testing.T) {
	s := newShared(t)
	most := s.credit(10)
	s.take(lease, 1, s.now)
	began := s.now
	for {
		due, err := s.meter.Due(lease, s.now*ms)
		s.ok(err)
		if due >= 10e9 {
			break
		}
		s.idle(1, 1)
	}
	s.give(lease, 1, s.now, metering.Outcome("limit"))
	e := s.cut(lease, false)
	record, err := s.recorder.Next(context.Background(), e, false)
	s.ok(err)
	s.ok(s.check.CheckWithin(sent(t, record), most))
	books := slots.Books{Own: map[uint64]slots.Own{1: {From: began * ms, To: s.now * ms}}}
	if _, err := books.Check(e, slots.Limits{}); err != nil || record.Nanos != 10e9 {
		t.Errorf("%d ns: %v", record.Nanos, err)
	}
}

// TestSkippedRecordBillsNothing: what a record bills that was not shown is paid by nobody, whichever part of the clock's time it is.
func TestSkippedRecordBillsNothing(t *testing.T) {
	s := newShared(t)
	first := s.run(3)
	s.ok(s.check.Check(first))
	s.idle(1000, 1000)
	next := s.run(0)
	sign := func(hidden int64) metering.SignedRecord {
		r := sent(t, next)
		r.Evidence.Total += hidden
		owed, err := s.config.Lease.Owed(uint64(r.Evidence.Total))
		s.ok(err)
		r.Sequence, r.Nanos, r.Owed, r.EvidenceHash = 3, uint64(r.Evidence.Total), owed, r.Evidence.Hash()
		r.Signature, err = meterKey.Sign(context.Background(), r.Digest(s.domain()))
		s.ok(err)
		return r
	}
	for _, hidden := range []int64{0, 1, 900e9} {
		r := sign(hidden)
		state, err := s.check.State().Skip(r)
		if err == nil {
			var check *verify.Checker
			check, err = verify.Resume(s.config, state)
			s.ok(err)
			err = check.Check(r)
		}
		if hidden == 0 && err != nil || hidden > 0 && !errors.Is(err, verify.ErrSequence) {
			t.Errorf("%d ns hidden: %v", hidden, err)
		}
		books := slots.Books{Own: map[uint64]slots.Own{}, Total: first.Evidence.Total, Rest: first.Evidence.Rest()}
		if _, err := books.Check(r.Evidence, slots.Limits{}); hidden == 0 && err != nil || hidden > 0 && !errors.Is(err, slots.ErrOvercharged) {
			t.Errorf("%d ns hidden, by the books: %v", hidden, err)
		}
	}
}
