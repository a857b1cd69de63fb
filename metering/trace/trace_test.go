package trace_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/trace"
	"github.com/gpupay/gpupay/metering/usage"
)

var update = flag.Bool("update", false, "write testdata/simulated.jsonl again")

const simulated = "testdata/simulated.jsonl"

// record makes the trace in testdata: two simulated GPUs for twelve seconds,
// the first with a loss, an XID, a driver reload, heat and a suspend.
func record(t *testing.T) []byte {
	t.Helper()
	clock := sim.NewClock()
	src := sim.New(2, sim.Options{Clock: clock, Script: []sim.Fault{
		{Kind: sim.Lost, At: 2 * time.Second, For: time.Second},
		{Kind: sim.XID, At: 5 * time.Second, Code: 31},
		{Kind: sim.Reload, At: 7 * time.Second},
		{Kind: sim.Throttle, At: 8 * time.Second, For: 500 * time.Millisecond},
		{Kind: sim.Suspend, At: 10 * time.Second, For: time.Minute},
		{Kind: sim.Idle, Device: 1, At: 0, For: 4 * time.Second},
	}})
	var b bytes.Buffer
	rec, err := trace.Record(t.Context(), src, &b, "two simulated GPUs on a clock that the test moves; no GPU was involved", new([32]byte))
	if err != nil {
		t.Fatal(err)
	}
	for second := range 13 {
		if second > 0 {
			clock.Advance(time.Second)
		}
		for i := range 2 {
			if r, err := rec.Read(t.Context(), sim.UUID(i)); err != nil || r.Device != sim.UUID(i) {
				t.Fatalf("the recorder changes what it passes on: %+v, %v", r, err)
			}
		}
	}
	if err := rec.Err(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRecordIsCurrent(t *testing.T) {
	got := record(t)
	if *update {
		if err := os.WriteFile(simulated, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(simulated)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is stale: run go test ./metering/trace -update", simulated)
	}
	for _, id := range []string{sim.UUID(0) + `"`, sim.UUID(1) + `"`, "simulated-boot"} {
		if bytes.Contains(got, []byte(id)) {
			t.Errorf("the trace names %s", id)
		}
	}
}

func load(t testing.TB, path string) *trace.Trace {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tr, err := trace.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// TestReplay states what each committed trace bills, to the nanosecond.
func TestReplay(t *testing.T) {
	for path, want := range map[string][]metering.Nanos{
		simulated: {
			{Allocated: 8e9, Active: 8e9, Throttled: 5e8, Down: 2e9, Gap: 2e9},
			{Allocated: 12e9, Active: 9e9},
		},
		"testdata/library.jsonl": {
			{Allocated: 8e9, Active: 8e9, Down: 2e9},
			{Allocated: 10e9, Active: 10e9},
		},
		// A real H100, idle, under matrix products but for its last seconds, and with a program that made XID 31,
		// which is recorded and stops nothing.
		"testdata/h100-idle.jsonl":  {{Allocated: 58_991_063_649}},
		"testdata/h100-load.jsonl":  {{Allocated: 58_988_687_084, Active: 54_878_079_567}},
		"testdata/h100-xid31.jsonl": {{Allocated: 18_990_408_506}},
	} {
		tr := load(t, path)
		m := meter(t, tr)
		if err := tr.Replay(m); err != nil {
			t.Fatal(err)
		}
		for i, d := range tr.Devices {
			if got := m.Totals().Devices[d.UUID]; got != want[i] {
				t.Errorf("%s, device %d: got %+v, want %+v", path, i, got, want[i])
			}
		}
		e := m.Cut()
		if !strings.HasPrefix(e.Source, "trace of ") || e.Simulated != tr.Simulated {
			t.Errorf("%s: the evidence hides that it is a trace: %s", path, e.Encode())
		}
	}
}

// TestReplayXID: an error that the renter's program caused is in the evidence of a real GPU, with whose fault it was.
func TestReplayXID(t *testing.T) {
	tr := load(t, "testdata/h100-xid31.jsonl")
	m := meter(t, tr)
	if err := tr.Replay(m); err != nil {
		t.Fatal(err)
	}
	errs := m.Cut().Devices[0].XIDs
	if len(errs) != 1 || errs[0].Code != 31 || errs[0].Fault != metering.Workload {
		t.Errorf("the evidence has %+v", errs)
	}
}

func meter(t *testing.T, tr *trace.Trace) *usage.Meter {
	t.Helper()
	var devices []string
	for _, d := range tr.Devices {
		devices = append(devices, d.UUID)
	}
	m, err := usage.NewMeter(usage.Config{Devices: devices, Tick: time.Millisecond, MaxGap: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

type broken struct{ after int }

func (b *broken) Write(p []byte) (int, error) {
	if b.after--; b.after < 0 {
		return 0, os.ErrClosed
	}
	return len(p), nil
}

func TestRecorderTellsOfAFullDisk(t *testing.T) {
	src := sim.New(1, sim.Options{Clock: sim.NewClock()})
	rec, err := trace.Record(t.Context(), src, &broken{after: 1}, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rec.Read(t.Context(), sim.UUID(0)); !errors.Is(err, os.ErrClosed) || !errors.Is(rec.Err(), os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := trace.Record(t.Context(), src, &broken{}, "", nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestRandomSaltHidesTwoTracesOfOneGPUFromEachOther(t *testing.T) {
	ids := make(map[string]bool)
	for range 2 {
		var b bytes.Buffer
		if _, err := trace.Record(t.Context(), sim.New(1, sim.Options{}), &b, "", nil); err != nil {
			t.Fatal(err)
		}
		tr, err := trace.Parse(&b)
		if err != nil {
			t.Fatal(err)
		}
		ids[tr.Devices[0].UUID] = true
	}
	if len(ids) != 2 {
		t.Errorf("ids %v", ids)
	}
}

func TestParseRefuses(t *testing.T) {
	good, err := os.ReadFile(simulated)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(good), "\n")
	for name, bad := range map[string]string{
		"nothing":            "",
		"no JSON":            "x\n",
		"another format":     strings.Replace(head, "gpupay trace", "other trace", 1),
		"another version":    strings.Replace(head, `"version":1`, `"version":2`, 1),
		"an unknown key":     strings.Replace(head, `"version":1`, `"version":1,"x":1`, 1),
		"a device twice":     strings.Replace(head, "SIM-GPU-"+id(t, 1), "SIM-GPU-"+id(t, 0), 1),
		"a reading of none":  head + "\n" + strings.Replace(rest, "SIM-GPU-"+id(t, 0), "SIM-GPU-x", 1),
		"keys out of order":  head + "\n" + `{"device":"a","at":{}}`,
		"a line that is cut": string(good[:len(good)-40]),
		"a line too long":    head + "\n" + strings.Repeat("x", 2<<20),
	} {
		if _, err := trace.Parse(strings.NewReader(bad)); !errors.Is(err, trace.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func id(t *testing.T, i int) string {
	return strings.TrimPrefix(load(t, simulated).Devices[i].UUID, "SIM-GPU-")
}

// FuzzParse holds what is parsed against the bytes it came from, and meters it.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("testdata/*.jsonl")
	if err != nil || len(paths) == 0 {
		f.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := trace.Parse(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, trace.ErrFormat) {
				t.Fatalf("an error without a name: %v", err)
			}
			return
		}
		var devices []string
		for _, d := range tr.Devices {
			devices = append(devices, d.UUID)
		}
		m, err := usage.NewMeter(usage.Config{Devices: devices})
		if err != nil {
			return
		}
		if err := tr.Replay(m); err != nil && !errors.Is(err, usage.ErrReading) {
			t.Fatal(err)
		}
		if n := m.Totals().Nanos; n.Allocated < 0 {
			t.Fatalf("billed %+v", n)
		}
	})
}
