package store

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/jmoiron/sqlx"
)

// TestSoonIsKept: writers that can wait are on disk when they return, with nobody to join, with others, and when the
// store is closed meanwhile.
func TestSoonIsKept(t *testing.T) { each(t, testSoonIsKept) }

func testSoonIsKept(t *testing.T, db *DB) {
	if err := db.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`CREATE TABLE soon (n INTEGER PRIMARY KEY)`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	write := func(n int) func(tx *sqlx.Tx) error {
		return func(tx *sqlx.Tx) error {
			_, err := tx.Exec(tx.Rebind(`INSERT INTO soon VALUES (?)`), n)
			return err
		}
	}
	kept := func() (n int) {
		t.Helper()
		if err := db.View().Get(&n, `SELECT count(*) FROM soon`); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := db.UpdateSoon(t.Context(), write(0)); err != nil || kept() != 1 {
		t.Fatalf("%d rows, %v", kept(), err)
	}
	if err := db.UpdateSoon(t.Context(), write(0)); err == nil || kept() != 1 {
		t.Errorf("a row of the same key: %d rows, %v", kept(), err)
	}
	var wait sync.WaitGroup
	failed := make(chan error, 40)
	for n := 1; n <= 20; n++ {
		wait.Go(func() { failed <- db.UpdateSoon(t.Context(), write(n)) })
		wait.Go(func() { failed <- db.Update(t.Context(), write(100+n)) })
	}
	wait.Wait()
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if n := kept(); n != 41 {
		t.Errorf("%d rows", n)
	}
}

// TestSoonAndClosed: who waits for company when the store is closed is answered, and its answer is true.
func TestSoonAndClosed(t *testing.T) {
	for range 20 {
		db, err := Open(t.Context(), filepath.Join(t.TempDir(), "soon.db"))
		if err != nil {
			t.Fatal(err)
		}
		answered := make(chan error, 1)
		go func() {
			answered <- db.UpdateSoon(t.Context(), func(tx *sqlx.Tx) error {
				_, err := tx.Exec(`CREATE TABLE soon (n INTEGER)`)
				return err
			})
		}()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		err = <-answered
		if err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
		again, reopened := Open(t.Context(), db.path)
		if reopened != nil {
			t.Fatal(reopened)
		}
		var n int
		if found := again.View().Get(&n, `SELECT count(*) FROM sqlite_master WHERE name = 'soon'`); found != nil || (n == 1) != (err == nil) {
			t.Errorf("answered %v, %d tables, %v", err, n, found)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
