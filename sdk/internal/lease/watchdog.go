package lease

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// probes is how many allocations of a provider are asked at once whether they are
// alive.
const probes = 16

// probe is what the allocator said last of whether a lease is alive.
type probe struct {
	dead    atomic.Bool
	unknown bool // it could not say, which was logged; for who asks
	next    atomic.Pointer[time.Timer]
}

// stop lets go of a lease that has ended: the timer would keep it in memory.
func (p *probe) stop() {
	if next := p.next.Load(); next != nil {
		next.Stop()
	}
}

// probe asks the allocator again and again whether what it allocated is alive,
// until the lease ends. It does not wait for the lease's goroutine, nor that for it:
// a command that hangs holds up no suspension.
func (l *Lease) probe() {
	if l.Deps.Liveness == nil || l.Read != nil { // what lasts for one request was given to nobody
		return
	}
	l.liveness.next.Store(time.AfterFunc(l.Deps.Timing.AliveEvery, func() {
		select {
		case <-l.Done: // what it was allocated is another's
			return
		default:
		}
		select {
		case l.Deps.probing <- struct{}{}:
		case <-l.Done:
			return
		case <-l.life.Done():
			return
		}
		ctx, cancel := context.WithTimeout(l.life, l.Deps.Timing.CallTimeout)
		err := l.Deps.Liveness(ctx, l.Allocation)
		cancel()
		<-l.Deps.probing
		l.felt(err)
		l.probe()
	}))
}

// felt takes what the allocator says. The bill stops at once, not when the lease's
// goroutine has time.
func (l *Lease) felt(err error) {
	switch {
	case err == nil:
		l.liveness.unknown = false
		if l.liveness.dead.Swap(false) {
			l.Wake()
		}
	case errors.Is(err, gpu.ErrDead):
		if !l.liveness.dead.Swap(true) {
			l.Meter.Pause()
			l.Deps.Log.Warn("lease is not alive: it is suspended and not billed", "lease", l.ID, "error", err)
			l.Wake()
		}
	case !l.liveness.unknown && l.life.Err() == nil:
		l.liveness.unknown = true
		l.Deps.Log.Warn("nobody knows whether a lease is alive", "lease", l.ID, "error", err)
	}
}

// watchdog notices that no device of a lease is read healthy any more: what is
// used from then on is billed by nobody. One that works is enough, since each is
// billed by itself. The zero value does not starve.
type watchdog struct {
	limit time.Duration // of it without a healthy reading a lease starves: MaxGap
	sick  atomic.Int64  // monotonic time of the first bad reading since the last good one; 0: there is none
	hurts atomic.Bool   // it starves
	fed   atomic.Bool   // a device was read healthy once
}

// saw takes one reading of a device, and reports whether the lease starves since,
// or no longer does. A call that hangs was given up after limit.
func (w *watchdog) saw(r metering.Reading, clock metering.Clock) bool {
	if r.Health == metering.Healthy && r.Seen == r.Device {
		w.fed.Store(true)
		w.sick.Store(0)
		return w.hurts.Swap(false)
	}
	now := max(clock.Now().Mono, 1)
	since := now
	if r.Health == metering.Stalled {
		since = max(now-int64(w.limit), 1)
	}
	w.sick.CompareAndSwap(0, since)
	if first := w.sick.Load(); first == 0 || now-first < int64(w.limit) {
		return false
	}
	return !w.starve()
}

// starve has it starve from now on, until a device is read healthy. It reports
// whether it did before.
func (w *watchdog) starve() bool { return w.hurts.Swap(true) }

func (w *watchdog) starved() bool { return w.hurts.Load() }

// Quarantines hear which devices cannot be read: the one that is shown to the operator, and that of an allocator which has one.
func (h *Manager) Quarantines(a gpu.Allocator) []*inventory.Quarantine {
	all := []*inventory.Quarantine{&h.Sick}
	if host, ok := a.(inventory.Keeper); ok {
		all = append(all, host.Inventory().Quarantine())
	}
	return all
}

// watch has a device that is not read healthy for the watchdog's limit kept out of new leases, for as long as that lasts and a while
// after: the next renter would be suspended as this one is, while another GPU is idle.
func (l *Lease) watch(r metering.Reading) {
	i := slices.Index(l.Allocation.Devices, r.Device)
	if i < 0 || i >= len(l.each) {
		return
	}
	w := &l.each[i]
	fed := w.fed.Load()
	healed := w.saw(r, l.Deps.Clock) || !fed && w.fed.Load()
	for _, q := range l.Deps.Sick {
		switch {
		case w.starved():
			q.Fails(r.Device)
		case healed:
			q.Heals(r.Device)
		}
	}
}

// Unmetered counts the leases that nobody can meter now.
func Unmetered(leases []*Lease) int {
	n := 0
	for _, l := range leases {
		if l.watchdog.starved() {
			n++
		}
	}
	return n
}
