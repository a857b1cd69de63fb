package database

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
)

// TestErrorsKeepThePassword: what is wrong in a server's database is said with where that is, and without its password.
func TestErrorsKeepThePassword(t *testing.T) {
	address := strings.Replace(pgtest.Database(t), "gpupay@", "gpupay:hunter2@", 1)
	db, err := Open(t.Context(), address, "notes", notes, "migrations/notes")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := Open(t.Context(), address, "other", notes, "migrations/notes"); err == nil || !strings.Contains(err.Error(), db.Path()) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v; want %s and no password", err, db.Path())
	}
}

var notes = fstest.MapFS{
	"migrations/notes/0001_notes.sql": {Data: []byte("CREATE TABLE notes (note TEXT NOT NULL)")},
}

// A database opens again with what is in it, wherever its migrations are kept, as long as the side is called the same.
func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notes.db")
	db, err := Open(t.Context(), path, "notes", notes, "migrations/notes")
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec("INSERT INTO notes VALUES ('kept')"); return err }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	moved := fstest.MapFS{"0001_notes.sql": notes["migrations/notes/0001_notes.sql"]}
	if db, err = Open(t.Context(), path, "notes", moved, "."); err != nil {
		t.Fatal(err)
	}
	var note string
	if err := errors.Join(db.View().GetContext(t.Context(), &note, "SELECT note FROM notes"), db.Close()); err != nil || note != "kept" {
		t.Errorf("%q, %v", note, err)
	}
	if _, err := Open(t.Context(), path, "other", moved, "."); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("tables that are there already, of another side: %v", err)
	}
}

// A file with a page that is not what was written is not opened, whichever rows are asked for later.
func TestOpenDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notes.db")
	db, err := Open(t.Context(), path, "notes", notes, "migrations/notes")
	if err != nil {
		t.Fatal(err)
	}
	mark := bytes.Repeat([]byte("voucher "), 400)
	err = db.Update(t.Context(), func(tx *sqlx.Tx) error {
		for range 50 {
			if _, err := tx.Exec("INSERT INTO notes VALUES (?)", string(mark)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	last := bytes.LastIndex(raw, mark) / page * page // a leaf of the table
	copy(raw[last:], bytes.Repeat([]byte{0xff}, 64))
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path, "notes", notes, "migrations/notes"); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "notes") {
		t.Errorf("%v, want ErrDamaged", err)
	}
}

// TestOpenOther: no program writes to the file of another kind of program, nor reads it for its own; nothing is put beside a
// file that is no database.
func TestOpenOther(t *testing.T) {
	dir := t.TempDir()
	at := func(side string) string { return filepath.Join(dir, side+".db") }
	for _, side := range sides {
		for range 2 { // the second time it is there
			db, err := Open(t.Context(), at(side), side, notes, "migrations/notes")
			if err == nil {
				err = db.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, theirs := range sides {
		for _, own := range sides {
			if own == theirs {
				continue
			}
			if _, err := Open(t.Context(), at(theirs), own, notes, "migrations/notes"); !errors.Is(err, ErrOther) || !strings.Contains(err.Error(), theirs) {
				t.Errorf("a %s on the file of a %s: %v", own, theirs, err)
			}
			mayBe := map[string]fs.FS{own: fstest.MapFS{"migrations/" + own + "/0001_notes.sql": notes["migrations/notes/0001_notes.sql"]}}
			db, err := Read(t.Context(), at(theirs), mayBe)
			if err == nil {
				db.Close()
			}
			if and := theirs == "node" && own == "provider"; errors.Is(err, ErrOther) == and {
				t.Errorf("the file of a %s read as that of a %s: %v", theirs, own, err)
			}
		}
	}
	letter := at("letter")
	if err := os.WriteFile(letter, []byte("Dear reader"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), letter, "renter", notes, "migrations/notes")
	beside, failed := filepath.Glob(letter + "?*")
	if err == nil || !strings.Contains(err.Error(), "not a database") || len(beside) > 0 || failed != nil {
		t.Errorf("%v, and beside it is %q", err, beside)
	}
}
