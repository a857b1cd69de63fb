package provider

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
	"github.com/gpupay/gpupay/sdk/wire"
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
	w := newWard(t, func(c *Config) { c.Allocator, c.Commands.AliveEvery = allocator, 10*time.Millisecond })
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
	if v := w.provider.leases.Running(first.terms.ID()).Status.Look(); v.Need != 0 {
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
	w := newWard(t, func(c *Config) { c.Allocator, c.Commands.AliveEvery = allocator, 10*time.Millisecond })
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
	w := newWard(t, func(c *Config) {
		c.Allocator, c.Commands.AliveEvery, c.Terms.SuspendTimeout = allocator, 10*time.Millisecond, 200*time.Millisecond
	})
	lease := w.open(1, 500_000, "")
	if s := lease.status(leasestore.Ended); !strings.HasPrefix(s.Reason, leasing.ReasonDead+" for") {
		t.Errorf("ended because %q", s.Reason)
	}
	if free := allocator.Free(); free != 2 {
		t.Errorf("%d GPUs are free", free)
	}
}

// TestDeadLeaseThatCannotBeMetered: a lease that is paid, whose container died and whose GPU cannot be read besides, is suspended and goes
// on when both are back, though the command that suspends it fails: in whatever order they fail, and over a restart.
func TestDeadLeaseThatCannotBeMetered(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]struct {
		restarts bool
		asked    time.Duration // whether it is alive
	}{
		"dead first":            {false, 10 * time.Millisecond},
		"known to nobody":       {false, time.Hour},
		"restarted meanwhile":   {true, 10 * time.Millisecond},
		"restarted, not looked": {true, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			allocator := &undertaker{HostAllocator: hostGPUs(t, 2), says: make(map[string]error)}
			w := newWard(t, quiet, func(c *Config) { c.Allocator, c.Commands.AliveEvery = allocator, f.asked })
			lease := w.open(1, 500_000, "")
			waitFor(t, func() bool { return w.host.wasRead(sim.UUID(0)) })
			w.step(3)
			because := func(reason string) {
				waitFor(t, func() bool { row := lease.row(); return row.State == wire.StateSuspended && row.Reason == reason })
			}
			allocator.say(sim.UUID(0), gpu.ErrDead)
			if f.asked < time.Hour {
				because(leasing.ReasonDead)
			}
			if f.restarts && f.asked < time.Hour {
				w.restart()
			}
			w.host.fail(sim.UUID(0))
			w.step(5)
			because(leasing.ReasonUnmetered)
			if f.restarts && f.asked == time.Hour {
				w.restart()
				w.step(1)
			}
			w.host.fail()
			allocator.say(sim.UUID(0), nil)
			w.step(3)
			w.in(lease, leasestore.Active)
		})
	}
}

// stilled is an undertaker whose commands succeed on what is dead.
type stilled struct{ *undertaker }

func (s stilled) Suspend(context.Context, gpu.Allocation) error { return nil }

// TestSuspensionWhoseReasonChangesEnds: the time of a lease that is dead and cannot be metered by turns counts from when it was suspended,
// on disk too.
func TestSuspensionWhoseReasonChangesEnds(t *testing.T) {
	const timeout = 4 * time.Second
	allocator := stilled{&undertaker{HostAllocator: hostGPUs(t, 2), says: make(map[string]error)}}
	w := newWard(t, quiet, func(c *Config) {
		c.Allocator, c.Commands.AliveEvery, c.Terms.SuspendTimeout = allocator, 10*time.Millisecond, timeout
	})
	lease := w.open(1, 500_000, "")
	waitFor(t, func() bool { return w.host.wasRead(sim.UUID(0)) })
	allocator.say(sim.UUID(0), gpu.ErrDead)
	waitFor(t, func() bool { return lease.row().Reason == leasing.ReasonDead })
	first, began, changes := lease.row(), time.Now(), 0
	changed := began
	for row := first; row.State == wire.StateSuspended; row = lease.row() {
		if row.Suspended != first.Suspended || time.Since(began) > 10*timeout {
			t.Fatalf("%s after it was suspended its row says since %d, and said %d", time.Since(began), row.Suspended, first.Suspended)
		}
		if w.host.fail(); row.Reason == leasing.ReasonDead {
			w.host.fail(sim.UUID(0))
		}
		for range 30 {
			w.clock.Advance(time.Second)
			time.Sleep(5 * time.Millisecond)
			if now := lease.row(); now.Reason != row.Reason || now.State != row.State {
				if changes++; now.State == row.State {
					changed = time.Now()
				}
				break
			}
		}
	}
	if took := time.Since(changed); took >= timeout { // it was counted anew
		t.Errorf("it ended %s after its reason changed", took)
	}
	if s := lease.status(leasestore.Ended); !strings.HasSuffix(s.Reason, " for "+timeout.String()) || changes < 3 {
		t.Errorf("it ended after %d changes because %q", changes, s.Reason)
	}
}
