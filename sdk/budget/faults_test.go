package budget_test

import (
	"path/filepath"
	"testing"

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
