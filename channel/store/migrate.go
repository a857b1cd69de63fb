package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
)

// ErrNewer marks a database that a newer program wrote. An older one could
// misread what is owed, so it does not touch it.
var ErrNewer = errors.New("database is newer than this program")

// ErrOlder marks a database that is only read, and that its own program has not
// brought up to date.
var ErrOlder = errors.New("database is older than this program")

const migrationsTable = `CREATE TABLE IF NOT EXISTS migrations (
    component  TEXT     NOT NULL,
    version    INTEGER  NOT NULL,
    name       TEXT     NOT NULL,
    applied_at BIGINT   NOT NULL,
    PRIMARY KEY (component, version)
)`

// Migrate applies a component's migrations that are not applied yet: the files
// NNNN_name.sql in the root of fsys, numbered from 0001 without a hole. Each is
// applied once, with its record, in one transaction. Components are numbered
// apart, so that each package keeps its own tables. Where PostgreSQL needs other
// words, the file of the same name in the folder postgres takes its place.
func (db *DB) Migrate(ctx context.Context, component string, fsys fs.FS) error {
	files, err := numbered(fsys)
	if err != nil {
		return fmt.Errorf("store: migrations of %s: %w", component, err)
	}
	if db.readOnly {
		return db.current(ctx, component, len(files))
	}
	return db.Update(ctx, func(tx *sqlx.Tx) error {
		if err := exclusive(tx); err != nil {
			return err
		}
		if _, err := tx.Exec(migrationsTable); err != nil {
			return err
		}
		applied, err := version(tx, component)
		if err != nil {
			return err
		}
		if applied > len(files) {
			return db.newer(component, applied, len(files))
		}
		for i := applied; i < len(files); i++ {
			if err := apply(tx, component, i+1, files[i], fsys); err != nil {
				return err
			}
		}
		return nil
	})
}

func (db *shared) newer(component string, applied, known int) error {
	return fmt.Errorf("store %s: %w: %s is at version %d, this program knows %d: run a newer program",
		db.path, ErrNewer, component, applied, known)
}

// current refuses tables of another version than this program reads.
func (db *DB) current(ctx context.Context, component string, known int) error {
	applied, err := db.Version(ctx, component)
	switch {
	case err != nil:
		return fmt.Errorf("store %s: which version its tables of %s have: %w: is it a database of this project's?", db.path, component, err)
	case applied > known:
		return db.newer(component, applied, known)
	case applied < known:
		return fmt.Errorf("store %s: %w: %s is at version %d, this program reads %d, and only reads: start the program that owns it once in this version, or read it with the older one",
			db.path, ErrOlder, component, applied, known)
	}
	return nil
}

// Version is how many migrations of a component were applied; 0 where it has no
// tables here.
func (db *DB) Version(ctx context.Context, component string) (int, error) {
	var v int
	err := db.reader.GetContext(ctx, &v, db.reader.Rebind(versionQuery), component)
	return v, db.explain(err)
}

const versionQuery = "SELECT COALESCE(MAX(version), 0) FROM migrations WHERE component = ?"

func version(tx *sqlx.Tx, component string) (int, error) {
	var v int
	err := tx.Get(&v, tx.Rebind(versionQuery), component)
	return v, err
}

func apply(tx *sqlx.Tx, component string, version int, name string, fsys fs.FS) error {
	text, err := migration(tx, fsys, name)
	if err != nil {
		return fmt.Errorf("store: migration %s of %s: %w", name, component, err)
	}
	if _, err := tx.Exec(string(text)); err != nil {
		return fmt.Errorf("store: migration %s of %s: %w", name, component, err)
	}
	_, err = tx.Exec(tx.Rebind("INSERT INTO migrations (component, version, name, applied_at) VALUES (?, ?, ?, ?)"),
		component, version, name, time.Now().UnixNano())
	return err
}

// exclusive has programs that start at once migrate one after the other.
func exclusive(tx *sqlx.Tx) error {
	if !onPostgres(tx) {
		return nil // they do anyway
	}
	_, err := tx.Exec("SELECT pg_advisory_xact_lock(hashtext('gpupay migrations'))")
	return err
}

func migration(tx *sqlx.Tx, fsys fs.FS, name string) ([]byte, error) {
	if onPostgres(tx) {
		text, err := fs.ReadFile(fsys, "postgres/"+name)
		if !errors.Is(err, fs.ErrNotExist) {
			return text, err
		}
	}
	return fs.ReadFile(fsys, name)
}

// numbered returns the migrations in order.
func numbered(fsys fs.FS) ([]string, error) {
	files, err := fs.Glob(fsys, "*.sql") // sorted
	if err != nil {
		return nil, err
	}
	for i, name := range files {
		digits, _, _ := strings.Cut(name, "_")
		if n, err := strconv.Atoi(digits); err != nil || n != i+1 || len(digits) != 4 {
			return nil, fmt.Errorf("file %s: want number %04d, as in %04d_name.sql", name, i+1, i+1)
		}
	}
	return files, nil
}
