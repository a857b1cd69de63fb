package budget_test

import (
	"errors"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/route"
)

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, path string) *budget.Books {
	t.Helper()
	b, err := budget.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func counts(t *testing.T, b *budget.Books, at time.Time, key string, want route.Nano) {
	t.Helper()
	if got, err := b.Counted(t.Context(), at, key); err != nil || got != want {
		t.Errorf("%s: %s count for %q, want %s: %v", budget.Day(at), got, key, want, err)
	}
}

func reserve(t *testing.T, b *budget.Books, at time.Time, key string, limits budget.Limits, most uint64) int64 {
	t.Helper()
	id, err := b.Reserve(t.Context(), at, key, limits, route.Base(most))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestManyAtOnce: 500 reservations at once over half a token never pass it, whatever becomes of each, and a restart in the middle changes
// nothing of that.
func TestManyAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pool.db")
	limits := budget.Limits{All: route.Base(500_000)}
	b := open(t, path)
	for round := range 3 {
		var all sync.WaitGroup
		var mu sync.Mutex
		fit := 0
		for range 500 {
			all.Go(func() {
				id, err := b.Reserve(t.Context(), noon, "", limits, route.Base(4000))
				var over *budget.ExceededError
				if err != nil {
					if !errors.As(err, &over) {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				fit++
				mu.Unlock()
				if got, err := b.Counted(t.Context(), noon, ""); err != nil || got.Cmp(limits.All) > 0 {
					t.Errorf("%s count of %s: %v", got, limits.All, err)
				}
				switch rand.IntN(4) {
				case 0: // it failed
					ok(t, b.Dispatch(t.Context(), id, "0xc1", uint64(id)))
					ok(t, b.Done(t.Context(), id, route.Nano{}))
				case 1: // its process dies while it runs
					ok(t, b.Dispatch(t.Context(), id, "0xc1", uint64(id)))
				case 2: // or before it is sent
				case 3:
					ok(t, b.Dispatch(t.Context(), id, "0xc1", uint64(id)))
					ok(t, b.Done(t.Context(), id, route.Base(3000)))
				}
			})
		}
		all.Wait()
		if got, err := b.Counted(t.Context(), noon, ""); err != nil || got.Cmp(limits.All) > 0 || round == 0 && fit < 125 {
			t.Errorf("round %d: %s count, %d fit: %v", round, got, fit, err)
		}
		ok(t, b.Close())
		b = open(t, path)
	}
}

// TestKills: what was sent for counts at its most after a kill until a record names it, what was not is free, and what no record names
// costs nothing once the channel is closed.
func TestKills(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pool.db")
	b := open(t, path)
	limits := budget.Limits{All: route.Base(1000)}
	reserve(t, b, noon, "", limits, 100)
	running, lost, done := reserve(t, b, noon, "", limits, 200), reserve(t, b, noon, "", limits, 300), reserve(t, b, noon, "", limits, 400)
	for i, id := range []int64{running, lost, done} {
		ok(t, b.Dispatch(t.Context(), id, "0xc1", uint64(i+1)))
	}
	ok(t, b.Done(t.Context(), done, route.Base(50)))
	counts(t, b, noon, "", route.Base(650))
	ok(t, b.Close())
	b = open(t, path)
	counts(t, b, noon, "", route.Base(550))
	record := budget.Record{Channel: "0xc1", Lease: "0x1e", Sequence: 7, Bills: []budget.Bill{{1, route.Base(120)}, {3, route.Base(40)}, {9, route.Base(1)}}}
	for range 2 { // the same record again changes nothing
		ok(t, b.Correct(t.Context(), record))
		counts(t, b, noon, "", route.Base(460))
	}
	if read, err := b.Sequence(t.Context(), "0xc1", "0x1e"); err != nil || read != 7 {
		t.Error(read, err)
	}
	ok(t, b.Done(t.Context(), running, route.Nano{})) // it is billed already
	counts(t, b, noon, "", route.Base(460))
	if err := b.Dispatch(t.Context(), lost+100, "0xc1", 10); !errors.Is(err, budget.ErrUnknown) {
		t.Error(err)
	}
	if err := b.Dispatch(t.Context(), done, "0xc1", 10); !errors.Is(err, budget.ErrUnknown) {
		t.Errorf("a request is sent for what is over: %v", err)
	}
	if open, err := b.Channels(t.Context()); err != nil || len(open) != 1 {
		t.Error(open, err)
	}
	ok(t, b.Settle(t.Context(), "0xc1"))
	counts(t, b, noon, "", route.Base(160))
	if open, err := b.Channels(t.Context()); err != nil || len(open) != 0 {
		t.Error(open, err)
	}
	ok(t, b.Prune(t.Context(), noon.AddDate(0, 0, 1)))
	counts(t, b, noon, "", route.Base(160))
}

// TestUnnamed: a record that bills requests without their names leaves at their most those that it may have meant.
func TestUnnamed(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "pool.db"))
	limits := budget.Limits{All: route.Base(1000)}
	id := reserve(t, b, noon, "", limits, 300)
	ok(t, b.Dispatch(t.Context(), id, "0xc1", 1))
	ok(t, b.Correct(t.Context(), budget.Record{Channel: "0xc1", Lease: "0x1e", Sequence: 1, Unnamed: true}))
	ok(t, b.Correct(t.Context(), budget.Record{Channel: "0xc1", Lease: "0x1e", Sequence: 2}))
	ok(t, b.Settle(t.Context(), "0xc1"))
	counts(t, b, noon, "", route.Base(300))
}

// TestSentTwice: a request that was refused and is sent again is not over when a record names the first of its numbers.
func TestSentTwice(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "pool.db"))
	id := reserve(t, b, noon, "", budget.Limits{All: route.Base(1000)}, 300)
	ok(t, b.Dispatch(t.Context(), id, "0xc1", 1))
	ok(t, b.Dispatch(t.Context(), id, "0xc1", 2))
	ok(t, b.Correct(t.Context(), budget.Record{Channel: "0xc1", Lease: "0x1e", Sequence: 1, Bills: []budget.Bill{{1, route.Base(5)}}}))
	counts(t, b, noon, "", route.Base(300))
	ok(t, b.Correct(t.Context(), budget.Record{Channel: "0xc1", Lease: "0x1e", Sequence: 2, Bills: []budget.Bill{{2, route.Base(70)}}}))
	counts(t, b, noon, "", route.Base(75))
}

// TestBilledOverMeasure: what a provider bills over its renter's measure is taken from what was kept aside for it, and the budget is not passed.
func TestBilledOverMeasure(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "pool.db"))
	own := route.Base(130)
	limits := budget.Limits{All: route.Base(1000), Key: &own}
	id := reserve(t, b, noon, "ci", limits, 100)
	if err := b.Aside(t.Context(), id, "0xc1", limits, route.Base(100), route.Base(31)); err == nil {
		t.Error("it does not fit")
	}
	for range 2 { // once a day and channel
		ok(t, b.Aside(t.Context(), id, "0xc1", limits, route.Base(100), route.Base(30)))
		counts(t, b, noon, "ci", route.Base(130))
	}
	ok(t, b.Dispatch(t.Context(), id, "0xc1", 1))
	ok(t, b.Done(t.Context(), id, route.Base(0))) // it failed, we think
	reserve(t, b, noon, "ci", limits, 100)
	ok(t, b.Correct(t.Context(), budget.Record{Channel: "0xc1", Lease: "0x1e", Sequence: 1, Bills: []budget.Bill{{1, route.Base(20)}}}))
	counts(t, b, noon, "ci", route.Base(130))
	counts(t, b, noon, "", route.Base(130))
	ok(t, b.Settle(t.Context(), "0xc1"))
	counts(t, b, noon, "ci", route.Base(120))
}

// TestAsideWithin: what is kept aside comes out of a reservation that was made with it, and is free again where it is kept already.
func TestAsideWithin(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "pool.db"))
	limits := budget.Limits{All: route.Base(260)}
	first, second := reserve(t, b, noon, "", limits, 130), reserve(t, b, noon, "", limits, 130)
	ok(t, b.Aside(t.Context(), first, "0xc1", limits, route.Base(100), route.Base(30)))
	counts(t, b, noon, "", route.Base(260))
	ok(t, b.Aside(t.Context(), second, "0xc1", limits, route.Base(100), route.Base(30)))
	counts(t, b, noon, "", route.Base(230))
	ok(t, b.Dispatch(t.Context(), first, "0xc1", 1))
	ok(t, b.Done(t.Context(), first, route.Base(100)))
	if err := b.Aside(t.Context(), first, "0xc2", limits, route.Base(1), route.Base(1)); !errors.Is(err, budget.ErrUnknown) {
		t.Errorf("a reservation that is done: %v", err)
	}
	counts(t, b, noon, "", route.Base(230))
}

// TestDays: a request over midnight counts in the day in which it was reserved, whatever corrects it later, and a clock that is set back
// finds that day as it was left.
func TestDays(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "pool.db"))
	limits := budget.Limits{All: route.Base(100)}
	late := time.Date(2026, 11, 30, 23, 59, 59, 999_999_999, time.UTC).In(time.FixedZone("", 7*3600))
	next := late.Add(time.Nanosecond)
	id := reserve(t, b, late, "", limits, 100)
	ok(t, b.Dispatch(t.Context(), id, "0xc1", 1))
	reserve(t, b, next, "", limits, 100)
	ok(t, b.Done(t.Context(), id, route.Base(60)))
	ok(t, b.Correct(t.Context(), budget.Record{Channel: "0xc1", Lease: "0x1e", Sequence: 1, Bills: []budget.Bill{{1, route.Base(70)}}}))
	counts(t, b, late, "", route.Base(70))
	counts(t, b, next, "", route.Base(100))
	var over *budget.ExceededError
	if _, err := b.Reserve(t.Context(), late, "", limits, route.Base(31)); !errors.As(err, &over) || over.Left != route.Base(30) || !over.Ends.Equal(next) {
		t.Errorf("a clock that is set back: %v", err)
	}
	reserve(t, b, late, "", limits, 30)
}

// TestAmounts: dust is counted to the billionth of a base unit, and nothing that is too large is let in or makes room.
func TestAmounts(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "pool.db"))
	var most route.Nano
	for range 300 {
		most = most.Add(most).Add(route.Base(1 << 60))
	}
	limits := budget.Limits{All: most}
	var over *budget.ExceededError
	if _, err := b.Reserve(t.Context(), noon, "", limits, most); !errors.As(err, &over) {
		t.Errorf("%v", err)
	}
	for range 3 {
		if _, err := b.Reserve(t.Context(), noon, "", budget.Limits{All: route.Nanos(3)}, route.Nanos(1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Reserve(t.Context(), noon, "", budget.Limits{All: route.Nanos(3)}, route.Nanos(1)); !errors.As(err, &over) {
		t.Errorf("a fourth billionth of three: %v", err)
	}
	id, beside := reserve(t, b, noon, "", limits, 5), reserve(t, b, noon, "", limits, 5)
	ok(t, b.Dispatch(t.Context(), id, "0xc1", 1))
	ok(t, b.Done(t.Context(), id, most))
	ok(t, b.Correct(t.Context(), budget.Record{Channel: "0xc1", Lease: "0x1e", Sequence: 1, Bills: []budget.Bill{{1, most}}}))
	if _, err := b.Reserve(t.Context(), noon, "", budget.Limits{All: route.Base(100)}, route.Nanos(1)); !errors.As(err, &over) || !over.Left.IsZero() {
		t.Errorf("after an endless bill: %v", err)
	}
	ok(t, b.Done(t.Context(), beside, route.Nano{}))
	ok(t, b.Correct(t.Context(), budget.Record{Channel: "0xc1", Lease: "0x1e", Sequence: 2, Bills: []budget.Bill{{1, most}}}))
	reserve(t, b, noon.AddDate(0, 0, 1), "", budget.Limits{All: route.Base(100)}, 100)
}

// TestAlone: a second process on the file is refused, and so is a server, where each would have a budget of its own.
func TestAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pool.db")
	open(t, path)
	if _, err := budget.Open(t.Context(), path); !errors.Is(err, store.ErrInUse) {
		t.Errorf("%v", err)
	}
	if _, err := budget.Open(t.Context(), "postgres://gpupay:hunter2@127.0.0.1:1/gpupay"); err == nil || !strings.Contains(err.Error(), "not a file") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a server: %v", err)
	}
}

// TestPending: what runs, and what no record has billed yet, is owed by channel, at what counts for it.
func TestPending(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "pool.db"))
	limits := budget.Limits{All: route.Base(1000)}
	pending := func(want map[string]route.Nano) {
		t.Helper()
		if got, err := b.Pending(t.Context()); err != nil || !maps.Equal(got, want) {
			t.Errorf("%v is owed, want %v: %v", got, want, err)
		}
	}
	reserve(t, b, noon, "", limits, 100) // is not sent
	pending(map[string]route.Nano{})
	runs, measured, elsewhere := reserve(t, b, noon, "", limits, 200), reserve(t, b, noon, "", limits, 300), reserve(t, b, noon, "", limits, 50)
	ok(t, b.Dispatch(t.Context(), runs, "0xc1", 1))
	ok(t, b.Dispatch(t.Context(), measured, "0xc1", 2))
	ok(t, b.Dispatch(t.Context(), elsewhere, "0xc2", 1))
	pending(map[string]route.Nano{"0xc1": route.Base(500), "0xc2": route.Base(50)})
	ok(t, b.Done(t.Context(), measured, route.Base(40)))
	pending(map[string]route.Nano{"0xc1": route.Base(240), "0xc2": route.Base(50)})
	ok(t, b.Correct(t.Context(), budget.Record{Channel: "0xc1", Lease: "0x1e", Sequence: 1, Bills: []budget.Bill{{Request: 2, Cost: route.Base(30)}}}))
	pending(map[string]route.Nano{"0xc1": route.Base(200), "0xc2": route.Base(50)})
}
