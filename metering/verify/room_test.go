package verify_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/metering/verify"
)

// roomy is a payee with simulated GPUs, and a payer that bounds what it keeps.
type roomy struct {
	*testing.T
	clock *sim.Clock
	gpus  *sim.Source
	lease metering.Lease
	meter *usage.Meter
	rec   *usage.Recorder
	conf  verify.Config
	check *verify.Checker
}

func newRoomy(t *testing.T, gpus int, tick, every time.Duration, script ...sim.Fault) *roomy {
	t.Helper()
	r := &roomy{T: t, clock: sim.NewClock()}
	r.gpus = sim.New(gpus, sim.Options{Clock: r.clock, Script: script})
	var uuids []string
	for i := range gpus {
		uuids = append(uuids, sim.UUID(i))
	}
	r.lease = rig.Lease(uuids...)
	r.lease.Simulated = true
	key := rig.NewKey(t, 1)
	var err error
	if r.meter, err = usage.NewMeter(usage.Config{Devices: uuids, Tick: tick, MaxGap: 3 * tick}); err != nil {
		t.Fatal(err)
	}
	devices, err := r.gpus.Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices { // as long as those of real ones
		d.Name, d.Driver, d.VBIOS, d.PCI = "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "580.105.08", "96.00.A5.00.03", "00000000:61:00.0"
		d.NVML, d.Parent, d.Slice, d.BootID = "12.580.105.08", d.UUID, "1g.10gb", "0f0e0d0c-0b0a-4908-8706-050403020100"
		if err := r.meter.Describe("nvml", d); err != nil {
			t.Fatal(err)
		}
	}
	if r.rec, err = usage.NewRecorder(r.lease, key, nil); err != nil {
		t.Fatal(err)
	}
	r.conf = verify.Config{Lease: r.lease, Key: key.Address(), Tolerance: 2 * time.Second, Clock: r.clock, RecordEvery: every}
	if r.check, err = verify.New(r.conf); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *roomy) tick(d time.Duration) {
	r.Helper()
	for _, uuid := range r.lease.Devices {
		reading, err := r.gpus.Read(context.Background(), uuid)
		if err == nil {
			_, err = r.meter.Observe(reading)
		}
		if err != nil {
			r.Fatal(err)
		}
	}
	r.clock.Advance(d)
}

// record is the next one, and what it takes in bytes of evidence.
func (r *roomy) record() (int, error) {
	r.Helper()
	rec, err := r.rec.Next(r.Context(), r.meter.Cut(), false)
	if err != nil {
		r.Fatal(err)
	}
	return len(rec.Evidence.Encode()), r.check.Check(rec)
}

// TestHonestRecordsHaveRoom: the records of 1 to 16 GPUs take less than half of what a
// payer gives them room for, at the shortest times that an offer may name, while GPUs
// are lost, throttled and report errors; and those of an hour that come at once.
func TestHonestRecordsHaveRoom(t *testing.T) {
	for _, gpus := range []int{1, 2, 4, 8, 16} {
		script := []sim.Fault{{Device: -1, Kind: sim.Lost, At: 3 * time.Second, For: time.Second}, {Device: -1, Kind: sim.Throttle, At: 5 * time.Second, For: 2 * time.Second}}
		for i := range 10 {
			script = append(script, sim.Fault{Device: -1, Kind: sim.XID, At: 6*time.Second + time.Duration(i)*100*time.Millisecond, Code: 94})
		}
		r := newRoomy(t, gpus, metering.MinRecordEvery, metering.MinRecordEvery, script...)
		most, sum, count := 0, 0, 0
		for range 250 {
			r.tick(metering.MinRecordEvery)
			size, err := r.record()
			if err != nil {
				t.Fatalf("%d GPUs, record %d: %v", gpus, count, err)
			}
			most, sum, count = max(most, size), sum+size, count+1
		}
		t.Logf("%d GPUs: %d bytes of evidence a record, %d at most; room for %d", gpus, sum/count, most, verify.RecordRoom(gpus))
		if 2*uint64(sum/count+1<<10) > verify.RecordRoom(gpus) {
			t.Errorf("%d GPUs: %d bytes a record do not fit into %d", gpus, sum/count, verify.RecordRoom(gpus))
		}
	}
	r := newRoomy(t, 1, time.Second, 5*time.Second)
	var late []metering.SignedRecord
	for range 720 {
		for range 5 {
			r.tick(time.Second)
		}
		rec, err := r.rec.Next(t.Context(), r.meter.Cut(), false)
		if err != nil {
			t.Fatal(err)
		}
		late = append(late, rec)
	}
	for _, rec := range late {
		if err := r.check.Check(rec); err != nil {
			t.Fatalf("an hour's records at once: %v", err)
		}
	}
}

// TestRecordsDoNotFillTheDisk: records that come more often than the offer says are
// taken as far as the lease's time gives them room, and then refused; a restart of the
// payer forgets nothing of that, and time makes room again.
func TestRecordsDoNotFillTheDisk(t *testing.T) {
	const every = 100 * time.Millisecond
	r := newRoomy(t, 1, 10*time.Millisecond, every)
	taken, began := uint64(0), r.clock.Now().Boot
	for {
		r.tick(time.Millisecond)
		rec, err := r.rec.Next(t.Context(), r.meter.Cut(), false)
		if err != nil {
			t.Fatal(err)
		}
		if err = r.check.Check(rec); err == nil {
			if taken += uint64(len(rec.Evidence.Encode())); taken > 1<<20 {
				t.Fatalf("%d bytes are kept of %s", taken, time.Duration(r.clock.Now().Boot-began))
			}
			if r.check, err = verify.Resume(r.conf, r.check.State()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if !errors.Is(err, verify.ErrRoom) || !strings.Contains(err.Error(), "bytes") {
			t.Fatal(err)
		}
		if r.check.Overfull() == 0 {
			t.Error("the next lease would begin with room for as much again")
		}
		r.clock.Advance(every)
		if err := r.check.Check(rec); err != nil {
			t.Errorf("after the time that it takes: %v", err)
		}
		break
	}
	periods := uint64(r.clock.Now().Boot-began)/uint64(every) + 64
	if most := periods * verify.RecordRoom(1); taken > most {
		t.Errorf("%d bytes are kept, there is room for %d", taken, most)
	}
}
