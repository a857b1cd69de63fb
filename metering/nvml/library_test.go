//go:build linux && cgo

package nvml_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/nvml"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/trace"
	"github.com/gpupay/gpupay/metering/usage"
)

// The tests below run the real cgo binding against testdata/nvml.c, built here
// with gcc. A process can load one library only, so each case is a process of
// its own: this test binary again, told by its environment which case to run.

const (
	envCase    = "GPUPAY_NVML_CASE"
	envLibrary = "GPUPAY_NVML_LIBRARY"
	envControl = "GPUPAY_NVML_CONTROL" // read by the library
)

var update = flag.Bool("update", false, "write the trace of the test library again")

func gpu(n int) string { return fmt.Sprintf("GPU-00000000-0000-0000-0000-00000000000%d", n) }
func mig(n, slice int) string {
	return fmt.Sprintf("MIG-00000000-0000-0000-0000-0000000000%d%d", n, slice)
}

var cases = []struct {
	name string
	old  bool // build without the symbols of newer drivers
	run  func(*bench)
}{
	{"healthy", false, healthy},
	{"identity", false, identity},
	{"lost", false, lost},
	{"lost beside healthy", false, lostBeside},
	{"reset required", false, resetRequired},
	{"unknown error", false, unknownError},
	{"nothing optional supported", false, bare},
	{"XID 79", false, xid79},
	{"XID 13", false, xid13},
	{"driver reload", false, reload},
	{"energy backwards", false, energy},
	{"another GPU answers", false, swapped},
	{"throttled", false, throttled},
	{"stalled", false, stalled},
	{"reload while a call hangs", false, stalledReload},
	{"MIG slices", false, migSlices},
	{"MIG slice gone", false, migGone},
	{"old driver", true, old},
	{"second library", false, second},
	{"recording", false, recording},
	{"leased while another GPU is lost", false, leasedBesideLost},
	{"begun with a lost GPU that comes back", false, begunLost},
	{"reloaded while another GPU is lost", false, reloadedBesideLost},
	{"slice leased while another GPU is lost", false, sliceBesideLost},
	{"hung GPU does not hold up the listing", false, hungListing},
	{"hung GPU does not hold up a lease", false, hungBeside},
	{"driver upgraded", false, upgraded},
	{"XID 79 and lost", false, xidOfLost},
	{"errors of the lease before", false, earlierErrors},
	{"registration refused for a while", false, refusedEvents},
	{"lost and back, then an XID", false, eventsAfterLoss},
	{"storm of XIDs", false, storm},
	{"recovery action", false, recovery},
	{"MIG mode switched on", false, migSwitchedOn},
}

func TestLibrary(t *testing.T) {
	if os.Getenv(envCase) != "" {
		t.Skip("this process runs one case")
	}
	dir := t.TempDir()
	libraries := map[bool]string{false: build(t, dir, "new"), true: build(t, dir, "old", "-DOLD")}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			child(t, c.name, libraries[c.old], filepath.Join(t.TempDir(), "control"))
		})
	}
}

// TestNoLibrary: a host without a driver gets one clear error and no crash.
func TestNoLibrary(t *testing.T) {
	if os.Getenv(envCase) != "" {
		t.Skip("this process runs one case")
	}
	missing := filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	_, err := nvml.Open(nvml.Options{Library: missing})
	if !errors.Is(err, nvml.ErrLibrary) || !strings.Contains(err.Error(), "no NVIDIA driver library") {
		t.Errorf("got %v", err)
	}
}

// TestCase is what a child process runs.
func TestCase(t *testing.T) {
	name := os.Getenv(envCase)
	if name == "" {
		t.Skip("run by TestLibrary")
	}
	for _, c := range cases {
		if c.name == name {
			c.run(open(t))
			return
		}
	}
	t.Fatalf("no case %q", name)
}

func build(t testing.TB, dir, name string, flags ...string) string {
	t.Helper()
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml").Output()
	if err != nil {
		t.Fatalf("find go-nvml: %v", err)
	}
	out := filepath.Join(dir, name, "libnvidia-ml.so.1")
	if err := os.Mkdir(filepath.Dir(out), 0o755); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-shared", "-fPIC", "-O1", "-w", "-o", out,
		"-I", filepath.Join(strings.TrimSpace(string(module)), "gen", "nvml"), filepath.Join("testdata", "nvml.c")}, flags...)
	if b, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, b)
	}
	return out
}

func child(t *testing.T, name, library, control string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestCase$", "-test.v", fmt.Sprintf("-update=%v", *update))
	cmd.Env = append(os.Environ(), envCase+"="+name, envLibrary+"="+library, envControl+"="+control)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestCase") {
		t.Errorf("%v\n%s", err, out)
	}
}

// bench is one child's source, meter and clock. Time stands still but for step.
type bench struct {
	*testing.T
	clock   *sim.Clock
	source  *nvml.Source
	meter   *usage.Meter
	devices []string
	keys    map[string]uint64
	xids    []string
	last    map[string]metering.Reading
}

func open(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, clock: sim.NewClock(), keys: map[string]uint64{"gpus": 2, "util": 50, "processes": 3, "memory": 1 << 30}}
	b.write()
	var err error
	b.source, err = nvml.Open(nvml.Options{Library: os.Getenv(envLibrary), Clock: b.clock})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// set changes what the library's GPUs do.
func (b *bench) set(key string, value uint64) {
	b.keys[key] = value
	b.write()
}

func (b *bench) xid(gpu int, code uint64, instance ...uint32) {
	line := fmt.Sprintf("xid %d %d", gpu, code)
	for _, i := range instance {
		line += fmt.Sprintf(" %d", i)
	}
	b.xids = append(b.xids, line)
	b.write()
}

func (b *bench) write() {
	b.Helper()
	var s strings.Builder
	for k, v := range b.keys {
		fmt.Fprintf(&s, "%s %d\n", k, v)
	}
	s.WriteString(strings.Join(b.xids, "\n") + "\n")
	path := os.Getenv(envControl)
	if err := os.WriteFile(path+".new", []byte(s.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil { // whole or not at all: a call may be reading
		b.Fatal(err)
	}
}

// lease begins to meter devices: the first look is at second 0.
func (b *bench) lease(devices ...string) {
	b.Helper()
	var err error
	if b.meter, err = usage.NewMeter(usage.Config{Devices: devices}); err != nil {
		b.Fatal(err)
	}
	b.devices, b.last = devices, make(map[string]metering.Reading)
	b.look()
}

func (b *bench) look() {
	b.Helper()
	for _, uuid := range b.devices {
		r, err := b.source.Read(b.Context(), uuid)
		if err != nil {
			b.Fatal(err)
		}
		b.last[uuid] = r
		if _, err := b.meter.Observe(r); err != nil {
			b.Fatal(err)
		}
	}
}

// step is so many seconds with a look at the end of each.
func (b *bench) step(seconds int) {
	b.Helper()
	for range seconds {
		b.clock.Advance(time.Second)
		b.keys["energy"] += 300_000
		b.write()
		b.look()
	}
}

// want states the nanoseconds of one device, to the nanosecond.
func (b *bench) want(uuid string, want metering.Nanos) {
	b.Helper()
	if got := b.meter.Totals().Devices[uuid]; got != want {
		b.Errorf("%s: got %+v, want %+v", uuid, got, want)
	}
}

func healthy(b *bench) {
	b.lease(gpu(0), gpu(1))
	b.step(10)
	for i := range 2 {
		b.want(gpu(i), metering.Nanos{Allocated: 10e9, Active: 10e9})
	}
	r := b.last[gpu(0)]
	all := metering.HasEnergy | metering.HasMemory | metering.HasUtilization | metering.HasProcesses | metering.HasThrottle | metering.HasXIDs
	if r.Has != all || r.Energy != 3_000_000 || r.Memory != 1<<30 || r.Utilization != 50 || r.Processes != 3 || r.Seen != gpu(0) {
		b.Errorf("reading %s", r.Encode())
	}
	if strings.Contains(string(r.Encode()), "424") { // the pids are 4242 to 4244
		b.Errorf("a process id left the source: %s", r.Encode())
	}
	if err := b.source.Close(); err != nil {
		b.Error(err)
	}
	if _, err := b.source.Read(b.Context(), gpu(0)); !errors.Is(err, metering.ErrEnd) {
		b.Errorf("a closed source: %v", err)
	}
}

func identity(b *bench) {
	devices, err := b.source.Devices(b.Context())
	if err != nil || len(devices) != 2 {
		b.Fatalf("%v, %v", devices, err)
	}
	want := metering.Device{
		BootID: "simulated-boot", Driver: "570.86.15", MemoryBytes: 80 << 30, Name: "Test library GPU",
		NVML: "12.570.86.15", PCI: "00000000:41:00.0", UUID: gpu(1), VBIOS: "96.00.5E.00.01",
	}
	if devices[1] != want {
		b.Errorf("got %+v, want %+v", devices[1], want)
	}
	b.set("lost", 1)
	if devices, err = b.source.Devices(b.Context()); err != nil || len(devices) != 1 || devices[0].UUID != gpu(1) {
		b.Errorf("with GPU 0 lost: %v, %v", devices, err)
	}
}

// lost: billed to second 3; at 4 and 5 it is lost, at 6 it is back, at 7 there
// is a healthy pair again.
func lost(b *bench) {
	b.lease(gpu(0))
	b.step(3)
	b.set("lost", 1)
	b.step(2)
	if r := b.last[gpu(0)]; r.Health != metering.Lost {
		b.Errorf("reading %s", r.Encode())
	}
	b.set("lost", 0)
	b.step(5)
	b.want(gpu(0), metering.Nanos{Allocated: 7e9, Active: 7e9, Down: 3e9})
}

// lostBeside: a lost GPU keeps NVML from looking any other up, and must not keep
// the other from being billed.
func lostBeside(b *bench) {
	b.lease(gpu(0), gpu(1))
	b.step(2)
	b.set("lost", 2)
	b.step(8)
	b.want(gpu(0), metering.Nanos{Allocated: 10e9, Active: 10e9})
	b.want(gpu(1), metering.Nanos{Allocated: 2e9, Active: 2e9, Down: 8e9})
}

func resetRequired(b *bench) {
	b.lease(gpu(0))
	b.step(3)
	b.set("reset", 1)
	b.step(7)
	if r := b.last[gpu(0)]; r.Health != metering.Reset {
		b.Errorf("reading %s", r.Encode())
	}
	b.want(gpu(0), metering.Nanos{Allocated: 3e9, Active: 3e9, Down: 7e9})
}

func unknownError(b *bench) {
	b.lease(gpu(0))
	b.step(3)
	b.set("unknown", 1)
	b.step(1)
	if r := b.last[gpu(0)]; r.Health != metering.Failed || strings.Contains(r.Detail, "rely") {
		b.Errorf("reading %s", r.Encode())
	}
	b.set("unknown", 0)
	b.step(6)
	b.want(gpu(0), metering.Nanos{Allocated: 8e9, Active: 8e9, Down: 2e9})
}

// bare: what a device does not support is missing from the evidence, and not
// from the bill.
func bare(b *bench) {
	b.set("bare", 1)
	b.lease(gpu(0))
	b.step(10)
	b.want(gpu(0), metering.Nanos{Allocated: 10e9})
	want := []string{"energy", "memory", "utilization", "processes", "throttle", "xids"}
	if got := b.meter.Cut().Devices[0].Missing; !slices.Equal(got, want) {
		b.Errorf("missing %v", got)
	}
}

// xid79: it happens in second 3 to 4, which is not billed, nor is the next.
func xid79(b *bench) {
	b.lease(gpu(0), gpu(1))
	b.step(3)
	b.xid(0, 79)
	b.step(7)
	b.want(gpu(0), metering.Nanos{Allocated: 8e9, Active: 8e9, Down: 2e9})
	b.want(gpu(1), metering.Nanos{Allocated: 10e9, Active: 10e9})
	e := b.meter.Cut()
	want := metering.XID{Code: 79, Fault: metering.Hardware, Mono: 5e9}
	if x := e.Devices[0].XIDs; len(x) != 1 || x[0] != want {
		b.Errorf("XIDs %v", x)
	}
	if x := e.Devices[1].XIDs; len(x) != 0 {
		b.Errorf("an error of the GPU beside it: %v", x)
	}
}

func xid13(b *bench) {
	b.xid(0, 31) // before the lease: not delivered, and nobody's
	b.lease(gpu(0))
	b.step(3)
	b.xid(0, 13)
	b.xid(0, 43)
	b.step(7)
	b.want(gpu(0), metering.Nanos{Allocated: 10e9, Active: 10e9})
	x := b.meter.Cut().Devices[0].XIDs
	if len(x) != 2 || x[0].Code != 13 || x[0].Fault != metering.Workload || x[1].Code != 43 {
		b.Errorf("XIDs %v", x)
	}
}

// reload: at second 4 the library says it is not initialized; the look at
// second 5 opens it again, under a new generation. The event set is built anew.
func reload(b *bench) {
	b.lease(gpu(0), gpu(1))
	b.step(3)
	b.set("epoch", 1)
	b.set("energy", 0)
	b.step(2)
	b.xid(0, 13)
	b.step(5)
	b.want(gpu(0), metering.Nanos{Allocated: 8e9, Active: 8e9, Down: 1e9, Gap: 1e9})
	// GPU 1 was looked at after GPU 0 had found the driver gone, and opened it.
	b.want(gpu(1), metering.Nanos{Allocated: 9e9, Active: 9e9, Gap: 1e9})
	if r := b.last[gpu(0)]; r.Generation != 2 {
		b.Errorf("reading %s", r.Encode())
	}
	if x := b.meter.Cut().Devices[0].XIDs; len(x) != 1 || x[0].Code != 13 {
		b.Errorf("XIDs after the reload: %v", x)
	}
}

// energy: a reload that the library hid shows in the counter.
func energy(b *bench) {
	b.lease(gpu(0))
	b.step(3)
	b.keys["energy"] = 0
	b.step(7)
	b.want(gpu(0), metering.Nanos{Allocated: 9e9, Active: 9e9, Gap: 1e9})
	if g := b.meter.Cut().Devices[0].Gaps; len(g) != 1 || g[0].Reason != metering.ReasonEnergy {
		b.Errorf("gaps %v", g)
	}
}

func swapped(b *bench) {
	b.lease(gpu(0))
	b.step(3)
	b.set("swap", 1)
	b.step(2)
	b.set("swap", 0)
	b.step(5)
	b.want(gpu(0), metering.Nanos{Allocated: 7e9, Active: 7e9, Gap: 2e9, Down: 1e9})
}

// throttled: slowed time is billed and shown apart.
func throttled(b *bench) {
	b.lease(gpu(0))
	b.step(3)
	b.set("soft", 100_000_000)
	b.set("hard", 200_000_000)
	b.set("brake", 50_000_000)
	b.step(7)
	b.want(gpu(0), metering.Nanos{Allocated: 10e9, Active: 10e9, Throttled: 350_000_000})
}

// stalled: GPU 0's calls do not return from second 2 to second 12. The sampler's
// watchdog makes that a gap, and GPU 1 is billed throughout.
func stalled(b *bench) {
	var mu sync.Mutex
	last := make(map[string]metering.Reading)
	m, err := usage.NewMeter(usage.Config{Devices: []string{gpu(0), gpu(1)}})
	if err != nil {
		b.Fatal(err)
	}
	b.meter = m
	s := sampling.Loop{Source: b.source, Meter: m, Clock: b.clock, Observed: func(r metering.Reading, _ usage.Interval) {
		mu.Lock()
		defer mu.Unlock()
		last[r.Device] = r
	}}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	until := func(what string, ok func() bool) {
		b.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				b.Fatalf("at %d: %s", b.clock.Now().Mono, what)
			}
		}
	}
	read := func(uuid string, health metering.Health) {
		b.Helper()
		until(uuid+" is not read as "+string(health), func() bool {
			mu.Lock()
			defer mu.Unlock()
			return last[uuid].At.Mono == b.clock.Now().Mono && last[uuid].Health == health
		})
	}
	timers := func(n int) {
		b.Helper()
		until(fmt.Sprintf("there are not %d timers", n), func() bool { return b.clock.Waiting() == n })
	}
	second := func() { b.clock.Advance(time.Second) }

	read(gpu(0), metering.Healthy)
	read(gpu(1), metering.Healthy)
	timers(1) // the next tick
	second()  // 1
	read(gpu(0), metering.Healthy)
	read(gpu(1), metering.Healthy)
	timers(1)
	b.set("stall", 1)
	for i := 2; i <= 11; i++ {
		second()
		read(gpu(1), metering.Healthy)
		if i == 5 || i == 8 || i == 11 { // the watchdog waits 3 s, and again
			read(gpu(0), metering.Stalled)
		}
		timers(1)
	}
	second() // 12
	b.set("stall", 0)
	read(gpu(0), metering.Healthy)
	read(gpu(1), metering.Healthy)
	settled := func() bool { return b.clock.Waiting() >= 1 } // a sleeper may have been woken early
	until("nobody waits", settled)
	for range 3 { // to 15
		second()
		read(gpu(0), metering.Healthy)
		read(gpu(1), metering.Healthy)
		until("nobody waits", settled)
	}
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
	b.want(gpu(0), metering.Nanos{Allocated: 4e9, Active: 4e9, Gap: 11e9})
	b.want(gpu(1), metering.Nanos{Allocated: 15e9, Active: 15e9})
}

// stalledReload: the driver goes away while a call hangs in it. Unloading the
// library under that call would end the process, so nothing is billed until the
// call returns.
func stalledReload(b *bench) {
	b.lease(gpu(1))
	b.set("stall", 1)
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		b.source.Read(b.Context(), gpu(0))
	}()
	time.Sleep(50 * time.Millisecond) // let it hang
	b.step(2)
	b.set("epoch", 1)
	b.step(3)
	if r := b.last[gpu(1)]; r.Health != metering.Failed || !strings.Contains(r.Detail, "hangs") {
		b.Errorf("reading %s", r.Encode())
	}
	if err := b.source.Close(); !errors.Is(err, nvml.ErrDriver) {
		b.Errorf("closed under a call: %v", err)
	}
	b.want(gpu(1), metering.Nanos{Allocated: 2e9, Active: 2e9, Down: 3e9})
	b.set("stall", 0)
	<-returned
}

// migSlices: a slice is billed by its own UUID, with its own errors. It has no
// utilization; the number of its processes says whether it was active.
func migSlices(b *bench) {
	b.set("mig", 2)
	devices, err := b.source.Devices(b.Context())
	if err != nil || len(devices) != 3 {
		b.Fatalf("%v, %v", devices, err)
	}
	d := devices[2]
	if devices[0].UUID != gpu(0) || d.UUID != mig(1, 1) || !d.MIG || d.Parent != gpu(1) || d.Slice != "2/0" || d.MemoryBytes != 10<<30 {
		b.Errorf("got %+v", devices)
	}
	b.lease(mig(1, 0), mig(1, 1))
	b.step(3)
	b.xid(1, 79, 2, 0) // slice 1 alone
	b.step(1)
	b.xid(1, 31, 1, 0)   // slice 0 alone
	b.xid(0, 79)         // another GPU
	b.set("hard", 250e6) // the whole GPU is slowed, and so are its slices
	b.step(6)
	b.want(mig(1, 0), metering.Nanos{Allocated: 10e9, Active: 10e9, Throttled: 250e6})
	b.want(mig(1, 1), metering.Nanos{Allocated: 8e9, Active: 8e9, Throttled: 0, Down: 2e9})
	e := b.meter.Cut()
	if x := e.Devices[0].XIDs; len(x) != 1 || x[0].Code != 31 {
		b.Errorf("XIDs of slice 0: %v", x)
	}
	if want := []string{"energy", "utilization"}; !slices.Equal(e.Devices[0].Missing, want) {
		b.Errorf("missing %v", e.Devices[0].Missing)
	}
	b.xid(1, 95) // the driver names no slice: all of them
	b.step(2)
	b.want(mig(1, 0), metering.Nanos{Allocated: 10e9, Active: 10e9, Throttled: 250e6, Down: 2e9})
}

// migGone: a slice that was destroyed cannot be found after a reload.
func migGone(b *bench) {
	b.set("mig", 1)
	b.lease(mig(0, 0))
	b.step(4)
	b.set("mig", 0)
	b.set("epoch", 1)
	b.step(6)
	b.want(mig(0, 0), metering.Nanos{Allocated: 4e9, Active: 4e9, Down: 6e9})
	if r := b.last[mig(0, 0)]; r.Health != metering.Lost {
		b.Errorf("reading %s", r.Encode())
	}
}

// old: a driver without the newer symbols is billed all the same, and calling
// what it lacks would have ended this process.
func old(b *bench) {
	devices, err := b.source.Devices(b.Context())
	if err != nil || len(devices) != 2 || devices[0].NVML != "" {
		b.Fatalf("%+v, %v", devices, err)
	}
	b.lease(gpu(0))
	b.step(3)
	b.xid(0, 79)
	b.step(7)
	b.want(gpu(0), metering.Nanos{Allocated: 8e9, Active: 8e9, Down: 2e9})
	want := []string{"energy", "processes", "throttle"}
	if got := b.meter.Cut().Devices[0].Missing; !slices.Equal(got, want) {
		b.Errorf("missing %v", got)
	}
}

// second: two libraries in one process would mix their symbols.
func second(b *bench) {
	if _, err := nvml.Open(nvml.Options{Library: "another.so"}); !errors.Is(err, nvml.ErrSecond) {
		b.Errorf("got %v", err)
	}
}

// recording holds the trace in metering/trace/testdata against what the library
// does today: XID 79 on GPU 0 after three of ten seconds.
func recording(b *bench) {
	const path = "../trace/testdata/library.jsonl"
	var out bytes.Buffer
	rec, err := trace.Record(b.Context(), b.source, &out,
		"the C test library in metering/nvml/testdata, through cgo, on a clock that the test moves; no GPU was involved", new([32]byte))
	if err != nil {
		b.Fatal(err)
	}
	for i := range 11 {
		if i > 0 {
			b.clock.Advance(time.Second)
		}
		if i == 4 {
			b.xid(0, 79)
		}
		for g := range 2 {
			if _, err := rec.Read(b.Context(), gpu(g)); err != nil {
				b.Fatal(err)
			}
		}
	}
	if *update {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		b.Errorf("%s is stale: run go test ./metering/nvml -update", path)
	}
}

// leasedBesideLost: what NVML does not look up by UUID while any GPU is lost is found by its index, also when the lease
// begins after the loss. GPU 0 is the lost one in this and the next cases, so that indexes do not start with the healthy.
func leasedBesideLost(b *bench) {
	b.set("lost", 1)
	b.lease(gpu(1))
	b.step(10)
	b.want(gpu(1), metering.Nanos{Allocated: 10e9, Active: 10e9})
	b.lease(gpu(0), gpu(1))
	b.step(2)
	b.want(gpu(0), metering.Nanos{Down: 2e9})
	b.want(gpu(1), metering.Nanos{Allocated: 2e9, Active: 2e9})
	if d, err := b.source.Describe(b.Context(), gpu(1)); err != nil || d.UUID != gpu(1) {
		b.Errorf("got %+v, %v", d, err)
	}
	if d, err := b.source.Describe(b.Context(), gpu(0)); !errors.Is(err, metering.ErrDevice) {
		b.Errorf("the lost GPU: %+v, %v", d, err)
	}
}

// begunLost: a lease that begins while one of its GPUs is lost bills the other from the start, and the lost one from
// the healthy pair after second 4 on, described as it is then.
func begunLost(b *bench) {
	b.set("lost", 2)
	m, err := usage.NewMeter(usage.Config{Devices: []string{gpu(0), gpu(1)}})
	if err != nil {
		b.Fatal(err)
	}
	b.meter = m
	all := sampling.New(b.source, b.clock)
	defer all.Close()
	readings := make(chan metering.Reading, 2)
	all.Attend(m, 0, relay(readings))
	for second := 1; ; second++ {
		for range 2 {
			select {
			case <-readings:
			case <-time.After(20 * time.Second):
				b.Fatalf("a GPU is not read at %d", b.clock.Now().Mono)
			}
		}
		if second > 10 {
			break
		}
		if second == 4 {
			b.set("lost", 0)
		}
		for b.clock.Waiting() == 0 {
			time.Sleep(time.Millisecond)
		}
		b.clock.Advance(time.Second)
	}
	b.want(gpu(0), metering.Nanos{Allocated: 10e9, Active: 10e9})
	b.want(gpu(1), metering.Nanos{Allocated: 6e9, Active: 6e9, Down: 4e9})
	if d := m.Cut().Devices[1].Device; d.Name != "Test library GPU" || d.MemoryBytes != 80<<30 {
		b.Errorf("described as %+v", d)
	}
}

// relay passes on what is read.
type relay chan metering.Reading

func (c relay) Sampled(r metering.Reading, _ usage.Interval) { c <- r }
func (c relay) SamplingEnded(error)                          {}

func reloadedBesideLost(b *bench) {
	b.lease(gpu(1), gpu(0))
	b.step(3)
	b.set("epoch", 1)
	b.set("lost", 1)
	b.set("energy", 0)
	b.step(7)
	b.want(gpu(1), metering.Nanos{Allocated: 8e9, Active: 8e9, Down: 1e9, Gap: 1e9})
	b.want(gpu(0), metering.Nanos{Allocated: 3e9, Active: 3e9, Down: 7e9})
}

func sliceBesideLost(b *bench) {
	b.set("mig", 2)
	b.set("lost", 1)
	b.lease(mig(1, 1))
	b.step(10)
	b.want(mig(1, 1), metering.Nanos{Allocated: 10e9, Active: 10e9})
	d, err := b.source.Describe(b.Context(), mig(1, 1))
	if err != nil || !d.MIG || d.Parent != gpu(1) || d.Slice != "2/0" {
		b.Errorf("got %+v, %v", d, err)
	}
}

// hungListing: the GPU beside one that hangs is listed, and listing again and again while it hangs leaves no thread
// more than one behind.
func hungListing(b *bench) {
	b.set("stall", 1)
	defer b.set("stall", 0)
	list := func() {
		devices, err := b.source.Devices(b.Context())
		if err != nil || len(devices) != 1 || devices[0].UUID != gpu(1) {
			b.Fatalf("%v, %v", devices, err)
		}
	}
	list()
	before := pprof.Lookup("threadcreate").Count()
	var all sync.WaitGroup
	for range 50 {
		all.Go(list)
	}
	all.Wait()
	if more := pprof.Lookup("threadcreate").Count() - before; more > 10 {
		b.Errorf("50 listings made %d threads", more)
	}
}

// hungBeside: a lease of the healthy GPU begins and is metered while a lease of the other hangs.
func hungBeside(b *bench) {
	b.lease(gpu(0), gpu(1))
	b.set("stall", 1)
	defer b.set("stall", 0)
	m, err := usage.NewMeter(usage.Config{Devices: []string{gpu(1)}})
	if err != nil {
		b.Fatal(err)
	}
	all := sampling.New(b.source, b.clock)
	defer all.Close()
	begun := time.Now()
	one, err := all.Add(b.Context(), m, 0, quiet{})
	if err != nil || time.Since(begun) > 2*time.Second {
		b.Fatalf("after %s: %v", time.Since(begun), err)
	}
	defer one.Stop()
	for deadline := time.Now().Add(time.Minute); m.Allocated() < 3e9; time.Sleep(time.Millisecond) {
		b.clock.Advance(time.Second)
		if time.Now().After(deadline) {
			b.Fatalf("metered %d ns", m.Allocated())
		}
	}
}

type quiet struct{}

func (quiet) Sampled(metering.Reading, usage.Interval) {}
func (quiet) SamplingEnded(error)                      {}

// upgraded: the library of this process cannot speak to the new kernel module, ever. It says what to do, and bills nothing.
func upgraded(b *bench) {
	b.lease(gpu(0))
	b.step(3)
	b.set("upgraded", 1)
	b.step(7)
	b.want(gpu(0), metering.Nanos{Allocated: 3e9, Active: 3e9, Down: 7e9})
	if r := b.last[gpu(0)]; r.Health != metering.Failed || !strings.Contains(r.Detail, "restart") {
		b.Errorf("reading %s", r.Encode())
	}
	if _, err := b.source.Devices(b.Context()); !errors.Is(err, nvml.ErrRestart) {
		b.Errorf("listing: %v", err)
	}
}

// xidOfLost: the error that says why the GPU fell off the bus is in the evidence although nothing else can be read.
func xidOfLost(b *bench) {
	b.lease(gpu(0), gpu(1))
	b.step(3)
	b.xid(0, 79)
	b.set("lost", 1)
	b.step(7)
	b.want(gpu(0), metering.Nanos{Allocated: 3e9, Active: 3e9, Down: 7e9})
	b.want(gpu(1), metering.Nanos{Allocated: 10e9, Active: 10e9})
	if x := b.meter.Cut().Devices[0].XIDs; len(x) != 1 || x[0].Code != 79 {
		b.Errorf("XIDs %v", x)
	}
}

// earlierErrors: however many there were between two leases, none is the next renter's.
func earlierErrors(b *bench) {
	b.lease(gpu(0))
	b.step(3)
	for range 50 {
		b.xid(0, 13)
	}
	b.xid(0, 31)
	for range 60 {
		b.xid(0, 13)
	}
	b.lease(gpu(0))
	b.step(3)
	if e := b.meter.Cut().Devices[0]; len(e.XIDs) != 0 || e.MoreXIDs != 0 {
		b.Errorf("XIDs %v", e.XIDs)
	}
	b.want(gpu(0), metering.Nanos{Allocated: 3e9, Active: 3e9})
}

// refusedEvents: one refusal does not silence the errors for good.
func refusedEvents(b *bench) {
	b.set("refuse", 1)
	b.lease(gpu(0))
	b.step(2)
	b.set("refuse", 0)
	b.step(1)
	b.xid(0, 43)
	b.step(7)
	b.want(gpu(0), metering.Nanos{Allocated: 10e9, Active: 10e9})
	if x := b.meter.Cut().Devices[0].XIDs; len(x) != 1 || x[0].Code != 43 {
		b.Errorf("XIDs %v", x)
	}
}

// eventsAfterLoss: a GPU that was lost delivers nothing more to the sets from before; the library plays that by a new
// handle, and the source registers anew.
func eventsAfterLoss(b *bench) {
	b.lease(gpu(0))
	b.step(2)
	b.set("lost", 1)
	b.step(2)
	b.set("deaf", 1) // sets that are registered now hear nothing more
	b.set("lost", 0)
	b.step(1)
	b.set("deaf", 0)
	b.step(1)
	b.xid(0, 43)
	b.step(2)
	if x := b.meter.Cut().Devices[0].XIDs; len(x) != 1 || x[0].Code != 43 {
		b.Errorf("XIDs %v", x)
	}
}

// storm: of many errors at once the one that ends billing is seen at once, and stays in the evidence.
func storm(b *bench) {
	b.lease(gpu(0))
	b.step(3)
	for range 70 {
		b.xid(0, 13)
	}
	b.step(1)
	for range 70 {
		b.xid(0, 31)
	}
	b.xid(0, 95)
	b.step(1)
	b.want(gpu(0), metering.Nanos{Allocated: 4e9, Active: 4e9, Down: 1e9})
	e := b.meter.Cut().Devices[0]
	if !slices.ContainsFunc(e.XIDs, func(x metering.XID) bool { return x.Code == 95 }) {
		b.Errorf("XIDs %v and %d more", e.XIDs, e.MoreXIDs)
	}
}

// recovery: a GPU that asks for a reset is down from then until it does not, and a healthy pair; the GPU beside it is not.
func recovery(b *bench) {
	for action := uint64(1); action <= 7; action++ {
		b.set("acting", 0)
		b.set("action", action)
		b.lease(gpu(0), gpu(1))
		b.step(2)
		b.xid(0, 95)
		b.set("acting", 1)
		b.step(5)
		if r := b.last[gpu(0)]; r.Health != metering.Reset {
			b.Errorf("action %d: reading %s", action, r.Encode())
		}
		if devices, err := b.source.Devices(b.Context()); err != nil || len(devices) != 1 || devices[0].UUID != gpu(1) {
			b.Errorf("action %d: listed %v, %v", action, devices, err)
		}
		b.set("acting", 0)
		b.step(3)
		b.want(gpu(0), metering.Nanos{Allocated: 4e9, Active: 4e9, Down: 6e9})
		b.want(gpu(1), metering.Nanos{Allocated: 10e9, Active: 10e9})
	}
}

// migSwitchedOn: a GPU that was rented whole is not billed while it is cut into slices.
func migSwitchedOn(b *bench) {
	b.lease(gpu(0), gpu(1))
	b.step(4)
	b.set("mig", 1)
	b.step(6)
	b.want(gpu(0), metering.Nanos{Allocated: 4e9, Active: 4e9, Down: 6e9})
	b.want(gpu(1), metering.Nanos{Allocated: 10e9, Active: 10e9})
}
