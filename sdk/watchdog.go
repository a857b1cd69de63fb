package sdk

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

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

// quarantines hear which devices cannot be read: the one that is shown to the operator, and that of an allocator which has one.
func (h *lessor) quarantines(a gpu.Allocator) []*inventory.Quarantine {
	all := []*inventory.Quarantine{&h.sick}
	if host, ok := a.(inventory.Keeper); ok {
		all = append(all, host.Inventory().Quarantine())
	}
	return all
}

// watch has a device that is not read healthy for the watchdog's limit kept out of new leases, for as long as that lasts and a while
// after: the next renter would be suspended as this one is, while another GPU is idle.
func (l *lease) watch(r metering.Reading) {
	i := slices.Index(l.allocation.Devices, r.Device)
	if i < 0 || i >= len(l.each) {
		return
	}
	w := &l.each[i]
	fed := w.fed.Load()
	healed := w.saw(r, l.deps.clock) || !fed && w.fed.Load()
	for _, q := range l.deps.sick {
		switch {
		case w.starved():
			q.Fails(r.Device)
		case healed:
			q.Heals(r.Device)
		}
	}
}

// unmetered counts the leases that nobody can meter now.
func unmetered(leases []*lease) int {
	n := 0
	for _, l := range leases {
		if l.watchdog.starved() {
			n++
		}
	}
	return n
}
