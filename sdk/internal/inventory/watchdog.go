package inventory

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// Watchdog notices that no device of a lease is read healthy any more: what is
// used from then on is billed by nobody. One that works is enough, since each is
// billed by itself. The zero value has not expired.
type Watchdog struct {
	Limit   time.Duration // of it without a healthy reading the watchdog expires: MaxGap
	sick    atomic.Int64  // monotonic time of the first bad reading since the last good one; 0: there is none
	expired atomic.Bool
	healthy atomic.Bool // a device was read healthy once
}

// Saw takes one reading of a device, and reports whether the watchdog has expired with it,
// or is expired no longer. A call that hangs was given up after Limit.
func (w *Watchdog) Saw(r metering.Reading, clock metering.Clock) bool {
	if r.Health == metering.Healthy && r.Seen == r.Device {
		w.healthy.Store(true)
		w.sick.Store(0)
		return w.expired.Swap(false)
	}
	now := max(clock.Now().Mono, 1)
	since := now
	if r.Health == metering.Stalled {
		since = max(now-int64(w.Limit), 1)
	}
	w.sick.CompareAndSwap(0, since)
	if first := w.sick.Load(); first == 0 || now-first < int64(w.Limit) {
		return false
	}
	return !w.Expire()
}

// Expire has it expired from now on, until a device is read healthy. It reports
// whether it was before.
func (w *Watchdog) Expire() bool { return w.expired.Swap(true) }

// Expired reports whether nothing can be metered now.
func (w *Watchdog) Expired() bool { return w.expired.Load() }

// Healthy reports whether a device was read healthy once.
func (w *Watchdog) Healthy() bool { return w.healthy.Load() }

// Watch has a watchdog for each device of a lease, and a device whose watchdog has expired kept out of new leases, for as long as that
// lasts and a while after: the next renter would be suspended as this one is, while another GPU is idle. The zero value has no device.
type Watch struct {
	devices []string
	each    []Watchdog
	sick    []*Quarantine
}

// NewWatch is of some devices, with the limit of a Watchdog, and tells these quarantines.
func NewWatch(devices []string, limit time.Duration, sick []*Quarantine) Watch {
	w := Watch{devices, make([]Watchdog, len(devices)), sick}
	for i := range w.each {
		w.each[i].Limit = limit
	}
	return w
}

// Saw takes one reading of a device.
func (w *Watch) Saw(r metering.Reading, clock metering.Clock) {
	i := slices.Index(w.devices, r.Device)
	if i < 0 {
		return
	}
	of := &w.each[i]
	before := of.Healthy()
	healed := of.Saw(r, clock) || !before && of.Healthy()
	for _, q := range w.sick {
		switch {
		case of.Expired():
			q.Fails(r.Device)
		case healed:
			q.Heals(r.Device)
		}
	}
}
