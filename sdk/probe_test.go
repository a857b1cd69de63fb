package sdk

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	leasing "github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// undertaker is an allocator whose allocations die, by their first device.
type undertaker struct {
	*gpu.HostAllocator
	mu    sync.Mutex
	says  map[string]error
	calls []string
}

func (m *undertaker) say(device string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.says[device] = err
}

func (m *undertaker) Alive(_ context.Context, a gpu.Allocation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.says[a.Devices[0]]
}

func (m *undertaker) note(what string, a gpu.Allocation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, what+" "+a.Devices[0])
	if what == "suspend" && m.says[a.Devices[0]] != nil {
		return errors.New("there is nothing to suspend")
	}
	return nil
}

func (m *undertaker) Suspend(_ context.Context, a gpu.Allocation) error { return m.note("suspend", a) }
func (m *undertaker) Resume(_ context.Context, a gpu.Allocation) error  { return m.note("resume", a) }

// TestDeadLeaseIsNotBilled: of two leases of a GPU each one dies after three seconds
// and lives again after six. It is suspended and not billed meanwhile, says so, and
// goes on by itself; the other is billed all the while.
func TestDeadLeaseIsNotBilled(t *testing.T) {
	allocator := &undertaker{HostAllocator: hostGPUs(t, 2), says: make(map[string]error)}
	w := newWard(t, func(c *ProviderConfig) { c.Allocator, c.AliveEvery = allocator, 10*time.Millisecond })
	first := w.open(1, 500_000, "")
	w.payer = w.fund(t, 1_000_000)
	second := w.open(2, 500_000, "")
	if first.lease.Devices[0] != sim.UUID(0) || second.lease.Devices[0] != sim.UUID(1) {
		t.Fatal(first.lease.Devices, second.lease.Devices)
	}
	waitFor(t, func() bool { return w.host.wasRead(sim.UUID(0)) && w.host.wasRead(sim.UUID(1)) })
	w.step(3)
	allocator.say(sim.UUID(0), gpu.ErrDead)
	if s := first.status(leasestore.Suspended); s.Reason != leasing.ReasonDead {
		t.Fatalf("suspended because %q", s.Reason)
	}
	if v := w.provider.running(first.terms.ID()).Status.Look(); v.Need != 0 {
		t.Error("a voucher is asked for")
	}
	w.step(3)
	allocator.say(sim.UUID(0), nil)
	w.in(first, leasestore.Active)
	allocator.say(sim.UUID(1), errors.New("the container engine does not answer")) // nobody knows: it is billed
	w.step(4)                                                                      // the first interval after the pause belongs to it
	first.release()
	second.release()
	if n := w.times(first)[sim.UUID(0)]; n != (metering.Nanos{Allocated: 6e9, Active: 6e9, Paused: 4e9}) {
		t.Errorf("the one that died: %+v", n)
	}
	if n := w.times(second)[sim.UUID(1)]; n != busy(10e9) {
		t.Errorf("the one beside it: %+v", n)
	}
}

// deaf is an undertaker whose daemon is away: it says that a container is dead, and suspends nothing.
type deaf struct {
	*undertaker
	away         atomic.Bool
	tried, stood atomic.Int64
}

func (d *deaf) Suspend(context.Context, gpu.Allocation) error {
	d.tried.Add(1)
	if d.away.Load() {
		return errors.New("cannot connect to the daemon")
	}
	d.stood.Add(1)
	return nil
}

// TestDeadLeaseIsSuspendedUntilItStands: a lease that is said to be dead, and may not be, is suspended again and again until the
// command has succeeded, over a restart too.
func TestDeadLeaseIsSuspendedUntilItStands(t *testing.T) {
	allocator := &deaf{undertaker: &undertaker{HostAllocator: hostGPUs(t, 2), says: map[string]error{sim.UUID(0): gpu.ErrDead}}}
	allocator.away.Store(true)
	w := newWard(t, func(c *ProviderConfig) { c.Allocator, c.AliveEvery = allocator, 10*time.Millisecond })
	lease := w.open(1, 500_000, "")
	w.in(lease, leasestore.Suspended)
	tried := allocator.tried.Load()
	waitFor(t, func() bool { return allocator.tried.Load() > tried })
	w.restart()
	tried = allocator.tried.Load()
	waitFor(t, func() bool { return allocator.tried.Load() > tried })
	allocator.away.Store(false)
	waitFor(t, func() bool { return allocator.stood.Load() == 1 })
	if s := lease.status(leasestore.Suspended); s.Reason != leasing.ReasonDead {
		t.Errorf("suspended because %q", s.Reason)
	}
	time.Sleep(3 * hastened)
	if n := allocator.stood.Load(); n != 1 {
		t.Errorf("suspended %d times", n)
	}
}

// hastened is how long a lease's own goroutine has to suspend it in a ward.
const hastened = time.Second

// TestDeadLeaseEnds: its GPUs are free again after SuspendTimeout.
func TestDeadLeaseEnds(t *testing.T) {
	allocator := &undertaker{HostAllocator: hostGPUs(t, 2), says: map[string]error{sim.UUID(0): gpu.ErrDead}}
	w := newWard(t, func(c *ProviderConfig) {
		c.Allocator, c.AliveEvery, c.SuspendTimeout = allocator, 10*time.Millisecond, 200*time.Millisecond
	})
	lease := w.open(1, 500_000, "")
	if s := lease.status(leasestore.Ended); !strings.HasPrefix(s.Reason, leasing.ReasonDead+" for") {
		t.Errorf("ended because %q", s.Reason)
	}
	if free := allocator.Free(); free != 2 {
		t.Errorf("%d GPUs are free", free)
	}
}
