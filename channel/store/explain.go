package store

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/mattn/go-sqlite3"
)

// advice is what an operator does about the surroundings' faults.
var advice = map[sqlite3.ErrNo]string{
	sqlite3.ErrReadonly: "the file is read-only: make it and its directory writable by this user",
	sqlite3.ErrBusy:     "another process holds the database locked: stop it, one program writes a store",
	sqlite3.ErrLocked:   "another process holds the database locked: stop it, one program writes a store",
	sqlite3.ErrFull:     "the disk is full: free some space",
	sqlite3.ErrIoErr:    "the disk failed: check it, and the file's backup",
	sqlite3.ErrCorrupt:  "the file is damaged: stop, and restore it from a backup",
	sqlite3.ErrNotADB:   "the file is not a database: name another, or restore it from a backup",
	sqlite3.ErrCantOpen: "the file cannot be opened: check that its directory exists and is writable by this user",
}

// errNotADB is what SQLite says of a file that is not its own.
var errNotADB = sqlite3.Error{Code: sqlite3.ErrNotADB}

// explain adds the file and what to do to an error of SQLite's. Others pass.
func (db *shared) explain(err error) error {
	if err == nil {
		return nil // each voucher's answer comes by here
	}
	if db.dialect == postgres {
		return db.explainServer(err)
	}
	var fault sqlite3.Error
	if !errors.As(err, &fault) {
		return err
	}
	if what, ok := advice[fault.Code]; ok {
		return fmt.Errorf("store %s: %s: %w", db.path, what, err)
	}
	return fmt.Errorf("store %s: %w", db.path, err)
}

// Failed reports an error of the database itself: its disk, its file or its server.
func Failed(err error) bool {
	var file sqlite3.Error
	var server *pgconn.PgError
	var refused *pgconn.ConnectError
	return errors.As(err, &file) || errors.As(err, &server) || errors.As(err, &refused) || errors.Is(err, ErrClosed)
}

// Conflict reports a row that was not written because another one has its key.
func Conflict(err error) bool {
	var file sqlite3.Error
	if errors.As(err, &file) {
		return file.ExtendedCode == sqlite3.ErrConstraintUnique || file.ExtendedCode == sqlite3.ErrConstraintPrimaryKey
	}
	var server *pgconn.PgError
	return errors.As(err, &server) && server.Code == "23505"
}
