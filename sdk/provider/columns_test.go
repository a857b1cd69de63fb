package provider

import (
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// widen does to every table what a newer program's migration may do: it adds a column.
func widen(t *testing.T, db *store.DB) {
	t.Helper()
	list := tablesOfSQLite
	if db.Shared() {
		list = `SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()`
	}
	if err := db.Update(t.Context(), func(tx *sqlx.Tx) error { return widenTables(tx, list) }); err != nil {
		t.Fatal(err)
	}
}

const tablesOfSQLite = `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`

// widenTables widens the tables that a query lists.
func widenTables(db interface {
	sqlx.Execer
	Select(into any, query string, args ...any) error
}, list string) error {
	var tables []string
	if err := db.Select(&tables, list); err != nil || len(tables) < 5 {
		return fmt.Errorf("tables %v, %w", tables, err)
	}
	for _, table := range tables {
		if _, err := db.Exec(`ALTER TABLE ` + table + ` ADD COLUMN of_a_newer_program TEXT NOT NULL DEFAULT 'new'`); err != nil {
			return err
		}
	}
	return nil
}

// TestColumnsOfANewerProgram: a newer program adds a column to each table while older ones run. They go on: leases are
// rented, metered, taken up again, shown, paid, exported and closed.
func TestColumnsOfANewerProgram(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, quiet)
			path := filepath.Join(t.TempDir(), "renter.db")
			client := r.renter(t, path)
			first := r.open(1, 200_000, "")
			first.record()
			widen(t, r.provider.db)
			inRenterFile(t, path, func(db *sqlx.DB) error { return widenTables(db, tablesOfSQLite) })
			first.record()
			r.restart()
			first.again()
			first.record()
			final := first.release()
			first.close(final.Owed.Uint64())
			if b, err := r.provider.Export(t.Context(), first.terms.ID()); err != nil || len(b.Leases) != 1 {
				t.Error(err)
			}
			rental, err := client.Rent(t.Context(), r.server.URL, renter.Options{Deposit: "0.3", PayEvery: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			done := renterrig.Background(t.Context(), rental)
			awaitRecord(t, rental, 2)
			if _, err := rental.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if _, err := client.Export(t.Context(), rental.ID()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("node", func(t *testing.T) {
		o := newOutpost(t)
		r := newRig(t, o.link)
		widen(t, o.writing().DB)
		lease := r.open(1, 200_000, "")
		lease.record()
		o.stop()
		o.start()
		lease.record()
		if final := lease.release(); !final.Final {
			t.Errorf("%+v is not final", final.Record)
		}
	})
	t.Run("x402", func(t *testing.T) {
		r := newPayRig(t)
		b := r.buyer("/tick")
		b.open(20_000)
		widen(t, r.provider.db)
		b.idle()
		p := b.payment(b.next())
		b.take(b.keyed(p, "the same again"))
		if resp := b.keyed(p, "the same again"); resp.StatusCode != http.StatusOK { // is read from the notes
			t.Error(resp.Status)
		}
		b.again()
	})
}
