// Package dailybudget holds the books of a daily budget to a model of it.
package dailybudget

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/route"
)

const channel, lease = "0xc1", "0x1e"

// hold is what a reservation is, and what became of it.
type hold struct {
	id       int64
	at       time.Time
	key      string
	most     uint64
	requests []uint64
	billed   map[uint64]uint64
	done     *uint64 // what its sender measured
	freed    bool    // its process ended before it was sent
	settled  bool
}

// counts is what it counts at by the promise, without a look at how that is kept: nothing if it was never sent and is over, what was billed once its newest
// request was, what its sender measured once that is done, its most before.
func (h *hold) counts() (n uint64) {
	for _, cost := range h.billed {
		n += cost
	}
	_, named := h.billed[h.newest()]
	switch {
	case named || h.settled:
		return n
	case h.freed, h.done != nil && len(h.requests) == 0:
		return 0
	case h.done != nil:
		return *h.done
	}
	return h.most
}

func (h *hold) newest() uint64 {
	if len(h.requests) == 0 {
		return 0
	}
	return h.requests[len(h.requests)-1]
}

// open reports whether something may be sent for it.
func (h *hold) open() bool {
	_, named := h.billed[h.newest()]
	return !named && h.done == nil && !h.freed && !h.settled
}

type world struct {
	*testing.T
	path     string
	books    *budget.Books
	limits   budget.Limits
	holds    []*hold
	requests uint64
	sequence uint64
	days     []time.Time
}

func (w *world) counted(at time.Time, key string) (n uint64) {
	for _, h := range w.holds {
		if h.at.Equal(at) && (key == "" || h.key == key) {
			n += h.counts()
		}
	}
	return n
}

// pick is one of the holds that something holds of; nil: none is.
func (w *world) pick(t *rapid.T, of func(*hold) bool) *hold {
	var some []*hold
	for _, h := range w.holds {
		if of(h) {
			some = append(some, h)
		}
	}
	if len(some) == 0 {
		t.Skip("there is none")
	}
	return rapid.SampledFrom(some).Draw(t, "hold")
}

func ok(t *rapid.T, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) reserve(t *rapid.T) {
	h := &hold{at: rapid.SampledFrom(w.days).Draw(t, "day"), key: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "key"),
		most: rapid.Uint64Range(0, 60).Draw(t, "most"), billed: make(map[uint64]uint64)}
	limits := w.limits
	if h.key != "a" {
		limits.Key = nil
	}
	fits := w.counted(h.at, "")+h.most <= 100 && (limits.Key == nil || w.counted(h.at, "a")+h.most <= 40)
	id, err := w.books.Reserve(w.Context(), h.at, h.key, limits, route.Base(h.most))
	var over *budget.ExceededError
	if errors.As(err, &over) == fits || !fits && over == nil {
		t.Fatalf("%d of %q in %s: %v, fits: %v", h.most, h.key, h.at, err, fits)
	}
	if h.id = id; fits {
		ok(t, err)
		w.holds = append(w.holds, h)
	}
}

func (w *world) dispatch(t *rapid.T) {
	h := w.pick(t, func(h *hold) bool { return len(h.requests) < 3 })
	w.requests++
	err := w.books.Dispatch(w.Context(), h.id, channel, w.requests)
	if open := h.open(); (err == nil) != open {
		t.Fatalf("open: %v, %v", open, err)
	}
	if err == nil {
		h.requests = append(h.requests, w.requests)
	}
}

func (w *world) done(t *rapid.T) {
	h := w.pick(t, func(*hold) bool { return true })
	cost := rapid.Uint64Range(0, h.most).Draw(t, "cost")
	open := h.open()
	ok(t, w.books.Done(w.Context(), h.id, route.Base(cost)))
	if open {
		h.done = &cost
	}
}

// bill is a record of up to three requests, each billed no more than it counts at. The one before may come again.
func (w *world) bill(t *rapid.T) {
	w.sequence++
	r := budget.Record{Channel: channel, Lease: lease, Sequence: w.sequence, Bills: []budget.Bill{{Request: 1 << 40, Cost: route.Base(9)}}}
	for range rapid.IntRange(1, 3).Draw(t, "requests") {
		for _, h := range w.holds {
			for _, request := range h.requests {
				if _, named := h.billed[request]; named || h.settled || !rapid.Bool().Draw(t, fmt.Sprintf("request %d", request)) {
					continue
				}
				cost := rapid.Uint64Range(0, 5).Draw(t, "cost")
				r.Bills = append(r.Bills, budget.Bill{Request: request, Cost: route.Base(cost)})
				h.billed[request] = cost
			}
		}
	}
	ok(t, w.books.Correct(w.Context(), r))
	if rapid.Bool().Draw(t, "again") {
		ok(t, w.books.Correct(w.Context(), r))
	}
}

func (w *world) restart(t *rapid.T) {
	ok(t, w.books.Close())
	books, err := budget.Open(w.Context(), w.path)
	ok(t, err)
	w.books = books
	for _, h := range w.holds {
		h.freed = h.freed || h.done == nil && len(h.requests) == 0
	}
}

func (w *world) settle(t *rapid.T) {
	if !rapid.Bool().Draw(t, "closed") {
		t.Skip("not yet")
	}
	ok(t, w.books.Settle(w.Context(), channel))
	for _, h := range w.holds {
		h.settled = h.settled || len(h.requests) > 0
	}
}

func (w *world) check(t *rapid.T) {
	for _, at := range w.days {
		for _, key := range []string{"", "a", "b"} {
			got, err := w.books.Counted(w.Context(), at, key)
			ok(t, err)
			if want := w.counted(at, key); got != route.Base(want) {
				t.Fatalf("%s: %s count for %q, want %d", budget.Day(at), got, key, want)
			}
		}
		if all, own := w.counted(at, ""), w.counted(at, "a"); all > 100+w.surplus(at, "") || own > 40+w.surplus(at, "a") {
			t.Fatalf("%s: %d of 100 and %d of 40 count", budget.Day(at), all, own)
		}
	}
}

// surplus is by how much bills passed what was measured: nothing is kept aside here.
func (w *world) surplus(at time.Time, key string) (n uint64) {
	for _, h := range w.holds {
		if !h.at.Equal(at) || key != "" && h.key != key {
			continue
		}
		for _, cost := range h.billed {
			n += cost
		}
	}
	return n
}

// TestDailyBudget: whatever is reserved, sent, billed or given up, in whatever order and over restarts, each day counts what is promised, and no reservation is
// let in that its budget or its key's does not hold.
func TestDailyBudget(t *testing.T) {
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		own := route.Base(40)
		w := &world{T: t, path: filepath.Join(t.TempDir(), fmt.Sprintf("%d.db", n)), limits: budget.Limits{All: route.Base(100), Key: &own}}
		for day := range 2 {
			w.days = append(w.days, time.Date(2026, 12, 31+day, 12, 0, 0, 0, time.UTC))
		}
		books, err := budget.Open(t.Context(), w.path)
		ok(rt, err)
		w.books = books
		defer func() { _ = w.books.Close() }()
		rt.Repeat(map[string]func(*rapid.T){
			"": w.check, "reserve": w.reserve, "reserve more": w.reserve, "dispatch": w.dispatch, "done": w.done, "bill": w.bill, "restart": w.restart, "settle": w.settle,
		})
	})
}
