package inventory

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
)

// rented is a lease of GPUs on a clock of its own, that is paused when its watchdog has expired, and goes on when it has not.
type rented struct {
	*testing.T
	meter  *usage.Meter
	watch  *Watch
	dog    Watchdog
	now    metering.Instant
	last   map[string]int64
	paused bool

	served, billed, suspensions int64
}

const testGap = 3 * time.Second

func (l *rented) Now() metering.Instant                { return l.now }
func (l *rented) BootID() string                       { return "boot" }
func (l *rented) After(time.Duration) <-chan time.Time { return nil }

func rent(t *testing.T, q *Quarantine, devices ...string) *rented {
	t.Helper()
	l := &rented{T: t, watch: NewWatch(devices, testGap, []*Quarantine{q}), dog: Watchdog{Limit: testGap}, last: make(map[string]int64)}
	l.now = metering.Instant{Mono: 1e9, Boot: 1e9}
	var err error
	if l.meter, err = usage.NewMeter(usage.Config{Devices: devices, Tick: time.Second, MaxGap: testGap, Keep: -1}); err != nil {
		t.Fatal(err)
	}
	return l
}

// read has a device read now, and does what a lease does.
func (l *rented) read(device string, change func(*metering.Reading)) {
	l.Helper()
	r := metering.Reading{At: l.now, BootID: "boot", Device: device, Driver: "1", Health: metering.Healthy, Seen: device}
	if change != nil {
		change(&r)
	}
	in, err := l.meter.Observe(r)
	if err != nil {
		l.Fatal(err)
	}
	l.watch.Saw(r, in, l)
	l.dog.Saw(r, in, l)
	if then, ok := l.last[device]; ok && !l.paused {
		l.served += l.now.Mono - then
	}
	l.last[device] = l.now.Mono
	switch {
	case l.dog.Expired() && !l.paused:
		l.meter.Pause()
		l.paused = true
		l.suspensions++
	case !l.dog.Expired() && l.paused:
		l.meter.Resume()
		l.paused = false
	}
	l.billed = l.meter.Allocated()
}

func (l *rented) pass(d time.Duration) {
	l.now.Mono += int64(d)
	l.now.Boot += int64(d)
}

// fault is what is wrong at the nth reading, and how long after the one before it is made.
type fault func(l *rented, n int) (time.Duration, func(*metering.Reading))

func xid(r *metering.Reading)   { r.XIDs = []metering.XID{metering.NewXID(119, r.At.Mono)} }
func stall(r *metering.Reading) { r.Health, r.Seen = metering.Stalled, "" }

var faults = map[string]fault{
	"xid 119": func(_ *rented, n int) (time.Duration, func(*metering.Reading)) {
		return time.Second, func(r *metering.Reading) {
			if n%2 == 0 {
				xid(r)
			}
		}
	},
	"driver loaded anew": func(_ *rented, n int) (time.Duration, func(*metering.Reading)) {
		return time.Second, func(r *metering.Reading) { r.Generation = uint64(n) }
	},
	"energy runs backwards": func(_ *rented, n int) (time.Duration, func(*metering.Reading)) {
		return time.Second, func(r *metering.Reading) { r.Has, r.Energy = metering.HasEnergy, uint64(1_000_000-n) }
	},
	"host sleeps": func(l *rented, _ int) (time.Duration, func(*metering.Reading)) {
		l.now.Boot += int64(200 * time.Millisecond)
		return time.Second, nil
	},
	"process stands still": func(*rented, int) (time.Duration, func(*metering.Reading)) { return testGap + time.Second, nil },
	"late answers": func(_ *rented, n int) (time.Duration, func(*metering.Reading)) {
		if n%2 == 0 {
			return testGap, stall
		}
		return time.Second, nil
	},
}

// TestReadingsOfWhichNoneBills: each reading is healthy, and no two bill. The lease is suspended after MaxGap, and stays so until two do.
func TestReadingsOfWhichNoneBills(t *testing.T) {
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			var q Quarantine
			l := rent(t, &q, "GPU-0")
			l.read("GPU-0", nil)
			for n := 1; n <= 200; n++ {
				d, change := f(l, n)
				l.pass(d)
				l.read("GPU-0", change)
			}
			if bound := int64(2 * (testGap + time.Second)); l.served > bound || l.suspensions != 1 || l.billed > int64(time.Second) { // the first interval may bill
				t.Errorf("served for %s of %s, suspended %d times, billed %s", time.Duration(l.served), time.Duration(l.now.Mono), l.suspensions, time.Duration(l.billed))
			}
			if !q.rest([]string{"GPU-0"}) {
				t.Error("the next lease is given the GPU")
			}
			for range 4 {
				l.pass(time.Second)
				l.read("GPU-0", func(r *metering.Reading) { r.Generation = 200 })
			}
			if l.dog.Expired() || l.billed == 0 || q.rest([]string{"GPU-0"}) {
				t.Error("it does not go on when it is well")
			}
		})
	}
}

// TestOneFaultSuspendsNothing: each of these faults happens once, in an hour's lease.
func TestOneFaultSuspendsNothing(t *testing.T) {
	for name, f := range faults {
		if name == "late answers" { // a call that hangs for MaxGap suspends, as ever
			continue
		}
		t.Run(name, func(t *testing.T) {
			var q Quarantine
			l := rent(t, &q, "GPU-0")
			for n := range 60 {
				d, change := time.Second, (func(*metering.Reading))(nil)
				if n == 30 {
					d, change = f(l, n)
				}
				l.pass(d)
				l.read("GPU-0", change)
				if name == "driver loaded anew" && n == 30 {
					break
				}
			}
			if l.suspensions != 0 || q.rest([]string{"GPU-0"}) || l.billed < int64(25*time.Second) {
				t.Errorf("suspended %d times, billed %s", l.suspensions, time.Duration(l.billed))
			}
		})
	}
}

// TestRelapses: a GPU that can be metered for a moment between two hangs is served for nothing at each of them: ever more seldom, until
// it was metered for long enough.
func TestRelapses(t *testing.T) {
	var q Quarantine
	l := rent(t, &q, "GPU-0")
	flap := func(well int) {
		for range well {
			l.pass(time.Second)
			l.read("GPU-0", nil)
		}
		l.pass(testGap)
		l.read("GPU-0", stall)
	}
	for range 720 { // an hour
		flap(2)
	}
	if l.served > int64(5*(testGap+3*time.Second)) || l.suspensions > 5 {
		t.Errorf("served for %s of %s, suspended %d times, billed %s", time.Duration(l.served), time.Duration(l.now.Mono), l.suspensions, time.Duration(l.billed))
	}
	if r := q.rests["GPU-0"]; !time.Now().Before(r.until) {
		t.Error("the next lease is given the GPU")
	}
	served, billed := l.served, l.billed
	for range 3 {
		flap(1_000)
	}
	if free := (l.served - served) - (l.billed - billed); free > (l.billed-billed)/50 || l.billed == billed {
		t.Errorf("%s were served and %s billed", time.Duration(l.served-served), time.Duration(l.billed-billed))
	}
	if flap(1_000); l.dog.lapses > 1 {
		t.Error("what was long ago is not forgotten")
	}
}

// TestFlicker: a GPU that is metered for a moment between failures that are each shorter than MaxGap is served ever more seldom, and the
// next lease does not get it; one that bills nearly all of its time is never suspended.
func TestFlicker(t *testing.T) {
	const tick = 250 * time.Millisecond
	lost := func(r *metering.Reading) { r.Health, r.Seen = metering.Failed, "" }
	for name, f := range map[string]struct {
		well, sick int // readings, one tick apart
		honest     bool
	}{
		"two readings of eleven": {2, 9, false},
		"two readings of three":  {2, 1, false},
		"half of the time":       {11, 9, false},
		"a moment each minute":   {236, 4, true},
	} {
		t.Run(name, func(t *testing.T) {
			var q Quarantine
			l := rent(t, &q, "GPU-0")
			for end := int64(time.Hour); l.now.Mono < end; {
				for n := range f.well + f.sick {
					l.pass(tick)
					if n < f.well {
						l.read("GPU-0", nil)
					} else {
						l.read("GPU-0", lost)
					}
				}
			}
			served, billed := time.Duration(l.served), time.Duration(l.billed)
			switch rests := q.rest([]string{"GPU-0"}); {
			case f.honest && (l.suspensions > 0 || rests || billed < served*9/10):
				t.Errorf("suspended %d times, it rests: %v, %s of %s are billed", l.suspensions, rests, billed, served)
			case !f.honest && (served-billed > 20*testGap || !rests || l.suspensions == 0):
				t.Errorf("suspended %d times, it rests: %v, %s of %s are billed", l.suspensions, rests, billed, served)
			}
		})
	}
}

// TestOneGPUThatHangsSuspendsNothing: of two GPUs one does not answer: the other is metered, and the lease goes on.
func TestOneGPUThatHangsSuspendsNothing(t *testing.T) {
	var q Quarantine
	l := rent(t, &q, "GPU-0", "GPU-1")
	for n := range 60 {
		l.pass(time.Second)
		l.read("GPU-0", nil)
		if n%3 == 2 {
			l.read("GPU-1", stall)
		}
	}
	if l.suspensions != 0 || !q.rest([]string{"GPU-1"}) || q.rest([]string{"GPU-0", "GPU-1"}) {
		t.Errorf("suspended %d times", l.suspensions)
	}
}

// TestManyShortLeasesOfAnUnmeteredGPU: leases and requests that are each shorter than MaxGap are served for no longer, all together, on
// a GPU of which no reading bills.
func TestManyShortLeasesOfAnUnmeteredGPU(t *testing.T) {
	var q Quarantine
	var served int64
	for range 100 {
		l := rent(t, &q, "GPU-0")
		l.read("GPU-0", nil)
		if l.watch.Rest() { // then the request is refused
			break
		}
		l.pass(500 * time.Millisecond)
		l.read("GPU-0", xid)
		served += l.served
	}
	if served > int64(testGap) {
		t.Errorf("served for %s", time.Duration(served))
	}
	q.rests["GPU-0"] = rest{}
	l := rent(t, &q, "GPU-0")
	for range 3 {
		l.pass(time.Second)
		l.read("GPU-0", nil)
	}
	if len(q.lost) != 0 || l.watch.Rest() {
		t.Error("it is not well when it is metered")
	}
}

// TestManyShortLeasesOfAGPUThatFlickers: leases and requests of which each has a moment that bills, and more that do not, are refused
// after some.
func TestManyShortLeasesOfAGPUThatFlickers(t *testing.T) {
	var q Quarantine
	begun := 0
	for range 100 {
		l := rent(t, &q, "GPU-0")
		l.read("GPU-0", nil)
		if l.watch.Rest() {
			break
		}
		begun++
		l.pass(200 * time.Millisecond)
		l.read("GPU-0", nil)
		l.pass(800 * time.Millisecond)
		l.read("GPU-0", xid)
	}
	if begun > 5 {
		t.Errorf("%d leases were begun", begun)
	}
}
