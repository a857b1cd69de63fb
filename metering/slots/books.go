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
	Slack     time.Duration // of when one request ran; DefaultSlack if zero
	Tolerance time.Duration // of all requests of a lease together; DefaultTolerance if zero
}

// Own is what a renter measured of one of its requests, in nanoseconds of one clock of
// its own: from before it was sent until after its last byte, or until it was
// aborted, or until now while it runs.
type Own struct {
	From, To int64
	Epoch    uint64 // which clock that was: another one after the renter was rebooted, stopped or its clock set. Only times of one are compared
	Failed   bool   // by no doing of the renter's, and at no limit that the offer names and that was reached: it costs nothing
}

// took is what may be billed of it by its renter's clock.
func (o Own) took() int64 {
	if o.Failed {
		return 0
	}
	return max(0, o.To-o.From)
}

// Folded is what a renter still knows of requests that it forgot one by one.
type Folded struct {
	Requests uint64
	Nanos    int64  // that they took
	Highest  uint64 // id of them
}

// Books are what a renter knows of the requests of one lease. They are a value: Check
// returns what they are after a record that may be paid. Store them with it.
type Books struct {
	Own          map[uint64]Own // by id: those that no record named yet
	Folded       Folded         // that no record named either
	Over         int64          // ns that named requests were billed over their own measure, in all
	LeftOut      uint64         // requests that records left out of their lists
	LeftOutNanos int64          // ns that these were billed
	Total        int64          // ns of one GPU that all records so far bill
	Rest         uint32         // and parts of one, which the last of them carries over
}

// Check holds the requests of a record's evidence against the renter's own. It goes on
// where the record before ended, so that nothing is billed by one that was not shown. Each
// request in it is one that the renter made and no record named before. Over all records
// so far, named requests are billed no more than they took, and nothing where they
// failed, and those that were left out no more than the renter's others took: both
// together but for one tolerance in a lease. What bills nothing is no matter. A
// [verify.Checker] has checked the rest.
func (b Books) Check(e metering.Evidence, limits Limits) (Books, error) {
	if e.Kind != metering.KindSlots || e.Slots == nil {
		return b, fmt.Errorf("%w: it is not of slots", metering.ErrEvidence)
	}
	if err := e.Validate(); err != nil {
		return b, err
	}
	if err := observed(e); err != nil {
		return b, err
	}
	if before := e.Total - e.Nanos; before != b.Total || e.Slots.Carried != b.Rest {
		return b, fmt.Errorf("%w: it goes on from %d ns and %d parts of one, and the records that were shown end at %d and %d: ask for those between them",
			ErrOvercharged, before, e.Slots.Carried, b.Total, b.Rest)
	}
	limits = limits.defaults()
	next := b
	next.Own = maps.Clone(b.Own)
	next.Total, next.Rest = e.Total, e.Slots.Rest
	for _, r := range e.Slots.Requests {
		if err := next.named(r, limits); err != nil {
			return b, err
		}
	}
	if err := b.apart(e.Slots.Requests, limits); err != nil {
		return b, err
	}
	if err := next.leftOut(e.Slots.More, e.Slots.MoreNanos); err != nil {
		return b, err
	}
	if err := next.room(limits); err != nil {
		return b, err
	}
	return next, nil
}

// Fold forgets requests of which done says that they ended, and so long ago that records name them no
// more: those that were left out of lists, or failed, or that a provider lost as it was
// started anew would fill the renter's memory otherwise. What they took still has room for
// what is left out; one that a record names after all is counted there.
func (b Books) Fold(done func(id uint64, own Own) bool) Books {
	own := make(map[uint64]Own)
	for id, o := range b.Own {
		if !done(id, o) {
			own[id] = o
			continue
		}
		f := &b.Folded
		f.Requests, f.Nanos, f.Highest = f.Requests+1, plus(f.Nanos, time.Duration(o.took())), max(f.Highest, id)
	}
	b.Own = own
	return b
}

// named books one request of a record's list.
func (b *Books) named(r metering.Request, limits Limits) error {
	own, ok := b.Own[r.ID]
	delete(b.Own, r.ID)
	switch {
	case r.Nanos == 0:
		return nil
	case !ok && r.ID <= b.Folded.Highest:
		return b.leftOut(1, r.Nanos)
	case !ok:
		return &Overcharge{ID: r.ID, Billed: r.Nanos, Why: "no request of this id was sent that a record did not name before"}
	}
	took, why := own.took(), fmt.Sprintf("it took %s here", time.Duration(own.took()))
	if own.Failed {
		why = "it failed"
	}
	if r.Nanos <= took {
		return nil
	}
	left := limits.Tolerance - time.Duration(b.Over)
	if most := plus(took, left); r.Nanos > most {
		return &Overcharge{ID: r.ID, Billed: r.Nanos, Most: most, Why: fmt.Sprintf("%s, and %s of %s is left of what a lease's requests may come to more",
			why, left, limits.Tolerance)}
	}
	b.Over += r.Nanos - took
	return nil
}

// leftOut books requests that no list names. How many cost nothing is no matter.
func (b *Books) leftOut(count uint64, nanos int64) error {
	if nanos == 0 {
		return nil
	}
	if count > math.MaxUint64-b.LeftOut || nanos > math.MaxInt64-b.LeftOutNanos {
		return fmt.Errorf("%w: %d requests of %d ns are not named", metering.ErrEvidence, count, nanos)
	}
	b.LeftOut, b.LeftOutNanos = b.LeftOut+count, b.LeftOutNanos+nanos
	return nil
}

// room holds all that records left out so far against all that none of them named. It is looked
// at with every record: one that names what another left out takes that one's room.
func (b Books) room(limits Limits) error {
	took, sent := b.Folded.Nanos, uint64(len(b.Own))+b.Folded.Requests
	for _, own := range b.Own {
		took = plus(took, time.Duration(own.took()))
	}
	if b.LeftOut > sent {
		return fmt.Errorf("%w: %d requests are billed that no record names, and %d were sent", ErrOvercharged, b.LeftOut, sent)
	}
	if most := plus(took, limits.Tolerance-time.Duration(b.Over)); b.LeftOutNanos > most {
		return fmt.Errorf("%w: %d requests that no record names are billed %s, those that were sent took %s: %s too much", ErrOvercharged,
			b.LeftOut, time.Duration(b.LeftOutNanos), time.Duration(took), time.Duration(b.LeftOutNanos-most))
	}
	return nil
}

// drift is how much two clocks may part: one part in so many.
const drift = 1000

// apart holds the requests' times against each other. A request took its slot after it
// was sent and gave it back before its answer was there, whatever lies between the two
// clocks: so there is one difference between these that fits all requests of a record that
// the renter timed by one clock. Where there is none, requests overlap, or are apart, as
// they were not here. An abort may be noticed late: what a slot was held for longer is no
// matter here, and what it costs is in Over.
func (b Books) apart(requests []metering.Request, limits Limits) error {
	clocks := make(map[uint64][]metering.Request)
	for _, r := range requests {
		if own, ok := b.Own[r.ID]; ok && r.Nanos > 0 {
			clocks[own.Epoch] = append(clocks[own.Epoch], r)
		}
	}
	for _, timed := range clocks {
		if err := b.moved(timed, limits); err != nil {
			return err
		}
	}
	return nil
}

func (b Books) moved(requests []metering.Request, limits Limits) error {
	least, most := int64(math.MinInt64), int64(math.MaxInt64)
	var late, early uint64
	first, last := int64(math.MaxInt64), int64(math.MinInt64)
	for _, r := range requests {
		own := b.Own[r.ID]
		held := max(own.To, plus(own.From, time.Duration(r.To-r.From)))
		first, last = min(first, own.From), max(last, own.To)
		if from := own.From - r.From; from > least {
			least, late = from, r.ID
		}
		if to := held - r.To; to < most {
			most, early = to, r.ID
		}
	}
	allowed := plus(2*int64(limits.Slack), time.Duration((last-first)/drift))
	if over := plus(least, time.Duration(-most)); over > allowed { // the provider's stamps may be as large as it likes
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
