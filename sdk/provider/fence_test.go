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
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
)

// TestTermsOfADatabaseFromBefore: where the database says that a lease is in an older term than the file of this host has, as after a restore, a
// term above the file's begins, and commands are run in that alone. Where it has forgotten a lease whose renter still has its GPUs they are
// run in the file's; where it does not answer in none. A file that cannot be written holds up no command.
func TestTermsOfADatabaseFromBefore(t *testing.T) {
	address, line := through(t, pgtest.URL(t))
	host := newHostOf(t, 2, `echo "term $GPUPAY_TERM" >> $(dirname $0)/calls`)
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
	before := host.calls()
	if err := run(); !errors.Is(err, leasestore.ErrNotOwner) || host.calls() != before {
		t.Errorf("the database says that it is this term, and the file that it was a later one: %v, after\n%s", err, strings.TrimPrefix(host.calls(), before))
	}
	if a.Term = lease.row().Term; a.Term != 8 {
		t.Errorf("the lease is in term %d of the database, not 8", a.Term)
	}
	if err := run(); err != nil {
		t.Errorf("in the term that began: %v", err)
	}
	if err := marks.Enter(t.Context(), a.LeaseID, 7, time.Time{}); !errors.Is(err, highwater.ErrNewerTerm) {
		t.Errorf("the file was lowered: %v", err)
	}
	raise(a.LeaseID, 9)
	line.set(true)
	before = host.calls()
	if err := run(); !errors.Is(err, leasestore.ErrNotOwner) || host.calls() != before {
		t.Errorf("the database does not answer: %v, after\n%s", err, strings.TrimPrefix(host.calls(), before))
	}
	line.set(false)
	raise(a.LeaseID, 8)
	waitFor(t, func() bool {
		_, err := r.provider.store.Leases.Term(t.Context(), a.LeaseID)
		return err == nil && run() == nil
	})
	row := lease.row()
	row.Term = 12
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
	before = host.calls()
	if err := placer.Suspend(t.Context(), gone); err != nil {
		t.Errorf("the database has forgotten the lease, whose renter has its GPUs: %v", err)
	}
	if ran := strings.TrimPrefix(host.calls(), before); !strings.Contains(ran, "term 2\n") {
		t.Errorf("it is suspended in another term than the file's: %s", ran)
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
