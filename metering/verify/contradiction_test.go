package verify_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/metering/verify"
)

// TestCheckerRefusesContradictions has evidence of two GPUs that contradicts itself,
// what was shown before, or the offer, in the first one alone; the sums agree. Five
// seconds passed since the last record, all of them healthy.
func TestCheckerRefusesContradictions(t *testing.T) {
	hole := func(from, to float64, reason string) metering.Hole {
		return metering.Hole{From: int64(from * 1e9), To: int64(to * 1e9), Reason: reason}
	}
	tests := []struct {
		name  string
		cheat func(e *metering.Evidence, d *metering.DeviceEvidence)
		want  error
	}{
		{"an XID that stops, and no time down", func(_ *metering.Evidence, d *metering.DeviceEvidence) {
			d.XIDs = []metering.XID{metering.NewXID(79, 13e9)}
		}, metering.ErrEvidence},
		{"holes longer than gaps and down time", func(_ *metering.Evidence, d *metering.DeviceEvidence) {
			d.Gaps = []metering.Hole{hole(12, 14, metering.ReasonStalled)}
		}, metering.ErrEvidence},
		{"holes that overlap", func(_ *metering.Evidence, d *metering.DeviceEvidence) {
			d.Nanos.Allocated, d.Nanos.Active, d.Nanos.Gap = 3e9, 0, 2e9
			d.Gaps = []metering.Hole{hole(12, 13, metering.ReasonStalled), hole(12, 13, metering.ReasonInterval)}
		}, metering.ErrEvidence},
		{"allocated and down time over the time between the stamps", func(_ *metering.Evidence, d *metering.DeviceEvidence) {
			d.Nanos.Down, d.Gaps = 2e9, []metering.Hole{hole(12, 14, "lost")}
		}, metering.ErrEvidence},
		{"time that is nowhere", func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.To.Mono += 1 }, metering.ErrEvidence},
		{"time without a sample", func(e *metering.Evidence, d *metering.DeviceEvidence) {
			e.Samples, d.Samples = e.Samples-d.Samples, 0
		}, metering.ErrEvidence},
		{"samples further apart than it bills", func(e *metering.Evidence, d *metering.DeviceEvidence) {
			e.Samples, d.Samples = e.Samples-d.Samples+1, 1
		}, metering.ErrEvidence},
		{"samples of no device", func(e *metering.Evidence, _ *metering.DeviceEvidence) { e.Samples++ }, metering.ErrEvidence},
		{"a slice where the offer has whole GPUs", func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.Device.MIG = true }, verify.ErrDevices},
		{"a tick of an hour", func(e *metering.Evidence, _ *metering.DeviceEvidence) { e.Tick = int64(time.Hour) }, metering.ErrEvidence},
		{"simulated, and the offer's are not", func(e *metering.Evidence, d *metering.DeviceEvidence) {
			e.Simulated, d.Device.Simulated = true, true
		}, verify.ErrDevices},
		{"simulated, and its devices are not", func(e *metering.Evidence, _ *metering.DeviceEvidence) { e.Simulated = true }, metering.ErrEvidence},
		{"another model", func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.Device.Name = "Cheap GPU" }, verify.ErrDevices},
		{"no model", func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.Device.Name = "" }, verify.ErrDevices},
		{"half the memory", func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.Device.MemoryBytes /= 2 }, verify.ErrDevices},
		{"another VBIOS in the same boot", func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.Device.VBIOS = "2" }, verify.ErrDevices},
		{"another boot id without a gap", func(_ *metering.Evidence, d *metering.DeviceEvidence) { d.Device.BootID = "another" }, metering.ErrEvidence},
		{"a reboot in the same boot", func(_ *metering.Evidence, d *metering.DeviceEvidence) {
			d.Gaps = []metering.Hole{hole(12, 12, metering.ReasonReboot)}
		}, metering.ErrEvidence},
		{"a reboot that hides more time than passed", func(_ *metering.Evidence, d *metering.DeviceEvidence) {
			d.Device.BootID, d.Gaps = "another", []metering.Hole{hole(12, 900, metering.ReasonReboot)}
			d.To.Mono = 900e9
		}, metering.ErrEvidence},
		{"two reboots", func(_ *metering.Evidence, d *metering.DeviceEvidence) {
			d.Device.BootID, d.Gaps = "another", []metering.Hole{hole(12, 12, metering.ReasonReboot), hole(13, 13, metering.ReasonReboot)}
		}, metering.ErrEvidence},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMarket(t)
			m.run(5)
			honest := m.next()
			s := rig.ThroughJSON(t, honest)
			e := &s.Evidence
			d := &e.Devices[0]
			was := d.Nanos.Allocated
			tt.cheat(e, d)
			less := was - d.Nanos.Allocated
			d.Total, e.Nanos, e.Total = d.Total-less, e.Nanos-less, e.Total-less
			m.state(&s)
			m.resign(&s)
			if err := m.check.Check(s); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if err := m.check.Check(honest); err != nil {
				t.Errorf("the honest record after it: %v", err)
			}
		})
	}
}

// TestCheckerRemembersAStop: an error at the very end of a record stops the time of
// the next one.
func TestCheckerRemembersAStop(t *testing.T) {
	m := newMarket(t)
	m.run(5)
	s := m.next()
	s.Evidence.Devices[0].XIDs = []metering.XID{metering.NewXID(95, s.Evidence.Devices[0].To.Mono)}
	m.state(&s)
	m.resign(&s)
	if err := m.check.Check(s); err != nil {
		t.Fatal(err)
	}
	m.run(5)
	next := m.next()
	next.Previous = s.Digest(metering.Domain(31337, m.conf.Lease.Escrow))
	m.resign(&next)
	if err := m.check.Check(next); !errors.Is(err, metering.ErrEvidence) {
		t.Errorf("got %v", err)
	}
}

// TestHonestMetersAreBelieved: whatever two devices do, and whenever their meter is
// cut, paused, restarted or their host rebooted, no checker finds a contradiction.
func TestHonestMetersAreBelieved(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newMarket(t)
			h := &truthful{market: m, random: rand.New(rand.NewPCG(seed, 11)), boot: "boot", energy: 1 << 20}
			for range 60 {
				h.act()
			}
			h.record(true)
		})
	}
}

// truthful is a market whose devices do anything.
type truthful struct {
	*market
	random *rand.Rand
	boot   string
	energy uint64
	paused bool
}

func (h *truthful) act() {
	switch h.random.IntN(14) {
	case 0, 1:
		h.record(false)
	case 2:
		h.paused = true
		h.meter.Pause()
	case 3, 4:
		h.paused = false
		h.meter.Resume()
	case 5:
		h.restart(h.random.IntN(2) == 0)
	case 6: // under a meter that goes on, as a node's host does, and more than once in a record
		h.reboot()
	default:
		h.pass([]float64{0.5, 1, 1, 1, 2, 3, 3.5, 9}[h.random.IntN(8)])
	}
}

func (h *truthful) pass(seconds float64) {
	h.now += seconds
	h.clock.Advance(time.Duration(seconds * 1e9))
	h.energy += 100
	for _, uuid := range []string{rig.GPU, rig.Second} {
		r := rig.Of(uuid, rig.At(h.now))
		r.BootID, r.Energy = h.boot, h.energy
		switch h.random.IntN(16) {
		case 0:
			rig.Health([]metering.Health{metering.Lost, metering.Failed, metering.Stalled, metering.Reset}[h.random.IntN(4)])(&r)
		case 1:
			r.XIDs = []metering.XID{{Code: []uint64{13, 79, 95}[h.random.IntN(3)], Mono: r.At.Mono}}
		case 2:
			r.Seen = "GPU-x"
		case 3:
			r.Generation = 2
		case 4: // a call that came back late, with bad news
			late := r
			late.At.Mono -= int64(seconds * 1e9)
			late.XIDs = []metering.XID{{Code: 119, Mono: late.At.Mono}}
			rig.Observe(h.t, h.meter, r, late)
			continue
		case 5:
			continue // not read
		}
		rig.Observe(h.t, h.meter, r)
	}
}

func (h *truthful) record(final bool) {
	s := rig.Next(h.t, h.rec, h.meter, final)
	if err := h.check.Check(rig.ThroughJSON(h.t, s)); err != nil {
		h.t.Fatalf("%v\n%s", err, s.Evidence.Encode())
	}
}

// restart is another process, on the same boot of the host or the next: time counts
// from somewhere else there.
func (h *truthful) restart(reboot bool) {
	var err error
	if h.meter, err = usage.Restore(h.meter.Config(), h.meter.Save()); err != nil {
		h.t.Fatal(err)
	}
	describe(h.t, h.meter)
	if h.paused {
		h.meter.Pause()
	}
	if reboot {
		h.reboot()
	}
}

func (h *truthful) reboot() {
	h.boot += "'"
	h.now = 1 + h.random.Float64()*100
	h.clock.Advance(time.Minute)
}

// TestRebootsInOneRecord: however many boots and gaps a record spans, it can be drafted, and what it bills is believed: the time
// of the first two boots. The next record goes on.
func TestRebootsInOneRecord(t *testing.T) {
	for _, gaps := range []int{0, 70} { // more than are listed
		m := newMarket(t)
		h := &truthful{market: m, random: rand.New(rand.NewPCG(1, 1)), boot: "boot", energy: 1 << 20}
		read := func(seconds float64) {
			h.now += seconds
			h.clock.Advance(time.Duration(seconds * 1e9))
			for _, uuid := range []string{rig.GPU, rig.Second} {
				r := rig.Of(uuid, rig.At(h.now))
				r.BootID = h.boot
				rig.Observe(t, h.meter, r)
			}
		}
		read(1)
		before := h.meter.Allocated()
		for range gaps {
			read(1)
			read(9)
		}
		for range 4 {
			h.reboot()
			read(1)
			read(1)
		}
		h.record(false)
		want := time.Duration(2*(gaps+1)) * time.Second
		if got := time.Duration(h.meter.Allocated() - before); got != want {
			t.Errorf("%d gaps: %s billed, want %s", gaps, got, want)
		}
		read(1)
		read(1)
		h.record(true)
		if got := time.Duration(h.meter.Allocated() - before); got != want+2*time.Second {
			t.Errorf("%d gaps: %s billed in all, want %s", gaps, got, want+2*time.Second)
		}
	}
}

func describe(t *testing.T, m *usage.Meter) {
	t.Helper()
	for _, uuid := range m.Config().Devices {
		if err := m.Describe("nvml", metering.Device{UUID: uuid, Name: "Good GPU", MemoryBytes: 80 << 30, VBIOS: "1", BootID: "boot"}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRebootBeforeTheFirstReading: of a device of which nothing was ever billed no record has said which boot it is of: a lease whose
// first record came before its devices could be read, and whose host is rebooted then, is metered on, and its renter believes that.
func TestRebootBeforeTheFirstReading(t *testing.T) {
	m := newMarket(t)
	h := &truthful{market: m, random: rand.New(rand.NewPCG(1, 1)), boot: "boot", energy: 1 << 20}
	var err error
	h.meter = rig.NewMeter(t, rig.GPU, rig.Second)
	describe(t, h.meter)
	if h.rec, err = usage.NewRecorder(h.conf.Lease, h.key, nil); err != nil {
		t.Fatal(err)
	}
	if h.check, err = verify.New(h.conf); err != nil {
		t.Fatal(err)
	}
	h.record(false)
	h.restart(true)
	for range 3 {
		h.now++
		h.clock.Advance(time.Second)
		for _, uuid := range []string{rig.GPU, rig.Second} {
			r := rig.Of(uuid, rig.At(h.now))
			r.BootID = h.boot
			rig.Observe(t, h.meter, r)
		}
	}
	h.record(true)
	if got := h.meter.Allocated(); got != 4e9 {
		t.Errorf("%d ns are billed", got)
	}
}
