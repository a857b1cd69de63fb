package usage_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/usage"
)

func slept(ns int64) func(*metering.Reading) {
	return func(r *metering.Reading) { r.At.Boot += ns }
}

func hot(thermal, brake uint64) func(*metering.Reading) {
	return func(r *metering.Reading) { r.Thermal, r.PowerBrake = thermal, brake }
}

// TestRules has a line for every rule of the definition, with the nanoseconds
// that it bills.
func TestRules(t *testing.T) {
	lost, failed, stalled := rig.Health(metering.Lost), rig.Health(metering.Failed), rig.Health(metering.Stalled)
	tests := []struct {
		name     string
		readings []metering.Reading
		want     metering.Nanos
		reason   string // of the first unbilled stretch
	}{
		{"no reading", nil, metering.Nanos{}, ""},
		{"one reading is no interval", []metering.Reading{rig.At(1)}, metering.Nanos{}, ""},
		{"a healthy pair", []metering.Reading{rig.At(1), rig.At(2)}, metering.Nanos{Allocated: 1e9}, ""},
		{"to the nanosecond", []metering.Reading{rig.At(1), rig.At(2.000000001)}, metering.Nanos{Allocated: 1_000_000_001}, ""},
		{"exactly MaxGap", []metering.Reading{rig.At(1), rig.At(4)}, metering.Nanos{Allocated: 3e9}, ""},
		{"a nanosecond over MaxGap", []metering.Reading{rig.At(1), rig.At(4.000000001), rig.At(5)},
			metering.Nanos{Allocated: 999_999_999, Gap: 3_000_000_001}, "interval"},
		{"a hung call", []metering.Reading{rig.At(1), rig.At(4, stalled), rig.At(7, stalled), rig.At(8), rig.At(9)},
			metering.Nanos{Allocated: 1e9, Gap: 7e9}, "stalled"},
		{"lost: nothing until a healthy pair", []metering.Reading{rig.At(1), rig.At(2), rig.At(3, lost), rig.At(4, lost), rig.At(5), rig.At(6)},
			metering.Nanos{Allocated: 2e9, Down: 3e9}, "lost"},
		{"needs a reset", []metering.Reading{rig.At(1), rig.At(2, rig.Health(metering.Reset)), rig.At(3), rig.At(4)},
			metering.Nanos{Allocated: 1e9, Down: 2e9}, "reset"},
		{"an unknown error", []metering.Reading{rig.At(1), rig.At(2, failed), rig.At(3)}, metering.Nanos{Down: 2e9}, "failed"},
		{"no health at all", []metering.Reading{rig.At(1), rig.At(2, rig.Health("")), rig.At(3)}, metering.Nanos{Down: 2e9}, "failed"},
		{"XID 79", []metering.Reading{rig.At(1), rig.At(2), rig.At(3, rig.XID(79)), rig.At(4), rig.At(5)}, metering.Nanos{Allocated: 2e9, Down: 2e9}, "xid 79"},
		{"XID 95", []metering.Reading{rig.At(1), rig.At(2, rig.XID(95)), rig.At(3)}, metering.Nanos{Down: 2e9}, "xid 95"},
		{"XID 119", []metering.Reading{rig.At(1), rig.At(2, rig.XID(119)), rig.At(3)}, metering.Nanos{Down: 2e9}, "xid 119"},
		{"XIDs of the workload", []metering.Reading{rig.At(1), rig.At(2, rig.XID(13), rig.XID(31), rig.XID(43)), rig.At(3, rig.XID(63), rig.XID(94))},
			metering.Nanos{Allocated: 2e9}, ""},
		{"a fatal XID behind a harmless one", []metering.Reading{rig.At(1), rig.At(2, rig.XID(13), rig.XID(79)), rig.At(3)}, metering.Nanos{Down: 2e9}, "xid 79"},
		{"another GPU answers", []metering.Reading{rig.At(1), rig.At(2),
			rig.At(3, func(r *metering.Reading) { r.Seen = "GPU-other" }), rig.At(4, func(r *metering.Reading) { r.Seen = "GPU-other" })},
			metering.Nanos{Allocated: 1e9, Gap: 1e9, Down: 1e9}, "device"},
		{"nobody says who answers", []metering.Reading{rig.At(1), rig.At(2, func(r *metering.Reading) { r.Seen = "" })}, metering.Nanos{Down: 1e9}, "replaced"},
		{"reboot", []metering.Reading{rig.At(90), rig.At(91),
			rig.At(1, func(r *metering.Reading) { r.BootID = "next" }), rig.At(2, func(r *metering.Reading) { r.BootID = "next" })},
			metering.Nanos{Allocated: 2e9}, "reboot"},
		{"another driver version", []metering.Reading{rig.At(1), rig.At(2, func(r *metering.Reading) { r.Driver = "580.01" })}, metering.Nanos{Gap: 1e9}, "driver"},
		{"driver reloaded", []metering.Reading{rig.At(1), rig.At(2, func(r *metering.Reading) { r.Generation = 2 }), rig.At(3, func(r *metering.Reading) { r.Generation = 2 })},
			metering.Nanos{Allocated: 1e9, Gap: 1e9}, "driver"},
		{"driver reloaded while it was lost", []metering.Reading{rig.At(1), rig.At(2, lost), rig.At(3, func(r *metering.Reading) { r.Generation = 2 })},
			metering.Nanos{Down: 1e9, Gap: 1e9}, "lost"},
		{"energy runs backwards", []metering.Reading{rig.At(1), rig.At(2, func(r *metering.Reading) { r.Energy = 1 }), rig.At(3)},
			metering.Nanos{Allocated: 1e9, Gap: 1e9}, "energy"},
		{"energy not supported", []metering.Reading{rig.At(1), rig.At(2, func(r *metering.Reading) { r.Energy, r.Has = 0, 0 }), rig.At(3)},
			metering.Nanos{Allocated: 2e9}, ""},
		{"suspend", []metering.Reading{rig.At(1), rig.At(2), rig.At(3, slept(60e9)), rig.At(4, slept(60e9))}, metering.Nanos{Allocated: 2e9, Gap: 1e9}, "suspend"},
		{"the two clocks read a little apart", []metering.Reading{rig.At(1), rig.At(2, slept(1e6)), rig.At(3)}, metering.Nanos{Allocated: 2e9}, ""},
		{"the wall clock jumps", []metering.Reading{rig.At(1), rig.At(2, func(r *metering.Reading) { r.At.Wall = 5 }), rig.At(3)}, metering.Nanos{Allocated: 2e9}, ""},
		{"a reading older than the last", []metering.Reading{rig.At(1), rig.At(3), rig.At(2), rig.At(4)}, metering.Nanos{Allocated: 3e9}, ""},
		{"the same reading twice", []metering.Reading{rig.At(1), rig.At(2), rig.At(2), rig.At(3)}, metering.Nanos{Allocated: 2e9}, ""},
		{"a late reading with bad news", []metering.Reading{rig.At(1), rig.At(3), rig.At(2, rig.XID(79)), rig.At(4), rig.At(5)}, metering.Nanos{Allocated: 3e9, Down: 1e9}, "xid 79"},
		{"heat and power brake", []metering.Reading{rig.At(1), rig.At(2, hot(3e8, 2e8)), rig.At(3, hot(3e8, 2e8))},
			metering.Nanos{Allocated: 2e9, Throttled: 5e8}, ""},
		{"slowed more than the interval", []metering.Reading{rig.At(1), rig.At(2, hot(9e8, 9e8))}, metering.Nanos{Allocated: 1e9, Throttled: 1e9}, ""},
		{"throttle counters that overflow", []metering.Reading{rig.At(1), rig.At(2, hot(^uint64(0), 2))}, metering.Nanos{Allocated: 1e9, Throttled: 1e9}, ""},
		{"active by utilization, billed all the same", []metering.Reading{rig.At(1), rig.At(2, func(r *metering.Reading) { r.Utilization = 3 }), rig.At(3)},
			metering.Nanos{Allocated: 2e9, Active: 1e9}, ""},
		{"active by processes on a slice", []metering.Reading{rig.At(1, func(r *metering.Reading) { r.Has = metering.HasProcesses }),
			rig.At(2, func(r *metering.Reading) { r.Has, r.Processes = metering.HasProcesses, 1 })}, metering.Nanos{Allocated: 1e9, Active: 1e9}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := rig.NewMeter(t)
			rig.Observe(t, m, tt.readings...)
			if got := m.Totals().Nanos; got != tt.want {
				t.Errorf("billed %+v, want %+v", got, tt.want)
			}
			e := m.Cut()
			var reason string
			if gaps := e.Devices[0].Gaps; len(gaps) > 0 {
				reason = gaps[0].Reason
			}
			if reason != tt.reason {
				t.Errorf("first gap is %q, want %q", reason, tt.reason)
			}
			if err := e.Validate(); err != nil {
				t.Errorf("the evidence contradicts itself: %v", err)
			}
		})
	}
}

func TestPauseBillsNothingAndIsNoGap(t *testing.T) {
	m := rig.NewMeter(t)
	rig.Observe(t, m, rig.At(1), rig.At(2))
	m.Pause()
	rig.Observe(t, m, rig.At(3), rig.At(60)) // 57 s between readings, and still no gap
	m.Resume()
	rig.Observe(t, m, rig.At(61), rig.At(62), rig.At(63))
	want := metering.Nanos{Allocated: 3e9, Paused: 59e9}
	if got := m.Totals().Nanos; got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	e := m.Cut()
	if len(e.Devices[0].Gaps) != 0 {
		t.Errorf("a pause shows as gaps %v", e.Devices[0].Gaps)
	}
	if e.Samples != 5 || e.Devices[0].Samples != 5 { // none of those made while paused
		t.Errorf("%d samples, %d of the device", e.Samples, e.Devices[0].Samples)
	}
}

func TestPauseBetweenTwoReadings(t *testing.T) {
	m := rig.NewMeter(t)
	rig.Observe(t, m, rig.At(1))
	m.Pause()
	m.Resume()
	rig.Observe(t, m, rig.At(2), rig.At(3))
	if got, want := m.Totals().Nanos, (metering.Nanos{Allocated: 1e9, Paused: 1e9}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDevicesAreCountedApartAndSummed(t *testing.T) {
	const other = "MIG-b"
	of := func(r metering.Reading) metering.Reading {
		r.Device = other
		if r.Seen != "" {
			r.Seen = other
		}
		return r
	}
	m := rig.NewMeter(t, rig.GPU, other)
	rig.Observe(t, m, rig.At(1), of(rig.At(1.5)), rig.At(2), of(rig.At(2.5, rig.Health(metering.Lost))), rig.At(3), of(rig.At(3.5)), of(rig.At(4.5)))
	got := m.Totals()
	if got.Devices[rig.GPU].Allocated != 2e9 || got.Devices[other].Allocated != 1e9 || got.Allocated != 3e9 || got.Down != 2e9 {
		t.Errorf("got %+v", got)
	}
	if _, err := m.Observe(metering.Reading{Device: "GPU-c"}); !errors.Is(err, metering.ErrDevice) {
		t.Errorf("a device of somebody else: %v", err)
	}
}

func TestRestartHoleIsNotBilled(t *testing.T) {
	m := rig.NewMeter(t)
	rig.Observe(t, m, rig.At(1), rig.At(2))
	m.Cut()
	rig.Observe(t, m, rig.At(3)) // stands in no record: lost with the process
	saved := rig.ThroughJSON(t, m.Save())

	m, err := usage.Restore(usage.Config{Devices: []string{rig.GPU}}, saved)
	if err != nil {
		t.Fatal(err)
	}
	rig.Observe(t, m, rig.At(4), rig.At(5))
	if got, want := m.Totals().Nanos, (metering.Nanos{Allocated: 2e9, Gap: 2e9}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	e := m.Cut()
	if e.Total != 2e9 || e.Nanos != 1e9 || e.Devices[0].From != rig.At(2).At {
		t.Errorf("evidence %s", e.Encode())
	}
	if g := e.Devices[0].Gaps; len(g) != 1 || g[0] != (metering.Hole{From: 2e9, Reason: "restart", To: 4e9}) {
		t.Errorf("gaps %v", g)
	}
}

func TestRestartAfterRebootOnASystemWithoutBootIDs(t *testing.T) {
	nameless := func(r *metering.Reading) { r.BootID = "" }
	m := rig.NewMeter(t)
	rig.Observe(t, m, rig.At(100, nameless), rig.At(101, nameless))
	m.Cut()
	m, err := usage.Restore(usage.Config{Devices: []string{rig.GPU}}, m.Save())
	if err != nil {
		t.Fatal(err)
	}
	rig.Observe(t, m, rig.At(1, nameless), rig.At(2, nameless))
	if got := m.Totals().Nanos; got != (metering.Nanos{Allocated: 2e9}) {
		t.Errorf("got %+v", got)
	}
}

func TestRestoreRefusesAnotherLease(t *testing.T) {
	m := rig.NewMeter(t)
	rig.Observe(t, m, rig.At(1), rig.At(2))
	m.Cut()
	if _, err := usage.Restore(usage.Config{Devices: []string{"GPU-z"}}, m.Save()); !errors.Is(err, metering.ErrDevice) {
		t.Errorf("got %v", err)
	}
	s := m.Save()
	s.Devices[0].Nanos.Allocated = -1
	if _, err := usage.Restore(usage.Config{Devices: []string{rig.GPU}}, s); !errors.Is(err, usage.ErrReading) {
		t.Errorf("got %v", err)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]usage.Config{
		"no device":      {},
		"empty UUID":     {Devices: []string{""}},
		"control bytes":  {Devices: []string{"GPU-\x00"}},
		"twice the same": {Devices: []string{rig.GPU, rig.GPU}},
		"gap below tick": {Devices: []string{rig.GPU}, Tick: time.Minute},
		"negative tick":  {Devices: []string{rig.GPU}, Tick: -1},
	} {
		if _, err := usage.NewMeter(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	m := rig.NewMeter(t)
	if _, err := m.Observe(rig.At(-1)); !errors.Is(err, usage.ErrReading) {
		t.Errorf("a stamp before the boot: %v", err)
	}
	if err := m.Describe("nvml", metering.Device{UUID: "GPU-z"}); !errors.Is(err, metering.ErrDevice) {
		t.Errorf("a stranger: %v", err)
	}
}

func TestEvidence(t *testing.T) {
	m := rig.NewMeter(t)
	id := metering.Device{UUID: rig.GPU, Name: "H100 <&>\u2028", BootID: "boot", MemoryBytes: 80 << 30}
	if err := m.Describe("nvml", id); err != nil {
		t.Fatal(err)
	}
	rig.Observe(t, m, rig.At(1), rig.At(2, rig.XID(13), func(r *metering.Reading) { r.Memory, r.Has = 7, r.Has|metering.HasMemory }), rig.At(3, func(r *metering.Reading) { r.Memory = 5 }))
	e := m.Cut()
	d := e.Devices[0]
	if d.Energy != 2000 || d.Memory != 7 || d.Samples != 3 || d.From != rig.At(1).At || d.To != rig.At(3).At || e.Source != "nvml" {
		t.Errorf("evidence %s", e.Encode())
	}
	if len(d.XIDs) != 1 || d.XIDs[0] != (metering.XID{Code: 13, Fault: metering.Workload, Mono: 2e9}) {
		t.Errorf("XIDs %v", d.XIDs)
	}
	if got := strings.Join(d.Missing, " "); got != "processes xids" {
		t.Errorf("missing %q", got)
	}
	if d.Device.Name != "H100 <&>?" {
		t.Errorf("a name that JSON writers escape differently: %q", d.Device.Name)
	}
	next := m.Cut() // nothing since
	if next.Nanos != 0 || next.Total != e.Total || next.Samples != 0 || next.Root == e.Root {
		t.Errorf("an empty cut: %s", next.Encode())
	}
}

// TestErrorsFromBeforeTheLease are not blamed on its renter; one that broke the
// GPU still keeps the provider from billing it.
func TestErrorsFromBeforeTheLease(t *testing.T) {
	m := rig.NewMeter(t)
	rig.Observe(t, m, rig.At(1, rig.XID(13), rig.XID(79)), rig.At(2), rig.At(3))
	if got, want := m.Totals().Nanos, (metering.Nanos{Allocated: 1e9, Down: 1e9}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if x := m.Cut().Devices[0].XIDs; len(x) != 0 {
		t.Errorf("XIDs %v", x)
	}
}

func TestListsAreBounded(t *testing.T) {
	m := rig.NewMeter(t)
	rig.Observe(t, m, rig.At(0))
	for i := range 200 {
		change := []func(*metering.Reading){rig.XID(13)}
		if i%2 == 0 {
			change = append(change, rig.Health(metering.Lost))
		} else {
			change = append(change, rig.Health(metering.Reset))
		}
		rig.Observe(t, m, rig.At(float64(i+1), change...))
	}
	d := m.Cut().Devices[0]
	if uint64(len(d.XIDs))+d.MoreXIDs != 200 || len(d.XIDs) != 64 || uint64(len(d.Gaps))+d.MoreGaps != 200 || len(d.Gaps) != 64 {
		t.Errorf("%d+%d XIDs, %d+%d gaps", len(d.XIDs), d.MoreXIDs, len(d.Gaps), d.MoreGaps)
	}
	if e := m.Cut(); len(e.Devices[0].Gaps) != 0 {
		t.Error("a cut repeats the gaps of the one before")
	}
}

func TestALongLossIsOneLine(t *testing.T) {
	m := rig.NewMeter(t)
	for i := range 100 {
		rig.Observe(t, m, rig.At(float64(i), rig.Health(metering.Lost)))
	}
	if g := m.Cut().Devices[0].Gaps; len(g) != 1 || g[0].To-g[0].From != 99e9 {
		t.Errorf("gaps %v", g)
	}
}

// random makes a plausible and often broken sequence of readings. Only a call
// that hung makes a stamp that is older than the one before.
func random(rng *rand.Rand, n int, hung bool) []metering.Reading {
	var out []metering.Reading
	now, boot, generation, name := 1.0, int64(0), uint64(1), "boot"
	for range n {
		now += rng.Float64() * 2
		var change []func(*metering.Reading)
		switch rng.IntN(20) {
		case 0:
			now += 5
		case 1:
			if hung {
				now -= 3
			}
		case 2:
			change = append(change, rig.Health(metering.Lost))
		case 3:
			change = append(change, rig.XID([]uint64{13, 79, 95, 31}[rng.IntN(4)]))
		case 4:
			boot += 5e9
		case 5:
			generation++
		case 6:
			change = append(change, rig.Health(metering.Stalled))
		case 7:
			change = append(change, func(r *metering.Reading) { r.Seen = "GPU-other" })
		case 8:
			change = append(change, func(r *metering.Reading) { r.Energy = 0 })
		}
		now = max(now, 0)
		r := rig.At(now, append([]func(*metering.Reading){slept(boot)}, change...)...)
		r.BootID = name
		if r.Generation > 0 {
			r.Generation = generation
		}
		out = append(out, r)
	}
	return out
}

// TestCutsChangeNoBill holds a bill with cuts against the bill without, over
// random readings: time never runs backwards, and no bill exceeds what passed.
func TestCutsChangeNoBill(t *testing.T) {
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 7))
		readings := random(rng, 60, true)
		whole, cuts := rig.NewMeter(t), rig.NewMeter(t)
		var sum, before int64
		low, high := readings[0].At.Mono, readings[0].At.Mono
		for _, r := range readings {
			rig.Observe(t, whole, r)
			rig.Observe(t, cuts, r)
			low, high = min(low, r.At.Mono), max(high, r.At.Mono)
			if rng.IntN(4) == 0 {
				sum += cuts.Cut().Nanos
			}
			now := whole.Totals().Allocated
			if now < before || now > high-low {
				t.Fatalf("seed %d: billed %d after %d, %d passed", seed, now, before, high-low)
			}
			before = now
		}
		sum += cuts.Cut().Nanos
		if sum != before || cuts.Totals().Nanos != whole.Totals().Nanos {
			t.Fatalf("seed %d: %d ns in cuts, %d ns without", seed, sum, before)
		}
		n := whole.Totals().Nanos
		if all := n.Allocated + n.Down + n.Gap + n.Paused; all > high-low {
			t.Fatalf("seed %d: %d ns accounted for, %d passed", seed, all, high-low)
		}
	}
}

// TestRestartsOnlyTakeAway restarts a meter at any moment, at a cut or between
// two: it may lose time that stood in no record, and never finds any.
func TestRestartsOnlyTakeAway(t *testing.T) {
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 11))
		whole, restarts := rig.NewMeter(t), rig.NewMeter(t)
		for _, r := range random(rng, 60, false) {
			rig.Observe(t, whole, r)
			rig.Observe(t, restarts, r)
			if rng.IntN(6) == 0 {
				restarts = restart(t, restarts, rng.IntN(2) == 0)
			}
			if got, most := restarts.Totals().Allocated, whole.Totals().Allocated; got > most {
				t.Fatalf("seed %d: %d ns with restarts, %d ns without", seed, got, most)
			}
		}
	}
}

func restart(t *testing.T, m *usage.Meter, clean bool) *usage.Meter {
	t.Helper()
	if clean {
		m.Cut()
	}
	next, err := usage.Restore(m.Config(), rig.ThroughJSON(t, m.Save()))
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// FuzzMeter feeds three readings with arbitrary stamps and states.
func FuzzMeter(f *testing.F) {
	f.Add(int64(1), int64(2e9), int64(3e9), int64(0), uint64(1), uint64(2), uint64(79), "healthy")
	f.Add(int64(0), int64(1), int64(1<<62), int64(1<<62), ^uint64(0), uint64(0), uint64(13), "lost")
	f.Fuzz(func(t *testing.T, a, b, c, boot int64, e1, e2, code uint64, state string) {
		m := rig.NewMeter(t)
		first, last := int64(-1), int64(0)
		for i, mono := range []int64{a, b, c} {
			r := rig.At(0)
			r.At.Mono, r.At.Boot, r.Thermal = mono, boot, e2
			if i == 1 {
				r.Energy, r.Health, r.XIDs = e1, metering.Health(state), []metering.XID{{Code: code}}
			}
			if _, err := m.Observe(r); err != nil {
				continue
			}
			if first < 0 {
				first = mono
			}
			last = max(last, mono)
		}
		if n := m.Totals().Nanos; n.Allocated < 0 || n.Allocated > last-first || n.Throttled > n.Allocated {
			t.Fatalf("billed %+v between %d and %d", n, first, last)
		}
		if err := m.Cut().Validate(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestHangIsStalled: time in which the driver did not answer is named so, however long it was.
func TestHangIsStalled(t *testing.T) {
	m := rig.NewMeter(t)
	rig.Observe(t, m, rig.At(1), rig.At(6, rig.Health(metering.Stalled)), rig.At(12), rig.At(13))
	if n := m.Totals().Nanos; n.Gap != 11e9 || n.Allocated != 1e9 {
		t.Errorf("metered %+v", n)
	}
	if g := m.Cut().Devices[0].Gaps; len(g) != 1 || g[0].Reason != metering.ReasonStalled {
		t.Errorf("gaps %v", g)
	}
}

// TestUncutMeterIsBounded: a meter that nobody cuts does not keep all its samples. Its root is of them all, and the next
// cut has proofs again.
func TestUncutMeterIsBounded(t *testing.T) {
	bounded, all := keeping(t, 10), keeping(t, 1000)
	for s := range 100 {
		rig.Observe(t, bounded, rig.At(float64(s)))
		rig.Observe(t, all, rig.At(float64(s)))
	}
	root := bounded.Cut().Root
	if root != all.Cut().Root {
		t.Error("the root is not of all samples")
	}
	if _, ok := bounded.Samples(root); ok {
		t.Error("100 samples are kept where 10 are to be")
	}
	rig.Observe(t, bounded, rig.At(100))
	if _, err := bounded.Proof(bounded.Cut().Root, 0); err != nil {
		t.Errorf("the next cut has no proofs: %v", err)
	}
}

func keeping(t *testing.T, samples int) *usage.Meter {
	t.Helper()
	m, err := usage.NewMeter(usage.Config{Devices: []string{rig.GPU}, Keep: samples})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
