package paystream

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/evidence"
	"github.com/gpupay/gpupay/sdk/internal/rental"
)

// Requests are what a renter sends on a lease that shares GPUs, by its own clock: each is on disk before it is sent, and is known until a
// record has named it. They may be begun and ended by any goroutine.
type Requests struct {
	ledger *rental.Ledger
	clock  metering.Clock
	epoch  uint64
	since  int64         // of this process, by that clock
	Hurry  chan struct{} // a request was refused until more is paid

	mu      sync.Mutex
	loaded  bool
	next    uint64
	own     map[uint64]slots.Own
	running map[uint64]bool // whether the renter itself stops it
	errored map[uint64]bool // which no limit explains
	limits  limits
}

func newRequests(ledger *rental.Ledger, clock metering.Clock) *Requests {
	sum := sha256.Sum256([]byte(clock.BootID()))
	return &Requests{ledger: ledger, clock: clock, epoch: binary.BigEndian.Uint64(sum[:]) >> 1, since: clock.Now().Boot, Hurry: make(chan struct{}, 1),
		own: make(map[uint64]slots.Own), running: make(map[uint64]bool), errored: make(map[uint64]bool)}
}

// load takes up what an earlier process sent. What ran when that died took until now at most, by the wall clock after a reboot, and no
// longer than that process would have let it run. The caller holds mu.
func (q *Requests) load(ctx context.Context, books *slots.Books) error {
	if q.loaded {
		return nil
	}
	sent, err := q.ledger.Store.Requests(ctx, q.ledger.ID)
	if err != nil {
		return err
	}
	q.sent(sent)
	if books != nil {
		q.next = max(q.next, books.Folded.Highest)
	}
	q.loaded = true
	return nil
}

// sent takes up requests that are on disk.
func (q *Requests) sent(before []rental.Request) {
	now := q.clock.Now()
	for _, r := range before {
		own := slots.Own{From: r.Started, To: max(r.Started, now.Boot), Epoch: uint64(r.Epoch), Failed: r.Failed != rental.Done}
		switch {
		case r.Ended != nil:
			own.To = *r.Ended
		case own.Epoch != q.epoch:
			own.To = r.Started + max(0, now.Wall-r.Wall)
		}
		if r.Ended == nil && r.Most > 0 {
			own.To = r.Started + min(own.To-r.Started, r.Most)
		}
		q.own[uint64(r.ID)] = own
		if r.Failed == rental.Errored {
			q.errored[uint64(r.ID)] = true
		}
		q.next = max(q.next, uint64(r.ID))
	}
}

// Begin numbers a request, on disk, before it is sent. Its context's deadline is kept with it.
func (q *Requests) Begin(ctx context.Context) (id uint64, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.load(ctx, q.ledger.View().Row.Books); err != nil {
		return 0, err
	}
	q.next = max(q.next, q.ledger.View().Row.Requested) + 1
	started := q.clock.Now()
	sent := rental.Request{ID: int64(q.next), Started: started.Boot, Epoch: int64(q.epoch), Wall: started.Wall}
	if end, ok := ctx.Deadline(); ok {
		sent.Most = max(1, int64(time.Until(end)))
	}
	if err := q.ledger.Store.AddRequest(ctx, q.ledger.ID, sent); err != nil {
		return 0, err
	}
	q.own[q.next], q.running[q.next] = slots.Own{From: started.Boot, Epoch: q.epoch}, false
	return q.next, nil
}

// End notes that a request is over, on disk too: its last byte is here, it was aborted, or it failed by no doing of ours. What broke off where
// no limit was near failed as much as what was answered with an error.
func (q *Requests) End(id uint64, how rental.Ending) {
	if how == rental.Broken && !q.limited(id) {
		how = rental.Errored
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	stopped, running := q.running[id]
	if own, ok := q.own[id]; ok && running {
		if stopped {
			how = rental.Done
		}
		own.To, own.Failed = q.clock.Now().Boot, how != rental.Done
		q.own[id] = own
		if how == rental.Errored {
			q.errored[id] = true
		}
		if err := q.ledger.Store.EndRequest(context.Background(), q.ledger.ID, int64(id), own.To, how); err != nil {
			boundlog.Warn(q.ledger.Wallet.Log, "how a request ended is not on disk: started anew, this renter takes it to have run until then", q.ledger.ID, err, "request", id)
		}
	}
	delete(q.running, id)
}

// Fail notes, on disk too, that what a request was answered with is a failure, also where it ended as if it were none: a record that names it
// from now on bills nothing for it. One that a record has named is paid.
func (q *Requests) Fail(id uint64) {
	q.End(id, rental.Errored)
	q.mu.Lock()
	defer q.mu.Unlock()
	own, ok := q.own[id]
	if !ok || q.errored[id] {
		return
	}
	own.Failed, q.errored[id] = true, true
	q.own[id] = own
	if err := q.ledger.Store.EndRequest(context.Background(), q.ledger.ID, int64(id), own.To, rental.Errored); err != nil {
		boundlog.Warn(q.ledger.Wallet.Log, "that a request failed is not on disk: started anew, this renter pays for it", q.ledger.ID, err, "request", id)
	}
}

// over reports whether a request ended so long ago that it is known by itself no more. Times of two clocks are not compared.
func (q *Requests) over(own slots.Own) bool {
	before := q.clock.Now().Boot - int64(folded)
	if own.Epoch != q.epoch {
		return q.since < before
	}
	return own.To < before
}

// Stop notes, before the lease is given back, that the renter itself ends what runs: however that breaks off, it was aborted.
func (q *Requests) Stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id := range q.running {
		q.running[id] = true
	}
}

// known is what is known now of each.
func (q *Requests) known(ctx context.Context, books *slots.Books) (map[uint64]slots.Own, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	err := q.load(ctx, books)
	all, now := maps.Clone(q.own), q.clock.Now().Boot
	for id := range q.running {
		own := all[id]
		own.To = max(own.From, now)
		all[id] = own
	}
	return all, err
}

// cutOff reports whether a request may have been ended at a limit: it broke off where one was near, or would now.
func (q *Requests) cutOff(id uint64) bool {
	q.mu.Lock()
	_, runs := q.running[id]
	errored := q.errored[id]
	q.mu.Unlock()
	return !errored && (!runs || q.limited(id))
}

// forget drops those that were known and are in the books no more.
func (q *Requests) forget(known map[uint64]slots.Own, books *slots.Books) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id := range known {
		if _, ok := books.Own[id]; !ok {
			delete(q.own, id)
			delete(q.errored, id)
		}
	}
}

// folded is how long after its end a request is known by itself that no record names.
const folded = 10 * time.Minute

// Overcharged is what is kept of a record that bills requests for more than they took: it beside what was measured here.
type overcharged struct {
	Refused json.RawMessage      `json:"refused"`
	Own     map[uint64]slots.Own `json:"own"` // by id, nanoseconds of this host's clock
}

// requests holds the requests that a record bills against what was measured here. What is too much is a dispute that names the request:
// the record is not paid, and both are kept.
func (l *checks) requests(ctx context.Context, rec metering.SignedRecord, document []byte) (next *slots.Books, known map[uint64]slots.Own, err error) {
	if known, err = l.Requests.known(ctx, l.Row.Books); err != nil {
		return nil, nil, err
	}
	var books slots.Books
	if l.Row.Books != nil {
		books = *l.Row.Books
	}
	books.Own = maps.Clone(known)
	for _, r := range rec.Evidence.Slots.Requests {
		if own, ok := books.Own[r.ID]; ok && r.Outcome == metering.RequestLimit {
			own.Failed = !l.Requests.cutOff(r.ID)
			books.Own[r.ID] = own
		}
	}
	checked, err := books.Check(rec.Evidence, slots.Limits{})
	if err != nil {
		both, failed := json.Marshal(overcharged{evidence.OfRecord(rec, document), known})
		if failed != nil {
			return nil, nil, failed
		}
		return nil, nil, l.Dispute(ctx, fmt.Errorf("lease %s, record %d: %w", rec.LeaseID, rec.Sequence, err), both)
	}
	checked = checked.Fold(func(_ uint64, own slots.Own) bool { return l.Requests.over(own) })
	return &checked, known, nil
}
