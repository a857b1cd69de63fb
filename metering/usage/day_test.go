package usage_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
)

// TestDayDoesNotGrow: over 24 hours of a lease, with a record every five seconds as a Provider makes them, the meter's heap
// grows by no more than 1 MiB after the first hour, and a record's evidence by no more than 64 bytes.
func TestDayDoesNotGrow(t *testing.T) {
	clock := sim.NewClock()
	source := sim.New(2, sim.Options{Clock: clock})
	devices := []string{sim.UUID(0), sim.UUID(1)}
	m, err := usage.NewMeter(usage.Config{Devices: devices, Keep: -1})
	if err != nil {
		t.Fatal(err)
	}
	recorder, err := usage.NewRecorder(rig.Lease(devices...), rig.NewKey(t, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	hour := func() (heap, evidence int64) {
		var last metering.SignedRecord
		for second := 1; second <= 3600; second++ {
			clock.Advance(time.Second)
			for _, uuid := range devices {
				r, err := source.Read(t.Context(), uuid)
				if err != nil {
					t.Fatal(err)
				}
				rig.Observe(t, m, r)
			}
			if second%5 == 0 {
				last = rig.Next(t, recorder, m, false)
			}
		}
		runtime.GC()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		return int64(memory.HeapAlloc), int64(len(last.Evidence.Encode()))
	}
	heap, evidence := hour()
	for range 22 {
		hour()
	}
	lastHeap, lastEvidence := hour()
	t.Logf("heap %+d bytes, evidence %+d", lastHeap-heap, lastEvidence-evidence)
	if lastHeap-heap > 1<<20 || lastEvidence-evidence > 64 {
		t.Errorf("heap %d, after the first hour %d; evidence of %d bytes, of %d then", lastHeap, heap, lastEvidence, evidence)
	}
	if billed, passed := m.Totals().Allocated, int64(24*time.Hour-time.Second)*int64(len(devices)); billed != passed {
		t.Errorf("billed %d ns of %d", billed, passed)
	}
}
