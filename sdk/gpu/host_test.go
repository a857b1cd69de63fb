package gpu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

func hostGPUs(t *testing.T, n int) *HostAllocator {
	t.Helper()
	h, err := NewHostAllocator(t.Context(), testclock.GPUs(n))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// ailing is a source that lists all of its GPUs but those that are away, or fails.
type ailing struct {
	metering.Source
	mu     sync.Mutex
	away   []string
	broken error
}

func (a *ailing) set(broken error, away ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broken, a.away = broken, away
}

func (a *ailing) Devices(ctx context.Context) ([]metering.Device, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return nil, a.broken
	}
	all, err := a.Source.Devices(ctx)
	return slices.DeleteFunc(all, func(d metering.Device) bool { return slices.Contains(a.away, d.UUID) }), err
}

func TestHostAllocatorHandsEachDeviceToOneLease(t *testing.T) {
	h := hostGPUs(t, 8)
	var wg sync.WaitGroup
	var mu sync.Mutex
	holder := map[string]byte{}
	refused := 0
	for i := range byte(20) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			a, err := h.Allocate(context.Background(), Request{LeaseID: common.Hash{i + 1}, GPUs: 2})
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, ErrNoCapacity) {
				refused++
				return
			}
			for _, d := range a.Devices {
				if other, taken := holder[d]; taken {
					t.Errorf("%s is in leases %d and %d", d, other, i+1)
				}
				holder[d] = i + 1
			}
		}()
	}
	wg.Wait()
	if len(holder) != 8 || refused != 16 || h.Free() != 0 {
		t.Errorf("%d devices out, %d refused, %d free", len(holder), refused, h.Free())
	}
}

// script is a command that logs its environment, prints out and exits.
func script(t *testing.T, body string) (command []string, calls func() string) {
	t.Helper()
	dir := t.TempDir()
	path, log := filepath.Join(dir, "hook.sh"), filepath.Join(dir, "calls")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho \"$1 $NVIDIA_VISIBLE_DEVICES $GPUPAY_LEASE\" >> "+log+"\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{path}, func() string {
		raw, _ := os.ReadFile(log)
		return string(raw)
	}
}

func TestHostAllocatorRunsTheProvidersCommands(t *testing.T) {
	h := hostGPUs(t, 2)
	command, calls := script(t, `[ "$1" != allocate ] || echo '{"ssh":"host:22"}'`)
	h.AllocateCommand, h.SuspendCommand = append(command, "allocate"), append(command, "suspend")
	h.ResumeCommand, h.ReleaseCommand = append(command[:1:1], "resume"), append(command[:1:1], "release")
	id := common.Hash{7}
	a, err := h.Allocate(t.Context(), Request{LeaseID: id, GPUs: 2})
	if err != nil || string(a.Access) != `{"ssh":"host:22"}` {
		t.Fatalf("%+v %v", a, err)
	}
	if err := errors.Join(h.Suspend(t.Context(), a), h.Resume(t.Context(), a), h.Release(t.Context(), a), h.Release(t.Context(), a)); err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, verb := range []string{"allocate", "suspend", "resume", "release"} {
		want += verb + " SIM-GPU-0,SIM-GPU-1 " + id.Hex() + "\n"
	}
	if got := calls(); !strings.HasPrefix(got, want) {
		t.Errorf("commands saw\n%s\nwant\n%s", got, want)
	}
	if h.Free() != 2 {
		t.Errorf("%d free after the release", h.Free())
	}
}

func TestHostAllocatorTakesTextAsAJSONString(t *testing.T) {
	for out, want := range map[string]string{"ssh root@host": `"ssh root@host"`, "": `{"devices":["d"]}`, " 5 ": "5", "a\"b\n": `"a\"b"`} {
		if got := accessDocument([]byte(out), []string{"d"}); string(got) != want || !json.Valid(got) {
			t.Errorf("%q became %s, want %s", out, got, want)
		}
	}
}

// A command that fails half-way leaves nothing in a stranger's hands, and its
// devices free again; a release that fails keeps them out of the next renter's.
func TestHostAllocatorWhenCommandsFail(t *testing.T) {
	h := hostGPUs(t, 1)
	fails, _ := script(t, "echo no disk left >&2; exit 3")
	works, calls := script(t, "")
	h.AllocateCommand, h.ReleaseCommand = fails, append(works, "release")
	_, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{1}, GPUs: 1})
	if err == nil || !strings.Contains(err.Error(), "no disk left") {
		t.Errorf("a failed allocation: %v", err)
	}
	if h.Free() != 1 || !strings.HasPrefix(calls(), "release SIM-GPU-0 ") {
		t.Errorf("%d free; release saw %q", h.Free(), calls())
	}
	h.AllocateCommand, h.ReleaseCommand = nil, fails
	a, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{2}, GPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Release(t.Context(), a); err == nil {
		t.Error("a failed release is no error")
	}
	if _, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{3}, GPUs: 1}); !errors.Is(err, ErrNoCapacity) {
		t.Errorf("a device that may still be in use was handed out: %v", err)
	}
	h.ReleaseCommand = nil
	if err := h.Release(t.Context(), Allocation{LeaseID: a.LeaseID}); err != nil || h.Free() != 1 {
		t.Errorf("released by lease alone: %v, %d free", err, h.Free())
	}
}

func TestHostAllocatorAdoptsOnlyWhatIsHereAndFree(t *testing.T) {
	h := hostGPUs(t, 2)
	h.Inventory().Share(new(inventory.Memory))
	a := Allocation{LeaseID: common.Hash{1}, Devices: []string{"SIM-GPU-0"}}
	if err := errors.Join(h.Adopt(t.Context(), a), h.Adopt(t.Context(), a)); err != nil || h.Free() != 1 {
		t.Fatalf("%v, %d free", err, h.Free())
	}
	for name, bad := range map[string]Allocation{
		"taken": {LeaseID: common.Hash{2}, Devices: []string{"SIM-GPU-1", "SIM-GPU-0"}},
		"gone":  {LeaseID: common.Hash{2}, Devices: []string{"SIM-GPU-9"}},
	} {
		if err := h.Adopt(t.Context(), bad); err == nil || h.Free() != 1 {
			t.Errorf("%s: %v, %d free", name, err, h.Free())
		}
	}
	h.Inventory().Remember([]string{"SIM-GPU-9"})
	if err := h.Adopt(t.Context(), Allocation{LeaseID: common.Hash{2}, Devices: []string{"SIM-GPU-9"}}); err != nil {
		t.Errorf("one that is away: %v", err)
	}
}

// TestCommandsSeeNoSecret: an allocator's command has what it needs in its environment, what the operator named, and
// nothing else of ours.
func TestCommandsSeeNoSecret(t *testing.T) {
	for name, value := range map[string]string{"GPUPAY_KEY": "secret", "GPUPAY_NODE_SECRET": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "ANY_OTHER": "secret",
		"NAMED": "named", "CUDA_HOME": "/cuda", "LC_ALL": "C"} {
		t.Setenv(name, value)
	}
	h := hostGPUs(t, 1)
	h.AllocateCommand, h.Environment = []string{"env"}, []string{"NAMED"}
	a, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{1}, GPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	var seen string
	if err := json.Unmarshal(a.Access, &seen); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(seen, "secret") {
		t.Errorf("the command sees a secret:\n%s", seen)
	}
	for _, want := range []string{"PATH=", "NAMED=named", "CUDA_HOME=/cuda", "LC_ALL=C", "NVIDIA_VISIBLE_DEVICES=", "GPUPAY_LEASE=", "GPUPAY_PAYER="} {
		if !strings.Contains(seen, want) {
			t.Errorf("the command does not see %s", want)
		}
	}
}

// TestSickGPUIsNotHandedOut: of two GPUs the first is lost: the second is let, and
// the first when it is back.
func TestSickGPUIsNotHandedOut(t *testing.T) {
	host := &ailing{Source: testclock.GPUs(2)}
	h, err := NewHostAllocator(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	host.set(nil, sim.UUID(0))
	if _, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{1}, GPUs: 2}); !errors.Is(err, ErrNoCapacity) {
		t.Errorf("both: %v", err)
	}
	if n := h.Free(); n != 1 {
		t.Errorf("%d are free", n)
	}
	a, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{2}, GPUs: 1})
	if err != nil || a.Devices[0] != sim.UUID(1) {
		t.Fatal(a, err)
	}
	if _, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{3}, GPUs: 1}); !errors.Is(err, ErrNoCapacity) || h.Free() != 0 {
		t.Errorf("%v, %d are free", err, h.Free())
	}
	host.set(errors.New("driver and library differ"))
	h.sick.Expire()
	if _, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{4}, GPUs: 1}); !errors.Is(err, ErrNoCapacity) {
		t.Errorf("without a listing: %v", err)
	}
	host.set(nil)
	h.sick.Expire()
	if a, err = h.Allocate(t.Context(), Request{LeaseID: common.Hash{5}, GPUs: 1}); err != nil || a.Devices[0] != sim.UUID(0) {
		t.Errorf("when it is back: %v %v", a, err)
	}
}

// TestAliveCommand: a command's status says whether a lease lives; one that cannot
// be run, or does not end, says nothing.
func TestAliveCommand(t *testing.T) {
	hang, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for name, c := range map[string]struct {
		ctx     context.Context
		command []string
		fails   bool
		dead    bool
	}{
		"none":            {t.Context(), nil, false, false},
		"alive":           {t.Context(), []string{"true"}, false, false},
		"dead":            {t.Context(), []string{"false"}, true, true},
		"not to be found": {t.Context(), []string{"/nowhere"}, true, false},
		"hangs":           {hang, []string{"sleep", "60"}, true, false},
	} {
		h := &HostAllocator{AliveCommand: c.command}
		err := h.Alive(c.ctx, Allocation{LeaseID: common.Hash{1}, Devices: []string{"GPU-a"}})
		if (err != nil) != c.fails || errors.Is(err, ErrDead) != c.dead {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCommandEndsWithItsTime: also where a child of it keeps its output open.
func TestCommandEndsWithItsTime(t *testing.T) {
	command, _ := script(t, "sleep 20 & sleep 20")
	h := hostGPUs(t, 1)
	h.SuspendCommand = append(command, "suspend")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := h.Suspend(ctx, Allocation{Devices: h.Devices}); err == nil || time.Since(began) > 15*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	command, _ = script(t, "sleep 20 & exit 0")
	h.SuspendCommand = append(command, "suspend")
	began = time.Now()
	if err := h.Suspend(t.Context(), Allocation{Devices: h.Devices}); err != nil || time.Since(began) > 15*time.Second {
		t.Errorf("a command that left something behind, after %s: %v", time.Since(began), err)
	}
}

// TestCommandThatTalks: of what a command writes without need little is kept, however much it is, and it does its work; only an
// access document must not be cut short.
func TestCommandThatTalks(t *testing.T) {
	const talk = 32 << 20
	allocated := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.TotalAlloc
	}
	for name, c := range map[string]struct {
		body  string
		fails bool
	}{
		"to stdout":              {"head -c %d /dev/zero", false},
		"to stderr":              {"head -c %d /dev/zero >&2", false},
		"and fails":              {"head -c %d /dev/zero >&2; exit 3", true},
		"in what it left behind": {"head -c %d /dev/zero & exit 0", false},
	} {
		h := hostGPUs(t, 1)
		command, _ := script(t, fmt.Sprintf(c.body, talk))
		h.SuspendCommand = append(command, "suspend")
		before := allocated()
		err := h.Suspend(t.Context(), Allocation{Devices: h.Devices})
		if took := allocated() - before; took > talk/8 {
			t.Errorf("%s: %d MiB were allocated", name, took>>20)
		}
		if (err != nil) != c.fails || err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: %.2000v", name, err)
		}
	}
	h := hostGPUs(t, 1)
	command, calls := script(t, `[ "$1" != allocate ] || head -c 70000 /dev/zero`)
	h.AllocateCommand, h.ReleaseCommand = append(command, "allocate"), append(command[:1:1], "release")
	if _, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{1}, GPUs: 1}); err == nil || !strings.Contains(err.Error(), "access document") {
		t.Errorf("an access document that is cut short: %v", err)
	}
	if h.Free() != 1 || !strings.Contains(calls(), "release") {
		t.Errorf("%d free after\n%s", h.Free(), calls())
	}
}

// TestUndoingTakesNoLongerThanDoing: the release of what a failed allocation left behind hangs, also where the allocation used up
// its time.
func TestUndoingTakesNoLongerThanDoing(t *testing.T) {
	for _, allocate := range []string{"exit 1", "exec sleep 300"} {
		h := hostGPUs(t, 1)
		command, calls := script(t, `case "$1" in allocate) `+allocate+`;; release) exec sleep 300;; esac`)
		h.AllocateCommand, h.ReleaseCommand = append(command, "allocate"), append(command[:1:1], "release")
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		began := time.Now()
		_, err := h.Allocate(ctx, Request{LeaseID: common.Hash{1}, GPUs: 1})
		cancel()
		if err == nil || time.Since(began) > time.Minute {
			t.Errorf("%s: %v after %s", allocate, err, time.Since(began))
		}
		if h.Free() != 0 || !strings.Contains(calls(), "release") {
			t.Errorf("%s: %d free after\n%s", allocate, h.Free(), calls())
		}
	}
}

// other is a source that lists a device of another kind last.
type other struct {
	metering.Source
	on atomic.Bool
}

func (o *other) Devices(ctx context.Context) ([]metering.Device, error) {
	all, err := o.Source.Devices(ctx)
	if last := &all[len(all)-1]; o.on.Load() {
		last.UUID, last.Name = "GPU-other", "Cheap GPU"
	}
	return all, err
}

// TestGPUThatComesLater: a GPU that was lost at the start is let when it is back. One of another kind never is, and where the operator
// named the devices, no other one.
func TestGPUThatComesLater(t *testing.T) {
	host := &ailing{Source: testclock.GPUs(3)}
	strange := &other{Source: host}
	host.set(nil, sim.UUID(1))
	h, err := NewHostAllocator(t.Context(), strange)
	if err != nil || h.Free() != 2 {
		t.Fatal(h.Free(), err)
	}
	h.sick.Expire()
	host.set(nil)
	strange.on.Store(true)
	if _, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{1}, GPUs: 3}); !errors.Is(err, ErrNoCapacity) {
		t.Errorf("with one of another kind: %v", err)
	}
	a, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{2}, GPUs: 2})
	if err != nil || !slices.Equal(a.Devices, []string{sim.UUID(0), sim.UUID(1)}) || h.Free() != 0 {
		t.Errorf("with the one that is back: %v %v, %d free", a.Devices, err, h.Free())
	}
	named := &HostAllocator{Devices: []string{sim.UUID(0)}, Source: testclock.GPUs(3)}
	if n := named.Free(); n != 1 {
		t.Errorf("of one that is named %d are free", n)
	}
}

// TestAdoptedDevicesAreNotLet: a lease of an earlier run goes on on devices that the operator rents out no more, and no other begins on them.
func TestAdoptedDevicesAreNotLet(t *testing.T) {
	h := &HostAllocator{Devices: []string{"GPU-0"}}
	a := Allocation{LeaseID: common.Hash{1}, Devices: []string{"GPU-1"}}
	if err := h.Adopt(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if free := h.Free(); free != 1 {
		t.Errorf("%d are free", free)
	}
	if err := h.Release(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if b, err := h.Allocate(t.Context(), Request{LeaseID: common.Hash{2}, GPUs: 2}); !errors.Is(err, ErrNoCapacity) || h.Free() != 1 {
		t.Errorf("the next lease has %v (%v), %d are free", b.Devices, err, h.Free())
	}
}
