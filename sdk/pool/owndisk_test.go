package pool_test

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestOwnDiskLeavesNobody: the payer's own disk takes no write for longer than three tries to close a rental: once it is well, the provider is
// paid what was used last, and gives the rest back. It is not left, as one that is gone.
func TestOwnDiskLeavesNobody(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("36", 4)
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, s)
	must(t, p, "", s, p.Endpoints()[0].Price.Pay(5*time.Second, 0, 0), ask{Millis: 900})
	rig.Eventually(t, "a record", func() bool {
		all, err := client.Rentals(t.Context())
		return err == nil && len(all) == 1 && !all[0].Owed.IsZero()
	})
	well := w.fill(t)
	healed := make(chan error, 1)
	go func() { time.Sleep(8 * time.Second); healed <- well() }()
	if err := errors.Join(p.Close(t.Context()), <-healed); err != nil {
		t.Fatal(err)
	}
	all, err := client.History(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	if r := all[0]; r.Phase != renter.PhaseClosed && r.Phase != renter.PhaseFinished || r.Paid != r.Owed || r.Closed == nil || r.Closed.Settled != r.Owed {
		t.Errorf("it is %s: %s of %s are paid, %+v", r.Phase, r.Paid.Dec(), r.Owed.Dec(), r.Closed)
	}
}

// fill has the renter's database take no write, as on a disk that is full, until it is made well.
func (w *town) fill(t *testing.T) (well func() error) {
	db, err := sql.Open("sqlite3", filepath.Join(w.dir, "renter.db")+"?_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	rows, err := db.Query(`SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'`)
	if err != nil {
		t.Fatal(err)
	}
	var tables []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		tables = append(tables, name)
	}
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	var drop string
	for _, table := range tables {
		for _, verb := range []string{"INSERT", "UPDATE"} {
			if _, err := db.Exec(fmt.Sprintf(`CREATE TRIGGER full_%s_%s BEFORE %[2]s ON %[1]s BEGIN SELECT RAISE(FAIL, 'disk is full'); END`, table, verb)); err != nil {
				t.Fatal(err)
			}
			drop += fmt.Sprintf("DROP TRIGGER full_%s_%s;", table, verb)
		}
	}
	return func() error { _, err := db.Exec(drop); return err }
}
