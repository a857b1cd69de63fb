// Package database opens the database of one side.
package database

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"

	"github.com/gpupay/gpupay/channel/store"
)

// ErrOther says that a database is that of another program.
var ErrOther = errors.New("it is another program's")

// ServerNow is PostgreSQL's clock in milliseconds, an expression of SQL: what processes that share a database must agree on is timed
// by it, so that their own clocks need not agree. A row that runs out has beside its deadline, "expires", how long it was written
// for, "ttl", in case that clock is set back.
const ServerNow = `(extract(epoch FROM clock_timestamp()) * 1000)::bigint`

// sides are the components whose tables only one kind of program has. A node has those of a provider too.
var sides = []string{"budget", "node", "provider", "renter", "tower"}

// of is the kind of program that a database is of; empty where no program has tables in it yet.
func of(ctx context.Context, db *store.DB) (string, error) {
	for _, side := range sides {
		if version, err := db.Version(ctx, side); err != nil || version > 0 {
			return side, err
		}
	}
	return "", nil
}

// checkSide refuses the database of a program of another kind: each side's money would stand between the other's.
func checkSide(ctx context.Context, db *store.DB, side string) error {
	owner, err := of(ctx, db)
	if err != nil || owner == "" || owner == side {
		return err
	}
	return fmt.Errorf("%w: a %s wrote it, and a %s needs a file of its own: name another", ErrOther, owner, side)
}

// Open opens the database of one side for the one program that runs on it, checks that it is whole and of that side, and brings its
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
		err = checkSide(ctx, db, side)
	}
	if err == nil {
		err = db.Migrate(ctx, side, files)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", db.Path(), err), db.Close())
	}
	return db, nil
}

// Read opens a database to read from it beside its program. mayBe are the migrations of those that it may be of; of what it has
// it must have all, and no more, and it must be of one of them.
func Read(ctx context.Context, path string, mayBe map[string]fs.FS) (*store.DB, error) {
	db, err := store.OpenToRead(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	owner, err := of(ctx, db)
	_, is := mayBe[owner]
	if owner == "node" {
		_, is = mayBe["provider"] // whose tables a node has, too
	}
	if err == nil && !is {
		err = fmt.Errorf("%w: %s is of a %s", ErrOther, db.Path(), cmp.Or(owner, "program that has not written to it yet"))
	}
	for side, all := range mayBe {
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

// Columns names what is read of a row, for SELECT: a newer program's migration may
// have added other columns, which an older one that still runs must not stumble
// over.
func Columns[T any]() string {
	var names []string
	for row := reflect.TypeFor[T](); len(names) < row.NumField(); {
		names = append(names, row.Field(len(names)).Tag.Get("db"))
	}
	return strings.Join(names, ", ")
}
