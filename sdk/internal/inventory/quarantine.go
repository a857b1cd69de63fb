package inventory

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
)

// Quarantine keeps devices out of new leases that their source does not list now:
// lost, hung, or asking for a reset; and those that a lease could not meter lately, which rest. They come back by themselves. It
// looks at no device itself, and hears what a reading says from its lease. The zero value
// has looked at none. Where the source is nil, only devices that rest are in quarantine.
type Quarantine struct {
	asked singleflight.Group

	mu     sync.Mutex
	at     time.Time // of the last look; zero: there was none
	listed map[string]bool
	ever   []metering.Device // in the order in which they were listed first
	rests  map[string]rest   // of devices that could not be metered lately
	lost   map[string]int64  // nanoseconds that a device was served and nobody billed, less what was paid off: see serves
	err    error

	withheld map[string]bool // see Withhold
	until    time.Time

	now     func() time.Time // nil: the time
	stirred chan struct{}    // see Sharing
}

// SetClock has it measure rests by a clock.
func (q *Quarantine) SetClock(now func() time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.now = now
}

// time is now, on the clock by which devices rest. The caller holds mu.
func (q *Quarantine) time() time.Time {
	if q.now != nil {
		return q.now()
	}
	return time.Now()
}

// rest is for how long a device goes into no new lease: it is listed, and each lease that got it would be suspended.
type rest struct {
	until  time.Time
	span   time.Duration
	healed time.Time // since when it is metered again; zero: it is not
	others bool      // it failed at another process last, not here

	version int64     // of what the book has of it: see Sharing
	kept    time.Time // until when the book has it rest
	changed time.Time // when it was heard here what the book does not have; zero: it has it
}

// The least and the most of a device's rest: it is longer each time that the device cannot be metered again, until it is for mostRest.
const (
	leastRest = time.Minute
	mostRest  = time.Hour
)

const (
	// quarantineAge is for how long a look is as good as a new one.
	quarantineAge = time.Second
	// quarantineTimeout bounds a look.
	quarantineTimeout = 5 * time.Second
)

// Fit are those devices that work, by a look that is no older than quarantineAge;
// the error says why none does where nothing could be listed. Which devices there are is asked after the look.
func (q *Quarantine) Fit(ctx context.Context, source metering.Source, devices func() []string) ([]string, error) {
	if source == nil {
		return q.rested(devices()), nil
	}
	q.mu.Lock()
	old := time.Since(q.at) >= quarantineAge
	q.mu.Unlock()
	if old {
		select {
		case <-q.look(source):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return q.known(devices())
}

// Lately is Fit by the last look, however old: a new one is begun where it is, and
// waited for only where there was none.
func (q *Quarantine) Lately(source metering.Source, devices func() []string) []string {
	if source == nil {
		return q.rested(devices())
	}
	q.mu.Lock()
	first, old := q.at.IsZero(), time.Since(q.at) >= quarantineAge
	q.mu.Unlock()
	if old {
		if done := q.look(source); first {
			<-done
		}
	}
	fit, _ := q.known(devices())
	return fit
}

func (q *Quarantine) known(devices []string) ([]string, error) {
	fit := q.rested(devices)
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.DeleteFunc(fit, func(uuid string) bool { return !q.listed[uuid] }), q.err
}

// rested are those devices that neither rest nor are withheld.
func (q *Quarantine) rested(devices []string) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.time()
	return slices.DeleteFunc(slices.Clone(devices), func(uuid string) bool {
		return now.Before(q.rests[uuid].until) || q.withheld[uuid] && now.Before(q.until)
	})
}

// Fails hears that a lease cannot meter a device now: it rests from the last time that this is heard.
func (q *Quarantine) Fails(uuid string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.fails(uuid)
}

func (q *Quarantine) fails(uuid string) {
	r, now := q.rests[uuid], q.time()
	first := !now.Before(r.until) || !r.healed.IsZero()
	if !r.healed.IsZero() && now.Sub(r.healed) >= mostRest {
		r.span = 0
	}
	if first {
		r.span = min(max(2*r.span, leastRest), mostRest)
	}
	r.until, r.healed, r.others = now.Add(r.span), time.Time{}, false
	if first || r.until.Sub(r.kept) >= r.span/renewed {
		r.changed = now
		q.stir()
	}
	if q.rests == nil {
		q.rests = make(map[string]rest)
	}
	q.rests[uuid] = r
}

// serves hears of time in which a device was served. What nobody billed adds up over leases and requests: many that are shorter than
// limit would else each be served for nothing. What is billed pays it off bit by bit, and at once where the device has rested for it, or
// a device that flickers would be served for next to nothing. One interval alone, however long, is no more than half of limit: a host may
// stand still once.
func (q *Quarantine) serves(uuid string, in usage.Interval, limit time.Duration) {
	unbilled := in.Class == usage.Down || in.Class == usage.Gap && in.Reason != metering.ReasonRestart
	if !unbilled && in.Class != usage.Allocated {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch lost := time.Duration(q.lost[uuid]); {
	case unbilled:
		if q.lost == nil {
			q.lost = make(map[string]int64)
		}
		if q.lost[uuid] += min(in.Nanos, int64(limit/2)); time.Duration(q.lost[uuid]) >= limit {
			q.fails(uuid)
		}
	case lost >= limit:
		delete(q.lost, uuid)
		q.heals(uuid)
	case lost > 0:
		if q.lost[uuid] -= in.Nanos / repaid; q.lost[uuid] <= 0 {
			delete(q.lost, uuid)
		}
	}
}

// Withhold has these devices, and no others that were withheld before, in quarantine for a while, however well they can be read: a GPU
// that two hosts list goes into no lease of one of them.
func (q *Quarantine) Withhold(devices []string, span time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.withheld, q.until = make(map[string]bool, len(devices)), q.time().Add(span)
	for _, uuid := range devices {
		q.withheld[uuid] = true
	}
}

// Heals hears that a lease meters a device. After its first rest it is let at once; one that failed again rests to the end.
func (q *Quarantine) Heals(uuid string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.heals(uuid)
}

func (q *Quarantine) heals(uuid string) {
	r, ok := q.rests[uuid]
	if !ok || !r.healed.IsZero() {
		return
	}
	r.healed = q.time()
	if r.span <= leastRest {
		r.until = r.healed
	}
	r.changed = r.healed
	q.rests[uuid] = r
	q.stir()
}

// outlives hears that a lease goes on metering a device. Where another process says that it failed, and has not said so again for as long as
// it would take to while the device fails on, that is over: it may have been written after the heal that this process wrote once.
func (q *Quarantine) outlives(uuid string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	r, failed := q.rests[uuid], q.rests[uuid].until.Add(-q.rests[uuid].span)
	if r.others && q.time().Sub(failed) > r.span/renewed+settled+sharedEvery {
		q.heals(uuid)
	}
}

// rest reports whether all of some devices rest.
func (q *Quarantine) rest(devices []string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.time()
	return !slices.ContainsFunc(devices, func(uuid string) bool { return !now.Before(q.rests[uuid].until) })
}

// Listed are devices as they were listed last, a driver may have named them otherwise since, and after them those that were listed at any
// time and are not among them: lost when the program started, and back since.
func (q *Quarantine) Listed(known []metering.Device) []metering.Device {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := slices.Clone(known)
	for _, d := range q.ever {
		if i := indexOf(all, d); i >= 0 {
			all[i] = d
		} else {
			all = append(all, d)
		}
	}
	return all
}

// indexOf is where a device is in a list, by its UUID; -1 where it is not.
func indexOf(all []metering.Device, d metering.Device) int {
	return slices.IndexFunc(all, func(e metering.Device) bool { return e.UUID == d.UUID })
}

// look lists the devices. One look is under way at most.
func (q *Quarantine) look(source metering.Source) <-chan singleflight.Result {
	return q.asked.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), quarantineTimeout)
		defer cancel()
		all, err := source.Devices(ctx)
		q.mu.Lock()
		defer q.mu.Unlock()
		q.at, q.err, q.listed = time.Now(), err, make(map[string]bool, len(all))
		for _, d := range all {
			q.listed[d.UUID] = true
			if i := indexOf(q.ever, d); i >= 0 {
				q.ever[i] = d
			} else {
				q.ever = append(q.ever, d)
			}
		}
		return nil, nil
	})
}

// Expire has the next question look anew, however young the last look is.
func (q *Quarantine) Expire() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.at = time.Now().Add(-2 * quarantineAge)
}
