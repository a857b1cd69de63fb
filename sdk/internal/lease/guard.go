package lease

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
)

// guard sees to it that no renter has devices that it must not have: also where the lease's goroutine does not get to it, or where nobody
// runs the lease any more.
type guard struct {
	*core
	balance *balance
	health  *health
	records *records

	armed    atomic.Bool // see armBackstop
	giving   atomic.Bool // a suspended lease is being resumed: its devices are not taken away for that it is suspended
	returned bool        // the devices were taken back as the lease ended, and may be the next renter's
}

// bills has the meter bill, and is false where the renter does not have the devices: see backstop.
func (g *guard) bills() bool { return g.Devices.IfGiven(g.resumeMeter) }

// CannotSuspend says once that devices could not be suspended: it is tried again until they are.
func (g *guard) CannotSuspend(err error) {
	if g.Devices.Fails() {
		g.Deps.Log.Error("the devices of a lease that must not be served could not be suspended: it is tried again until they are", "lease", g.ID, "channel", g.Terms.ID(), "devices", g.Allocation.Devices, "error", err)
	}
}

// backstopAfter is how long a lease's own goroutine has to suspend it, at least, before backstop does.
const backstopAfter = 500 * time.Millisecond

// armBackstop has the devices of a lease suspended that must not be served and whose goroutine does not get to it, as it waits for a database.
func (g *guard) armBackstop() {
	if g.life == nil || !g.Devices.Given.Load() || g.armed.Swap(true) {
		return
	}
	time.AfterFunc(max(g.Deps.Timing.Tick, backstopAfter), g.backstop)
}

// backstop suspends the devices of a lease that must not be served, and goes on trying until that is done, its goroutine has
// done it, or it may be served again. Its state may say suspended: the command failed. It waits for no database but to hear whose the lease is.
func (g *guard) backstop() {
	defer g.armed.Store(false)
	var pace chain.Backoff
	for g.mustNotServe() {
		g.records.cancelWait()
		err := g.Fence.Command(g.life, func(ctx context.Context, a gpu.Allocation) error {
			return g.Devices.SuspendIf(ctx, a, func() bool {
				must := g.mustNotServe()
				if must {
					g.Meter.Pause()
				}
				return must
			})
		})
		if err == nil || g.Fence.Lost.Load() || g.life.Err() != nil {
			break
		}
		g.CannotSuspend(err)
		if chain.Pause(g.life, pace.Next()) != nil {
			break
		}
	}
	g.Inbox.Wake()
}

// mustNotServe reports whether a renter has devices that it must not have now.
func (g *guard) mustNotServe() bool {
	select {
	case <-g.Done:
		return false
	default:
	}
	v := g.Status.Look()
	if v.State == leasestore.Suspended {
		return g.Devices.Given.Load() && !g.giving.Load()
	}
	return v.State == leasestore.Active && g.Devices.Given.Load() && g.hindrance(&v) != ""
}

// suspendRetrying suspends the devices of a lease that is run by nobody from now on, as its process stops: there are some tries, and no more time
// than for one command. Another gateway's it leaves alone.
func (g *guard) suspendRetrying(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, g.Deps.Timing.CallTimeout)
	defer cancel()
	pace := chain.Backoff{Least: 100 * time.Millisecond}
	for g.Devices.Given.Load() {
		err := g.SuspendLate(call)
		if err == nil || errors.Is(err, leasestore.ErrNotOwner) {
			return
		}
		g.CannotSuspend(err)
		if chain.Pause(call, pace.Next()) != nil {
			g.Deps.Log.Error("the process stops, and the devices of a lease that nobody meters could not be suspended: do it by hand", "lease", g.ID, "devices", g.Allocation.Devices, "error", err)
			return
		}
	}
}

// SuspendLate suspends the devices of a lease that was let go, and may be another gateway's.
func (g *guard) SuspendLate(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, g.Deps.Timing.CallTimeout)
	defer cancel()
	return g.Devices.SuspendLate(call, g.Allocation)
}

// LeaveSuspended suspends what a process that stops could not write down: no process that begins before the database is back could
// meter it, and so it has no bound. Whoever goes on with the lease resumes it first.
func (g *guard) LeaveSuspended(ctx context.Context) {
	if g.Read != nil || g.returned || g.Fence.Elsewhere.Load() || !g.Devices.Given.Load() {
		return
	}
	g.Deps.Log.Warn("the process stops, and what a lease used cannot be written: its devices are suspended until a process goes on with it", "lease", g.ID, "channel", g.Terms.ID())
	g.suspendRetrying(ctx)
}

// Why a lease is suspended. They are on disk, and shown to the renter.
const (
	reasonUnpaid    = "a voucher is due"
	ReasonUnmetered = "its GPUs cannot be metered"
	ReasonDead      = "what it was given is not alive"
)

// hindrance is why a lease must not be served now, "" if nothing hinders it. One that was suspended unpaid needs more than another: see Credit.
func (g *guard) hindrance(v *View) string {
	unpaid := g.balance.exhausted(v)
	if v.State == leasestore.Suspended && v.Reason != ReasonUnmetered && v.Reason != ReasonDead {
		unpaid = !g.Credit.mayResume(g.balance, *v)
	}
	switch {
	case unpaid:
		return reasonUnpaid
	case g.health.watchdog.Expired():
		return ReasonUnmetered
	case g.health.liveness.Dead.Load():
		return ReasonDead
	}
	return ""
}

// resumeMeter has the meter bill, unless the lease was found dead meanwhile.
func (g *guard) resumeMeter() {
	g.Meter.Resume()
	if g.health.liveness.Dead.Load() {
		g.Meter.Pause()
	}
}

// Overspent reports whether a renter has devices that nobody meters and for which its payer has no credit left, or which it was not to
// have yet.
func (g *guard) Overspent() bool {
	if !g.Devices.Given.Load() {
		return false
	}
	g.balance.account.Tally(g.balance)
	v := g.Status.Look()
	return g.HalfResumed() || g.balance.exhausted(&v)
}

// HalfResumed reports whether the command that resumed a lease was cut off: its renter may have the devices, and its state does not say so.
func (g *guard) HalfResumed() bool {
	return g.Status.State() == leasestore.Suspended && g.Devices.Given.Load()
}

// health is whether the devices of a lease can be metered, and whether what it was allocated is alive.
type health struct {
	*core
	watchdog inventory.Watchdog // of its devices
	devices  *inventory.Watch   // of each of them; nil: of none
	liveness placement.Liveness // of what was allocated
}

// watchLife has a lease that is found dead be billed no more at once, and not when its goroutine has time.
func (h *health) watchLife(died func()) {
	if h.Deps.Liveness == nil || h.Read != nil { // what lasts for one request was given to nobody
		return
	}
	h.liveness.Watch(h.life, h.Done, h.Allocation, h.Deps.asks(), func(dead bool) {
		if dead {
			h.Meter.Pause()
			defer died()
		}
		h.Inbox.Wake()
	})
}

// Unmetered counts the leases that nobody can meter now.
func Unmetered(leases []*Lease) int {
	n := 0
	for _, l := range leases {
		if l.health.watchdog.Expired() {
			n++
		}
	}
	return n
}
