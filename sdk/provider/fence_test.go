package provider

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
)

// TestTermsOfADatabaseFromBefore: a command of an older term than the file of this host has is run where the database says that this is
// the lease's term, as after a restore, and where it has forgotten a lease whose renter still has its GPUs; and refused where the database
// does not answer. A file that cannot be written holds up no command.
func TestTermsOfADatabaseFromBefore(t *testing.T) {
	address, line := through(t, pgtest.URL(t))
	host := newHostOf(t, 2, "")
	r := newRig(t, generousCredit, func(c *Config) {
		c.Database, c.Takeover, c.Allocator, c.Log = address, time.Minute, host.allocator(), slog.New(slog.DiscardHandler)
	})
	lease := r.open(1, 500_000, "")
	lease.record()
	l, marks := r.provider.leases.Running(lease.terms.ID()), r.provider.leases.Deps.Marks
	raise := func(id common.Hash, term int64) {
		t.Helper()
		if err := marks.SetTerm(t.Context(), id, term); err != nil {
			t.Fatal(err)
		}
	}
	a := l.Allocation
	run := func() error { return r.provider.leases.Deps.Placer.Resume(t.Context(), a) }
	raise(a.LeaseID, 7)
	if err := run(); err != nil {
		t.Errorf("the database says that it is this term: %v", err)
	}
	if err := marks.Enter(t.Context(), a.LeaseID, 2, time.Time{}); err != nil { // the file has the database's word
		t.Error(err)
	}
	raise(a.LeaseID, 7)
	line.set(true)
	before := host.calls()
	if err := run(); !errors.Is(err, leasestore.ErrNotOwner) || host.calls() != before {
		t.Errorf("the database does not answer: %v, after\n%s", err, strings.TrimPrefix(host.calls(), before))
	}
	line.set(false)
	raise(a.LeaseID, 7)
	waitFor(t, func() bool { return run() == nil })
	row := lease.row()
	row.Term = 8
	undone := func() bool {
		before := host.calls()
		r.provider.gateway.Undo(t.Context(), l, row)
		return host.calls() != before
	}
	if !undone() {
		t.Error("nobody resumed it, and so who suspended it has to")
	}
	if undone() {
		t.Error("whoever runs it has resumed it, and it may have suspended it since")
	}
	gone := gpu.Allocation{LeaseID: common.Hash{9}, Devices: a.Devices, Term: 1}
	raise(gone.LeaseID, 2)
	placer := r.provider.leases.Deps.Placer
	if err := placer.Suspend(t.Context(), gone); !errors.Is(err, leasestore.ErrNotOwner) {
		t.Errorf("the database has forgotten the lease, whose GPUs were taken back: %v", err)
	}
	if err := marks.Hand(t.Context(), "", gone.LeaseID, gone.Devices, true); err != nil {
		t.Fatal(err)
	}
	if err := placer.Suspend(t.Context(), gone); err != nil {
		t.Errorf("the database has forgotten the lease, whose renter has its GPUs: %v", err)
	}

	db, err := sqlx.Open("sqlite3", "file:"+r.config.Records.HighWater+"?_txlock=immediate&_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lock := db.MustBegin()
	defer lock.Rollback() //nolint:errcheck // it ends with the test
	a.Term++
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	began := time.Now()
	if err := placement.SuspendLate(ctx, r.provider.leases.Deps.Placer, a); err != nil || time.Since(began) > 15*time.Second {
		t.Errorf("a suspension waits for a file that cannot be written: %v, after %s", err, time.Since(began))
	}
}
