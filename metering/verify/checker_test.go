package verify_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/metering/verify"
)

// market is a payee with two GPUs and a payer that checks it, ten seconds into
// a lease of which two records were accepted.
type market struct {
	t     *testing.T
	clock *sim.Clock
	meter *usage.Meter
	rec   *usage.Recorder
	check *verify.Checker
	conf  verify.Config
	now   float64
	key   rig.Key
}

func newMarket(t *testing.T) *market {
	t.Helper()
	l := rig.Lease(rig.GPU, rig.Second)
	l.MaxGap, l.Tick = metering.DefaultMaxGap, metering.DefaultTick
	whole := false
	l.Models = []metering.Model{{Name: "Good GPU", MemoryBytes: 81 << 30, MIG: &whole}}
	m := &market{t: t, clock: sim.NewClock(), meter: rig.NewMeter(t, rig.GPU, rig.Second), now: 1, key: rig.NewKey(t, 1)}
	m.conf = verify.Config{Lease: l, Key: m.key.Address(), Tolerance: 2 * time.Second, Clock: m.clock}
	var err error
	if m.rec, err = usage.NewRecorder(l, m.key, nil); err != nil {
		t.Fatal(err)
	}
	if m.check, err = verify.New(m.conf); err != nil {
		t.Fatal(err)
	}
	describe(t, m.meter)
	m.tick()
	for range 2 {
		m.run(5)
		if err := m.check.Check(m.next()); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *market) tick() {
	rig.Observe(m.t, m.meter, rig.Of(rig.GPU, rig.At(m.now)), rig.Of(rig.Second, rig.At(m.now)))
}

func (m *market) run(seconds int) {
	for range seconds {
		m.now++
		m.clock.Advance(time.Second)
		m.tick()
	}
}

func (m *market) next() metering.SignedRecord { return rig.Next(m.t, m.rec, m.meter, false) }

// resign signs what the payee changed: the payee can sign any lie.
func (m *market) resign(s *metering.SignedRecord) {
	var err error
	if s.Signature, err = m.key.Sign(m.t.Context(), s.Digest(metering.Domain(31337, m.conf.Lease.Escrow))); err != nil {
		m.t.Fatal(err)
	}
}

// lie makes a record whose evidence supports it, for any time on each device.
func (m *market) lie(s *metering.SignedRecord, perDevice ...int64) {
	e := &s.Evidence
	e.Devices = slices.Clone(e.Devices)
	e.Nanos, e.Total = 0, 0
	for i := range e.Devices {
		d := &e.Devices[i]
		before := d.Total - d.Nanos.Allocated
		d.Nanos.Allocated = perDevice[i]
		d.To.Mono = d.From.Mono + perDevice[i]
		d.Total = before + perDevice[i]
		e.Nanos += perDevice[i]
		e.Total += d.Total
	}
	m.state(s)
}

// state makes the record say what its evidence says.
func (m *market) state(s *metering.SignedRecord) {
	s.Nanos = uint64(s.Evidence.Total)
	owed, err := m.conf.Lease.Owed(s.Nanos)
	if err != nil {
		m.t.Fatal(err)
	}
	s.Owed = owed
	s.EvidenceHash = s.Evidence.Hash()
}

func TestCheckerAccepts(t *testing.T) {
	m := newMarket(t)
	m.run(5)
	s := rig.ThroughJSON(t, m.next())
	if err := m.check.Check(s); err != nil {
		t.Fatal(err)
	}
	if s.Nanos != 30e9 || s.Owed.Uint64() != 1000+30*555 || s.Devices != 2 {
		t.Errorf("record %+v", s.Record)
	}
	if st := m.check.State(); st.Nanos != 30e9 || st.Sequence != 3 || st.Owed != s.Owed {
		t.Errorf("state %+v", st)
	}
}

// TestCheckerRefuses has every way in which a payee may cheat with a record it
// signed, five honest seconds after two good records.
func TestCheckerRefuses(t *testing.T) {
	stranger := rig.NewKey(t, 9)
	tests := []struct {
		name  string
		cheat func(m *market, s *metering.SignedRecord)
		want  error
	}{
		{"more time than passed", func(m *market, s *metering.SignedRecord) { m.lie(s, 7e9+1, 7e9) }, verify.ErrClock},
		{"one device's gap spent on another", func(m *market, s *metering.SignedRecord) { m.lie(s, 10e9, 0) }, verify.ErrClock},
		{"a price changed in mid-lease", func(m *market, s *metering.SignedRecord) { s.Owed.AddUint64(&s.Owed, 1) }, metering.ErrPrice},
		{"a lower amount than the price makes", func(m *market, s *metering.SignedRecord) { s.Owed.SubUint64(&s.Owed, 1) }, metering.ErrPrice},
		{"a debt from before the lease", func(m *market, s *metering.SignedRecord) {
			s.OwedBefore.AddUint64(&s.OwedBefore, 7)
			s.Owed.AddUint64(&s.Owed, 7)
		}, metering.ErrPrice},
		{"another start, and the right amount", func(m *market, s *metering.SignedRecord) { s.OwedBefore.SubUint64(&s.OwedBefore, 1) }, metering.ErrPrice},
		{"an amount no channel holds", func(m *market, s *metering.SignedRecord) { s.Owed = *new(uint256.Int).SetAllOne() }, metering.ErrPrice},
		{"a forked chain", func(m *market, s *metering.SignedRecord) { s.Previous = common.Hash{1} }, verify.ErrForked},
		{"a rewritten record", func(m *market, s *metering.SignedRecord) { s.Sequence-- }, verify.ErrForked},
		{"a number left out", func(m *market, s *metering.SignedRecord) { s.Sequence++ }, verify.ErrSequence},
		{"an old number", func(m *market, s *metering.SignedRecord) { s.Sequence = 1 }, verify.ErrSequence},
		{"number zero", func(m *market, s *metering.SignedRecord) { s.Sequence = 0 }, verify.ErrSequence},
		{"time taken back", func(m *market, s *metering.SignedRecord) { s.Nanos = 19e9 }, verify.ErrBackwards},
		{"another lease", func(m *market, s *metering.SignedRecord) { s.LeaseID[0]++ }, verify.ErrLease},
		{"another channel", func(m *market, s *metering.SignedRecord) { s.ChannelID[0]++ }, verify.ErrLease},
		{"another offer", func(m *market, s *metering.SignedRecord) { s.OfferHash[0]++ }, verify.ErrLease},
		{"more devices than leased", func(m *market, s *metering.SignedRecord) { s.Devices = 3 }, verify.ErrDevices},
		{"fewer devices than leased", func(m *market, s *metering.SignedRecord) { s.Devices = 1 }, verify.ErrDevices},
		{"a device left out of the evidence", func(m *market, s *metering.SignedRecord) {
			s.Evidence.Devices = s.Evidence.Devices[:1]
			s.EvidenceHash = s.Evidence.Hash()
		}, verify.ErrDevices},
		{"a device that was not leased", func(m *market, s *metering.SignedRecord) {
			s.Evidence.Devices[1].Device.UUID = "GPU-x"
			m.state(s)
		}, verify.ErrDevices},
		{"one device twice", func(m *market, s *metering.SignedRecord) {
			s.Evidence.Devices[1].Device.UUID = rig.GPU
			m.state(s)
		}, verify.ErrDevices},
		{"evidence of another record", func(m *market, s *metering.SignedRecord) { s.Evidence.Samples++ }, metering.ErrEvidence},
		{"no evidence", func(m *market, s *metering.SignedRecord) { s.Evidence = metering.Evidence{} }, metering.ErrEvidence},
		{"evidence for less time", func(m *market, s *metering.SignedRecord) {
			s.Nanos += 1e9
			s.Owed.AddUint64(&s.Owed, 555)
		}, metering.ErrEvidence},
		{"a sum that is not the devices'", func(m *market, s *metering.SignedRecord) {
			s.Evidence.Total += 1e9
			s.Evidence.Nanos += 1e9
			m.state(s)
		}, metering.ErrEvidence},
		{"longer gaps billed than offered", func(m *market, s *metering.SignedRecord) {
			s.Evidence.MaxGap++
			m.state(s)
		}, metering.ErrEvidence},
		{"time moved between devices", func(m *market, s *metering.SignedRecord) {
			s.Evidence.Devices[0].Total += 1e9
			s.Evidence.Devices[1].Total -= 1e9
			m.state(s)
		}, metering.ErrEvidence},
		{"negative time", func(m *market, s *metering.SignedRecord) {
			s.Evidence.Devices[0].Nanos.Gap = -1
			m.state(s)
		}, metering.ErrEvidence},
		{"more allocated than between its stamps", func(m *market, s *metering.SignedRecord) {
			s.Evidence.Devices[0].To.Mono -= 1
			m.state(s)
		}, metering.ErrEvidence},
		{"seconds shown twice", func(m *market, s *metering.SignedRecord) {
			s.Evidence.Devices[0].From.Mono -= 1e9
			m.state(s)
		}, metering.ErrEvidence},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMarket(t)
			m.run(5)
			honest := m.next()
			s := rig.ThroughJSON(t, honest)
			tt.cheat(m, &s)
			m.resign(&s)
			before := m.check.State()
			if err := m.check.Check(s); !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if after := m.check.State(); after.Sequence != before.Sequence || after.Last != before.Last || after.Owed != before.Owed {
				t.Error("a refused record changed the checker")
			}
			if err := m.check.Check(honest); err != nil {
				t.Errorf("the honest record after it: %v", err)
			}
		})
	}
	for name, cheat := range map[string]func(*metering.SignedRecord, *market){
		"a flipped bit": func(s *metering.SignedRecord, _ *market) { s.Signature[5] ^= 1 },
		"no signature":  func(s *metering.SignedRecord, _ *market) { s.Signature = nil },
		"a stranger": func(s *metering.SignedRecord, m *market) {
			s.Signature, _ = stranger.Sign(t.Context(), s.Digest(metering.Domain(31337, m.conf.Lease.Escrow)))
		},
		"another chain": func(s *metering.SignedRecord, m *market) {
			s.Signature, _ = m.key.Sign(t.Context(), s.Digest(metering.Domain(1, m.conf.Lease.Escrow)))
		},
		"a changed figure": func(s *metering.SignedRecord, _ *market) { s.To++ },
	} {
		m := newMarket(t)
		m.run(1)
		s := m.next()
		cheat(&s, m)
		if err := m.check.Check(s); !errors.Is(err, verify.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckerClockIsExact(t *testing.T) {
	m := newMarket(t)
	m.run(5)
	s := m.next()
	m.lie(&s, 7e9, 7e9) // 15 s passed and 2 s are tolerated: 17 s a device
	m.resign(&s)
	if m.check.Limit() != 34e9 {
		t.Errorf("limit %d", m.check.Limit())
	}
	if err := m.check.Check(s); err != nil {
		t.Errorf("to the nanosecond: %v", err)
	}
}

func TestCheckerReplayAndFinal(t *testing.T) {
	m := newMarket(t)
	m.run(1)
	s := rig.Next(t, m.rec, m.meter, true)
	if err := m.check.Check(s); err != nil {
		t.Fatal(err)
	}
	if err := m.check.Check(s); !errors.Is(err, verify.ErrReplayed) {
		t.Errorf("the same record again: %v", err)
	}
	again := s
	again.Sequence, again.Previous = s.Sequence+1, m.check.State().Last
	m.resign(&again)
	if err := m.check.Check(again); !errors.Is(err, verify.ErrForked) {
		t.Errorf("a record after the final one: %v", err)
	}
}

func TestCheckerResumes(t *testing.T) {
	m := newMarket(t)
	saved := rig.ThroughJSON(t, m.check.State())
	m.run(5)
	s := m.next()
	c, err := verify.Resume(m.conf, saved)
	if err != nil {
		t.Fatal(err)
	}
	if c.Elapsed() != 15e9 { // the payer was away for five of them
		t.Errorf("elapsed %d", c.Elapsed())
	}
	if err := c.Check(s); err != nil {
		t.Error(err)
	}
}

// TestCheckerResumesAfterReboot has only the wall clock to span the hole.
func TestCheckerResumesAfterReboot(t *testing.T) {
	for _, tt := range []struct {
		name string
		wall time.Duration // how the wall clock moved meanwhile
		want int64
	}{
		{"five seconds later", 5 * time.Second, 15e9},
		{"with a clock set back", -time.Hour, 10e9},
	} {
		m := newMarket(t)
		saved := rig.ThroughJSON(t, m.check.State())
		saved.BootID = "the boot before"
		saved.Start.Boot = 99e9
		m.clock.SetWall(m.clock.Now().Wall + int64(tt.wall))
		c, err := verify.Resume(m.conf, saved)
		if err != nil {
			t.Fatal(err)
		}
		if c.Elapsed() != tt.want {
			t.Errorf("%s: elapsed %d, want %d", tt.name, c.Elapsed(), tt.want)
		}
		m.clock.SetWall(1) // from here on nobody's wall clock matters
		m.clock.Advance(time.Second)
		if c.Elapsed() != tt.want+1e9 {
			t.Errorf("%s: a second later %d", tt.name, c.Elapsed())
		}
	}
}

// TestCheckerCountsThePayersSleep: the renter's laptop sleeps, the GPU does not.
func TestCheckerCountsThePayersSleep(t *testing.T) {
	m := newMarket(t)
	m.clock.Sleep(time.Minute)
	if got := m.check.Elapsed(); got != 70e9 {
		t.Errorf("elapsed %d", got)
	}
}

func TestCheckerConfig(t *testing.T) {
	good := verify.Config{Lease: rig.Lease(), Key: common.Address{1}}
	for name, change := range map[string]func(*verify.Config){
		"no key":               func(c *verify.Config) { c.Key = common.Address{} },
		"a negative tolerance": func(c *verify.Config) { c.Tolerance = -1 },
		"no devices":           func(c *verify.Config) { c.Lease.Devices = nil },
		"no price":             func(c *verify.Config) { c.Lease.Price = metering.Price{} },
	} {
		bad := good
		change(&bad)
		if _, err := verify.New(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := verify.Resume(bad, verify.State{}); err == nil {
			t.Errorf("%s: resumed", name)
		}
	}
	if _, err := verify.New(good); err != nil {
		t.Error(err)
	}
}

// TestBootsEnd: a device's host goes on in another boot once the end of the one before was shown, and bills nothing else on
// another boot's clock.
func TestBootsEnd(t *testing.T) {
	next := func(m *market, boot string, from, seconds float64) metering.SignedRecord { // on one device, the other stands still
		for range int(seconds) + 1 {
			m.clock.Advance(time.Second)
			rig.Observe(m.t, m.meter, rig.Of(rig.GPU, rig.At(from, func(r *metering.Reading) { r.BootID = boot })))
			from++
		}
		return m.next()
	}
	change := func(m *market, s metering.SignedRecord, change func(*metering.DeviceEvidence)) metering.SignedRecord {
		s.Evidence.Devices = slices.Clone(s.Evidence.Devices)
		change(&s.Evidence.Devices[0])
		s.EvidenceHash = s.Evidence.Hash()
		m.resign(&s)
		return s
	}
	for _, test := range []struct {
		name string
		lie  func(m *market, honest metering.SignedRecord) metering.SignedRecord
		want error
	}{
		{"shown", func(_ *market, s metering.SignedRecord) metering.SignedRecord { return s }, nil},
		{"not shown", func(m *market, s metering.SignedRecord) metering.SignedRecord {
			return change(m, s, func(d *metering.DeviceEvidence) { d.Gaps = nil })
		}, metering.ErrEvidence},
		{"under its old name", func(m *market, s metering.SignedRecord) metering.SignedRecord {
			return change(m, s, func(d *metering.DeviceEvidence) { d.Device.BootID = "boot" })
		}, metering.ErrEvidence},
		{"more than there is of the new one", func(m *market, s metering.SignedRecord) metering.SignedRecord {
			return change(m, s, func(d *metering.DeviceEvidence) { d.To.Mono = d.From.Mono + d.Nanos.Allocated - 1 })
		}, metering.ErrEvidence},
		{"of time in the old one that was shown before", func(m *market, s metering.SignedRecord) metering.SignedRecord {
			return change(m, s, func(d *metering.DeviceEvidence) {
				end := m.check.State().Devices[0].Mono
				d.Nanos.Paused, d.From.Mono = 2e9, end-1e9
				d.Gaps[0].From = end + 1e9
			})
		}, metering.ErrEvidence},
		{"before the host was switched on", func(m *market, s metering.SignedRecord) metering.SignedRecord {
			return change(m, s, func(d *metering.DeviceEvidence) { d.From.Mono = -5e9; d.Gaps[0].To = -5e9 })
		}, metering.ErrEvidence},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMarket(t)
			if err := m.check.Check(test.lie(m, next(m, "next", 1, 3))); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if test.want != nil {
				return
			}
			if err := m.check.Check(next(m, "next", 5, 2)); err != nil { // it goes on
				t.Error(err)
			}
			if err := m.check.Check(change(m, next(m, "next", 8, 2), func(d *metering.DeviceEvidence) { d.Device.BootID = "boot" })); !errors.Is(err, metering.ErrEvidence) {
				t.Errorf("back in the first boot: %v", err)
			}
		})
	}
}

// TestBootWithoutAnAnswer: a device that answers only a while after a reboot shows in which boot it is when it does, whether what
// was measured before names the new boot already or, as older meters do, the one in which it answered last.
func TestBootWithoutAnAnswer(t *testing.T) {
	mute := func(r *metering.Reading) { r.BootID, r.Health, r.Seen = "next", metering.Lost, "" }
	for _, older := range []bool{false, true} {
		m := newMarket(t)
		for _, readings := range [][]metering.Reading{{rig.At(1, mute), rig.At(2, mute)}, {rig.At(3, mute)}, {rig.At(4), rig.At(5), rig.At(6)}, {rig.At(7), rig.At(8)}} {
			for _, r := range readings {
				if r.Seen != "" {
					r.BootID = "next"
				}
				m.clock.Advance(time.Second)
				rig.Observe(t, m.meter, rig.Of(rig.GPU, r))
			}
			evidence := m.meter.Cut()
			if older && readings[0].Seen == "" {
				evidence.Devices[0].Device.BootID = "boot"
			}
			record, err := m.rec.Next(t.Context(), evidence, false)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.check.Check(record); err != nil {
				t.Fatalf("of an older meter: %t: %v", older, err)
			}
		}
		if n := m.check.State().Nanos; n != 24e9 {
			t.Errorf("of an older meter: %t: %d ns billed", older, n)
		}
	}
}
