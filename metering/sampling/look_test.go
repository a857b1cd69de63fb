package sampling_test

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
)

// slow is a source whose readings take time.
type slow struct {
	*sim.Source
	clock *sim.Clock
	cost  time.Duration
	calls atomic.Int64 // under way
	ended atomic.Int64
}

func (s *slow) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	s.clock.Advance(s.cost)
	s.calls.Add(1)
	defer func() { s.calls.Add(-1); s.ended.Add(1) }()
	return s.Source.Read(ctx, uuid)
}

// looked is a meter of all the devices of a source, on a clock that stands still.
type looked struct {
	heard
	clock *sim.Clock
	begun int64 // on the clock
	meter *usage.Meter
	src   *slow
	s     *sampling.Scheduler
}

func newLooked(t *testing.T, devices int, cost time.Duration, script ...sim.Fault) *looked {
	t.Helper()
	l := &looked{clock: sim.NewClock()}
	l.begun = l.clock.Now().Mono
	l.ended = make(chan error, 1)
	src := sim.New(devices, sim.Options{Clock: l.clock, Script: script})
	var uuids []string
	for i := range devices {
		uuids = append(uuids, sim.UUID(i))
	}
	l.meter = rig.NewMeter(t, uuids...)
	l.src = &slow{Source: src, clock: l.clock, cost: cost}
	l.s = sampling.New(l.src, l.clock)
	t.Cleanup(func() { l.s.Close(); src.Close() })
	return l
}

// TestLooksBoundWhatIsBilled: between AddRead and Finish exactly the time that
// passed is billed of every device, however it lies to the ticks, and whatever the
// readings themselves take.
func TestLooksBoundWhatIsBilled(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		devices, cost := 1+random.IntN(4), time.Duration(random.IntN(20))*time.Millisecond
		l := newLooked(t, devices, cost)
		on, err := l.s.AddRead(t.Context(), l.meter, 0, l)
		if err != nil {
			t.Fatal(err)
		}
		begun := l.clock.Now().Mono
		work := time.Duration(random.IntN(900)) * time.Millisecond // no turn comes due in it
		l.clock.Advance(work)
		end := l.clock.Now()
		on.Finish(end)
		if got := l.meter.Allocated(); got != int64(devices)*int64(work) || end.Mono-begun != int64(work) {
			t.Fatalf("%d devices that take %s to read, used for %s, are billed %s", devices, cost, work, time.Duration(got))
		}
	}
}

// TestLooksAmongTicks: so are they where ticks lie between.
func TestLooksAmongTicks(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		l := newLooked(t, 2, 0)
		on, err := l.s.AddRead(t.Context(), l.meter, 0, l)
		if err != nil {
			t.Fatal(err)
		}
		ticks := random.IntN(5)
		for i := range ticks {
			until(t, "the sampler does not sleep", func() bool { return l.clock.Waiting() > 0 })
			l.clock.Advance(time.Second)
			until(t, "a turn is missing", func() bool { return l.readings.Load() == int64(2*(i+2)) })
		}
		rest := time.Duration(random.IntN(900)) * time.Millisecond
		l.clock.Advance(rest)
		on.Finish(l.clock.Now())
		if got, want := l.meter.Allocated(), 2*(int64(ticks)*1e9+int64(rest)); got != want {
			t.Fatalf("%d s and %s of 2 devices are billed %s", ticks, rest, time.Duration(got))
		}
		last := l.readings.Load()
		l.clock.Advance(5 * time.Second)
		if l.readings.Load() != last {
			t.Fatal("read after it was finished")
		}
	}
}

// TestLooksAtDevicesThatFail: a device that hangs or is lost bills nothing for the
// stretch that its reading would have ended, and costs the others nothing.
func TestLooksAtDevicesThatFail(t *testing.T) {
	for name, c := range map[string]struct {
		script []sim.Fault
		bad    int64 // billed of the device that fails; 700 ms of the other
	}{
		"hangs at the end":       {[]sim.Fault{{Kind: sim.Hang, At: 500 * time.Millisecond, For: time.Hour}}, 0},
		"hangs at the beginning": {[]sim.Fault{{Kind: sim.Hang, For: time.Hour}}, 0},
		"lost at the end":        {[]sim.Fault{{Kind: sim.Lost, At: 500 * time.Millisecond, For: time.Hour}}, 0},
		"lost at the beginning":  {[]sim.Fault{{Kind: sim.Lost, For: time.Hour}}, 0},
		"replaced meanwhile":     {[]sim.Fault{{Kind: sim.Replace, At: 500 * time.Millisecond, For: time.Hour}}, 0},
		"healthy":                {nil, 700e6},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLooked(t, 2, 0, c.script...)
			step := func(what func()) { // a call that hangs is given up when the clock says so
				ended, now := l.src.ended.Load(), l.clock.Now().Mono-l.begun
				hangs := len(c.script) > 0 && c.script[0].Kind == sim.Hang && now >= int64(c.script[0].At)
				done := make(chan struct{})
				go func() { what(); close(done) }()
				for {
					select {
					case <-done:
						return
					case <-time.After(20 * time.Millisecond):
						if hangs && l.src.calls.Load() == 1 && l.src.ended.Load() > ended {
							l.clock.Advance(metering.DefaultMaxGap)
						}
					}
				}
			}
			var on *sampling.Task
			var err error
			step(func() { on, err = l.s.AddRead(t.Context(), l.meter, 0, l) })
			if err != nil {
				t.Fatal(err)
			}
			l.clock.Advance(700 * time.Millisecond)
			end := l.clock.Now()
			step(func() { on.Finish(end) })
			got := l.meter.Totals().Devices
			if got[sim.UUID(0)].Allocated != c.bad || got[sim.UUID(1)].Allocated != 700e6 {
				t.Errorf("billed %+v, want %d ns and 700 ms", got, c.bad)
			}
		})
	}
}
