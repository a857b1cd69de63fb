package inventory

import (
	"slices"
	"sync"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
)

// Watchdog notices that no device of a lease is metered any more: what is used from then on is billed by nobody. It goes by what the
// meter made of each reading, since readings can all be healthy of which no two bill. One device that is metered is enough, since each
// is billed by itself. The zero value has not expired.
type Watchdog struct {
	Limit time.Duration // of it without two readings that bill the watchdog expires: MaxGap

	mu      sync.Mutex
	healthy bool  // a device was read healthy once
	expired bool  // nothing can be metered
	fed     int64 // monotonic time of the newest reading that billed, or would have
	starved int64 // of the first one since then that did not; 0: there is none
	well    int64 // of the first one, since it expired, from which on none was missed for Limit; 0: there is none
	back    int64 // when it was expired no longer
	lapses  uint  // how often it has expired since it was last forgiven
	covered int64 // monotonic time up to which readings that billed were heard; 0: of none since it expired
	debt    int64 // nanoseconds that none of them covers, less what was paid off: see owes

	suspended time.Duration // the lease was, since then, as it had expired
}

// bills reports whether two readings enclose an interval that bill it, or would if the lease were not paused.
func bills(in usage.Interval) bool {
	return in.Class == usage.Allocated || in.Class == usage.Paused && in.Reason == ""
}

// forgiven is how many times Limit a lease is metered before its lapses are forgotten: what is served for nothing stays a hundredth of
// what is billed.
const forgiven = 100

// Saw takes one reading of a device and what the meter made of it, and reports whether the watchdog has expired with it, or is expired
// no longer.
func (w *Watchdog) Saw(r metering.Reading, in usage.Interval, clock metering.Clock) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.healthy = w.healthy || r.Health == metering.Healthy && r.Seen == r.Device
	now := max(clock.Now().Mono, 1)
	if bills(in) {
		return w.feed(now, r.At.Mono, in.Nanos)
	}
	if w.starved == 0 {
		w.starved = now
		if r.Health == metering.Stalled { // the call was given up after Limit
			w.starved = max(now-int64(w.Limit), w.fed, 1)
		}
	}
	if now-w.starved < int64(w.Limit) {
		return false
	}
	return w.expire()
}

// repaid is how many seconds that are billed make good one that was not: a device that is well but for moments goes on.
const repaid = 4

// owes counts what was served and not billed before two readings that bill, and reports whether that is too much: more than twice Limit.
// What is billed pays it off bit by bit, so that a device that flickers is not served for next to nothing for as long as no flicker takes
// Limit. No stretch counts for more than Limit: a host may stand still once. The caller holds mu.
func (w *Watchdog) owes(end, billed int64) bool {
	if w.covered > 0 {
		missed := min(max(end-billed-w.covered, 0), int64(w.Limit))
		paid := min(billed, max(end-w.covered, 0)) // of several devices another one may have billed the same time
		w.debt = max(w.debt+missed-paid/repaid, 0)
	}
	w.covered = max(w.covered, end)
	return w.debt > 2*int64(w.Limit)
}

// feed hears of two readings that bill, the newer one of which was taken at end. The caller holds mu.
func (w *Watchdog) feed(now, end, billed int64) bool {
	w.fed, w.starved = now, 0
	switch {
	case w.owes(end, billed):
		return w.expire()
	case !w.expired:
		if w.lapses > 0 && now-w.back >= forgiven*int64(w.Limit) {
			w.lapses, w.suspended = 0, 0
		}
		return false
	case w.well == 0:
		w.well = now
	}
	if now-w.well < int64(w.probation()) {
		return false
	}
	w.expired, w.back = false, now
	return true
}

// probation is for how long an expired watchdog is fed before it is expired no longer: from the second lapse on twice as long each time.
// A device that can be metered for a moment now and then would else be served for MaxGap after each of them, and billed for none.
func (w *Watchdog) probation() time.Duration {
	if w.lapses < 2 {
		return 0
	}
	return w.Limit << min(w.lapses-2, 10)
}

func (w *Watchdog) expire() bool {
	w.well, w.covered, w.debt = 0, 0, 0
	if w.expired {
		return false
	}
	w.expired = true
	w.lapses++
	return true
}

// Expire has it expired from now on, until a device is metered. It reports
// whether it was before.
func (w *Watchdog) Expire() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.expire()
}

// Expired reports whether nothing can be metered now.
func (w *Watchdog) Expired() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.expired
}

// Resumed hears that a lease goes on that was suspended since a time, as the watchdog had expired.
func (w *Watchdog) Resumed(since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !since.IsZero() && w.lapses > 0 {
		w.suspended = time.Since(since)
	}
}

// Since is when a lease counts as suspended that is suspended since a time, as the watchdog has expired. Such times add up until they are
// forgiven: a lease that goes on for a moment now and then does not keep its GPUs for ever.
func (w *Watchdog) Since(since time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return since.Add(-w.suspended)
}

// Healthy reports whether a device was read healthy once.
func (w *Watchdog) Healthy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.healthy
}

// Watch has a watchdog for each device of a lease, and a device whose watchdog has expired kept out of new leases, for as long as that
// lasts and a while after: the next renter would be suspended as this one is, while another GPU is idle. The zero value has no device.
type Watch struct {
	devices []string
	each    []Watchdog
	billed  []bool // it billed, or would have, once
	sick    []*Quarantine
}

// NewWatch is of some devices, with the limit of a Watchdog, and tells these quarantines.
func NewWatch(devices []string, limit time.Duration, sick []*Quarantine) *Watch {
	w := &Watch{devices, make([]Watchdog, len(devices)), make([]bool, len(devices)), sick}
	for i := range w.each {
		w.each[i].Limit = limit
	}
	return w
}

// Saw takes one reading of a device, and what the meter made of it. Readings of one lease come one after another.
func (w *Watch) Saw(r metering.Reading, in usage.Interval, clock metering.Clock) {
	if w == nil {
		return
	}
	i := slices.Index(w.devices, r.Device)
	if i < 0 {
		return
	}
	of := &w.each[i]
	healed := of.Saw(r, in, clock) || bills(in) && !w.billed[i]
	w.billed[i] = w.billed[i] || bills(in)
	for _, q := range w.sick {
		switch {
		case of.Expired():
			q.Fails(r.Device)
		case healed:
			q.Heals(r.Device)
		case bills(in):
			q.outlives(r.Device)
		}
		q.serves(r.Device, in, of.Limit)
	}
}

// Rest reports whether all devices rest: see Quarantine.
func (w *Watch) Rest() bool {
	return w != nil && slices.ContainsFunc(w.sick, func(q *Quarantine) bool { return q.rest(w.devices) })
}
