// Package database opens the database of one side.
package database

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/gpupay/gpupay/channel/store"
)

// Open opens the database of one side for the one program that runs on it, checks that it is whole, and brings its
// tables up to date with the migrations in dir.
func Open(ctx context.Context, path, side string, migrations fs.FS, dir string) (*store.DB, error) {
	db, err := store.OpenAlone(ctx, path)
	if err != nil {
		return nil, err
	}
	files, err := fs.Sub(migrations, dir)
	if err == nil {
		err = checkPages(ctx, db)
	}
	if err == nil {
		err = db.Migrate(ctx, side, files)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", db.Path(), err), db.Close())
	}
	return db, nil
}

// Read opens a database to read from it beside its program. sides are the migrations of those that it may be of; of what it has
// it must have all, and no more.
func Read(ctx context.Context, path string, sides map[string]fs.FS) (*store.DB, error) {
	db, err := store.OpenToRead(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	for side, all := range sides {
		version, failed := db.Version(ctx, side)
		if failed == nil && version > 0 {
			var files fs.FS
			if files, failed = fs.Sub(all, "migrations/"+side); failed == nil {
				failed = db.Migrate(ctx, side, files)
			}
		}
		err = errors.Join(err, failed)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database: %w", err), db.Close())
	}
	return db, nil
}

// ErrDamaged says that a database file is not what was written to it.
var ErrDamaged = errors.New("the file is damaged: restore it from a backup, and do not delete it: what can still be read of it is money")

// manyPages is where checking every page at each start would take minutes. Then
// only the tables that hold money are checked; a damaged record is noticed when
// it is read or written.
const manyPages = 1 << 16

// checkPages looks for damage before anybody is served: a page that cannot be
// read later could be the voucher of a channel that is about to close. Servers
// check their pages themselves.
func checkPages(ctx context.Context, db *store.DB) error {
	view := db.View()
	if view.DriverName() != "sqlite3" {
		return nil
	}
	var pages int
	if err := view.GetContext(ctx, &pages, `PRAGMA page_count`); err != nil {
		return err
	}
	var tables []string
	if err := view.SelectContext(ctx, &tables, `SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name`); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	for _, table := range tables {
		if pages > manyPages && strings.HasSuffix(table, "records") {
			continue
		}
		var verdict string
		if err := view.GetContext(ctx, &verdict, `PRAGMA quick_check('`+table+`')`); err != nil || verdict != "ok" {
			return errors.Join(fmt.Errorf("table %s: %w (%s)", table, ErrDamaged, strings.ReplaceAll(verdict, "\n", " ")), err)
		}
	}
	return nil
}
