package slots

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// ErrOvercharged says that requests are billed for what their renter did not use, by
// its own clock. It is reason not to pay the record, and convinces nobody else.
var ErrOvercharged = errors.New("requests are billed for more than they took")

// Overcharge is an ErrOvercharged about one request.
type Overcharge struct {
	ID     uint64
	Billed int64 // ns
	Most   int64 // ns that could be billed
	Why    string
}

func (o *Overcharge) Error() string {
	return fmt.Sprintf("request %d is billed %s, at most %s can be: %s too much: %s", o.ID,
		time.Duration(o.Billed), time.Duration(o.Most), time.Duration(o.Billed-o.Most), o.Why)
}

func (o *Overcharge) Unwrap() error { return ErrOvercharged }

// Defaults of Limits.
const (
	DefaultSlack     = 50 * time.Millisecond
	DefaultTolerance = 2 * time.Second
)

// Limits are by how much two honest clocks, and what lies between them, may differ.
type Limits struct {
	Slack     time.Duration // of one request; DefaultSlack if zero
	Tolerance time.Duration // of all requests of a lease together; DefaultTolerance if zero
}

// Own is what a renter measured of one of its requests, in nanoseconds of one clock of
// its own: from before it was sent until after its last byte, or until it was
// aborted, or until now while it runs.
type Own struct {
	From, To int64
	Failed   bool // by no doing of the renter's: it costs nothing
}

// Books are what a renter knows of the requests of one lease. They are a value: Check
// returns what they are after a record that may be paid.
type Books struct {
	Own          map[uint64]Own // by id: those that no record named yet
	Over         int64          // ns that named requests were billed over their own measure, in all
	LeftOut      uint64         // requests that records left out of their lists
	LeftOutNanos int64          // ns that these were billed
}

// Check holds the requests of a record's evidence against the renter's own: each is
// one that the renter made and no record named before, is billed no more than it
// took, and nothing if it failed; all that were left out fit into what the renter's
// others took. A [metering.Checker] has checked the rest.
func (b Books) Check(e metering.Evidence, limits Limits) (Books, error) {
	if e.Kind != metering.KindSlots || e.Slots == nil {
		return b, fmt.Errorf("%w: it is not of slots", metering.ErrEvidence)
	}
	if err := e.Validate(); err != nil {
		return b, err
	}
	limits = limits.defaults()
	next := b
	next.Own = maps.Clone(b.Own)
	for _, r := range e.Slots.Requests {
		own, ok := b.Own[r.ID]
		if !ok {
			return b, &Overcharge{ID: r.ID, Billed: r.Nanos, Why: "no request of this id was sent that a record did not name before"}
		}
		if own.Failed && r.Nanos > 0 {
			return b, &Overcharge{ID: r.ID, Billed: r.Nanos, Why: "it failed"}
		}
		took := max(0, own.To-own.From)
		if r.Nanos > plus(took, limits.Slack) {
			return b, &Overcharge{ID: r.ID, Billed: r.Nanos, Most: plus(took, limits.Slack), Why: fmt.Sprintf("it took %s here", time.Duration(took))}
		}
		next.Over = plus(next.Over, time.Duration(max(0, r.Nanos-took)))
		delete(next.Own, r.ID)
	}
	if err := b.apart(e.Slots.Requests, limits); err != nil {
		return b, err
	}
	if most := int64(limits.Tolerance); next.Over > most {
		return b, fmt.Errorf("%w: requests of this lease are billed %s more in all than they took here, %s is allowed: %s too much", ErrOvercharged,
			time.Duration(next.Over), limits.Tolerance, time.Duration(next.Over-most))
	}
	return next.leftOut(b, *e.Slots, limits)
}

// leftOut holds what a record does not name against all that no record named.
func (b Books) leftOut(before Books, s metering.SlotEvidence, limits Limits) (Books, error) {
	if s.More == 0 {
		return b, nil
	}
	if s.More > math.MaxUint64-b.LeftOut || s.MoreNanos > math.MaxInt64-b.LeftOutNanos {
		return before, fmt.Errorf("%w: %d requests of %d ns are not named", metering.ErrEvidence, s.More, s.MoreNanos)
	}
	b.LeftOut, b.LeftOutNanos = b.LeftOut+s.More, b.LeftOutNanos+s.MoreNanos
	var took int64
	for _, own := range b.Own {
		if !own.Failed {
			took = plus(took, time.Duration(max(0, own.To-own.From)))
		}
	}
	if b.LeftOut > uint64(len(b.Own)) {
		return before, fmt.Errorf("%w: %d requests are billed that no record names, and %d were sent", ErrOvercharged, b.LeftOut, len(b.Own))
	}
	if most := plus(took, limits.Tolerance-time.Duration(b.Over)); b.LeftOutNanos > most {
		return before, fmt.Errorf("%w: %d requests that no record names are billed %s, those that were sent took %s: %s too much", ErrOvercharged,
			b.LeftOut, time.Duration(b.LeftOutNanos), time.Duration(took), time.Duration(b.LeftOutNanos-most))
	}
	return b, nil
}

// drift is how much two clocks may part: one part in so many.
const drift = 1000

// apart holds the requests' times against each other. A request took its slot after it
// was sent and gave it back before its answer was there, whatever lies between the two
// clocks: so there is one difference between these that fits all requests of a record.
// Where there is none, requests overlap, or are apart, as they were not here.
func (b Books) apart(requests []metering.Request, limits Limits) error {
	least, most := int64(math.MinInt64), int64(math.MaxInt64)
	var late, early uint64
	first, last := int64(math.MaxInt64), int64(math.MinInt64)
	for _, r := range requests {
		own := b.Own[r.ID]
		if r.Nanos == 0 {
			continue
		}
		first, last = min(first, own.From), max(last, own.To)
		if from := own.From - r.From; from > least {
			least, late = from, r.ID
		}
		if to := own.To - r.To; to < most {
			most, early = to, r.ID
		}
	}
	if late == 0 {
		return nil
	}
	allowed := plus(2*int64(limits.Slack), time.Duration((last-first)/drift))
	if over := least - most; over > allowed {
		return fmt.Errorf("%w: requests %d and %d cannot both have run when it says: they are moved against each other by %s, at most %s is between two clocks: %s too much",
			ErrOvercharged, early, late, time.Duration(over), time.Duration(allowed), time.Duration(over-allowed))
	}
	return nil
}

func (l Limits) defaults() Limits {
	if l.Slack == 0 {
		l.Slack = DefaultSlack
	}
	if l.Tolerance == 0 {
		l.Tolerance = DefaultTolerance
	}
	return l
}

// plus adds what may be as large as it likes.
func plus(a int64, b time.Duration) int64 {
	if b > 0 && a > math.MaxInt64-int64(b) {
		return math.MaxInt64
	}
	return a + int64(b)
}
