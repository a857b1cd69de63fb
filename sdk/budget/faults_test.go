package budget_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/sqlfault"
	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/route"
)

// TestNoFaultIsSilent: of each change of the books every statement fails once. The call says so, and what it was to change is as before: tried
// again it comes out as if nothing had failed.
func TestNoFaultIsSilent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk := sqlfault.At(t, dir)
	b := open(t, filepath.Join(dir, "pool.db"))
	key := route.Base(90_000)
	limits := budget.Limits{All: route.Base(100_000), Key: &key}
	var id int64
	for _, call := range []func() error{
		func() (err error) {
			id, err = b.Reserve(t.Context(), noon, "k", limits, route.Base(4000))
			return err
		},
		func() error { return b.Aside(t.Context(), id, "0xc1", limits, route.Base(3000), route.Base(500)) },
		func() error { return b.Dispatch(t.Context(), id, "0xc1", 1) },
		func() error { return b.Done(t.Context(), id, route.Base(1000)) },
		func() error {
			return b.Correct(t.Context(), budget.Record{Channel: "0xc1", Lease: "0xa", Sequence: 1, Bills: []budget.Bill{{Request: 1, Cost: route.Base(1200)}}})
		},
		func() error { return b.Settle(t.Context(), "0xc1") },
		func() error { _, err := b.Channels(t.Context()); return err },
		func() error { _, err := b.Pending(t.Context()); return err },
		func() error { _, err := b.Sequence(t.Context(), "0xc1", "0xa"); return err },
		func() error { _, err := b.Counted(t.Context(), noon, "k"); return err },
		func() error { return b.Prune(t.Context(), noon) },
	} {
		disk.Told(t, call)
	}
	counts(t, b, noon, "k", route.Base(1200))
	counts(t, b, noon, "", route.Base(1200))
	t.Log(len(disk.Faults()), "faults")
}

// TestDamagedReservation: what counts in a day and cannot be read is said, and is not taken for nothing.
func TestDamagedReservation(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pool.db")
	b := open(t, path)
	limits := budget.Limits{All: route.Base(100_000)}
	id := reserve(t, b, noon, "", limits, 4000)
	ok(t, b.Dispatch(t.Context(), id, "0xc1", 1))
	file, err := sqlx.Open("sqlite3", "file:"+path+"?_busy_timeout=10000")
	ok(t, err)
	defer file.Close()
	if _, err := file.Exec(`UPDATE budget_holds SET counted = '?'`); err != nil {
		t.Fatal(err)
	}
	if err := b.Done(t.Context(), id, route.Base(1)); err == nil {
		t.Error("a reservation of ? is corrected")
	}
}

// TestWhoseBudgetIsOver: whoever has a key of its own hears that its part of the day is used up, and not everybody's.
func TestWhoseBudgetIsOver(t *testing.T) {
	t.Parallel()
	b := open(t, filepath.Join(t.TempDir(), "pool.db"))
	key := route.Base(100)
	for _, c := range []struct {
		limits budget.Limits
		key    string
		said   string
	}{
		{budget.Limits{All: route.Base(1000), Key: &key}, "k", `today's budget of key "k" of`},
		{budget.Limits{All: route.Base(100), Key: &key}, "", "today's budget of"},
		{budget.Limits{All: route.Base(100), Key: &key}, "k", "today's budget of 100"},
	} {
		_, err := b.Reserve(t.Context(), noon, c.key, c.limits, route.Base(101))
		var over *budget.ExceededError
		if !errors.As(err, &over) || !strings.Contains(err.Error(), c.said) {
			t.Errorf("%q: %v, want %s", c.key, err, c.said)
		}
	}
}
