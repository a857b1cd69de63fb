// Package store keeps channels in SQLite, on this machine's disk, or in
// PostgreSQL, where several processes share them: Open tells by the address.
//
// All writers that wait share one transaction (group commit), each with its own
// result: a write returns after the fsync of the group it was in, and one
// writer's error undoes that writer's work only. So a store takes many more
// vouchers a second than the disk takes fsyncs.
//
// A DB is open to other tables beside the channels: Migrate adds them, Update
// writes them, and Charge lets a caller append its own row and charge a channel
// in one transaction.
//
// On PostgreSQL a channel's row is locked while it is changed, so that nothing
// is lost or counted twice between processes either, and only one process's
// writes share a transaction.
//
// What is in the file is worth money: vouchers that are not settled yet, and what
// was signed away. Back up the file together with its -wal, or by SQLite's own
// backup; the file is created for its owner only.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
	_ "github.com/mattn/go-sqlite3" // the database/sql driver

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/internal/redact"
)

//go:embed migrations/*.sql migrations/postgres/*.sql
var migrations embed.FS

// ErrClosed is returned by writes to a closed DB.
var ErrClosed = errors.New("store is closed")

const (
	// busyTimeout is how long another process may hold the write lock.
	busyTimeout = 5 * time.Second
	readers     = 8
)

// DB is an open database. It is safe for concurrent use.
type DB struct {
	*shared
	guard func(tx *sqlx.Tx) error // runs first in every write; nil: none
}

// shared is what a DB and those with a guard have in common.
type shared struct {
	path    string // the file, or where the server is
	was     string // PostgreSQL: see Formerly
	dialect dialect
	writer  *sqlx.DB // SQLite: one connection, used by the commit loop only
	reader  *sqlx.DB
	grouper *sqlx.DB // PostgreSQL: the connection of the commit loop, which nothing else can take
	queue   chan *op
	idle    chan struct{} // closed when the commit loop has ended
	mu      sync.RWMutex  // guards closed, and queue against a send after close
	closed  bool

	readOnly bool // nothing is written, nor migrated

	lanes lanes // PostgreSQL

	lock io.Closer // nil: the file is not locked

	terms   termsCache
	cache   cache  // SQLite: what nobody else can change
	running *group // SQLite: the commit loop's own
}

// Open opens a database and brings its channel tables up to date. An address
// that begins with postgres:// is a database on a PostgreSQL server, which must
// exist; any other is the path of an SQLite file, which is created if there is
// none.
func Open(ctx context.Context, address string) (*DB, error) {
	db, err := open(ctx, address)
	if err != nil {
		return nil, err
	}
	own, err := fs.Sub(migrations, "migrations")
	if err == nil {
		err = db.Migrate(ctx, "channel", own)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// OpenToRead opens a database that exists to read from it beside the program that
// owns it. Nothing is written to it, and no tables are brought up to date: one of
// another version is ErrNewer or ErrOlder, also what Migrate finds of other
// components.
func OpenToRead(ctx context.Context, address string) (*DB, error) {
	var db *DB
	var err error
	if isPostgres(address) {
		if db, err = openPostgres(ctx, address); err == nil {
			err = db.writer.Close()
			db.writer = db.reader
		}
	} else {
		db, err = readFile(address)
	}
	if err != nil {
		return nil, err
	}
	db.readOnly = true
	own, err := fs.Sub(migrations, "migrations")
	if err == nil {
		err = db.Migrate(ctx, "channel", own)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// readFile opens an SQLite file so that SQLite itself refuses to write it.
func readFile(path string) (*DB, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	db := newShared(path, sqlite)
	reader, err := openSQLite(fmt.Sprintf("file:%s?mode=ro&_query_only=true&_busy_timeout=%d", (&url.URL{Path: path}).EscapedPath(), busyTimeout.Milliseconds()))
	if err != nil {
		return nil, db.explain(err)
	}
	reader.SetMaxOpenConns(readers)
	db.reader, db.writer = reader, reader
	go db.loop()
	return db, nil
}

// OpenBare is Open for a database that holds no channels, but only what its caller
// migrates into it.
func OpenBare(ctx context.Context, address string) (*DB, error) { return open(ctx, address) }

func open(ctx context.Context, address string) (*DB, error) {
	if isPostgres(address) {
		return openPostgres(ctx, address)
	}
	return openFile(ctx, address)
}

func openFile(ctx context.Context, path string) (*DB, error) {
	if err := makeFile(path); err != nil {
		return nil, err
	}
	db := newShared(path, sqlite)
	var err error
	if db.writer, err = connect(path, "_txlock=immediate", 1); err != nil {
		return nil, db.explain(err)
	}
	if db.reader, err = connect(path, "_query_only=true", readers); err != nil {
		return nil, errors.Join(db.explain(err), db.writer.Close())
	}
	if err = db.checkMode(ctx); err == nil {
		err = db.checkpointSeldom(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, db.writer.Close(), db.reader.Close())
	}
	go db.loop()
	return db, nil
}

// checkPath refuses what no file is to be named by: an address of another database has its password in it.
func checkPath(path string) error {
	if path == "" || path == ":memory:" {
		return errors.New("store: name a file: a store in memory would lose money on a restart")
	}
	if shown := redact.Database(path); shown != path || strings.Contains(path, "://") {
		return fmt.Errorf("store: %s is neither the path of a file nor postgres://user@host/database", shown)
	}
	return nil
}

// magic is what an SQLite file begins with.
const magic = "SQLite format 3\x00"

// makeFile makes an empty file for its owner only, unless it is there already: then it is SQLite's, or refused before anything is
// put beside it.
func makeFile(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("store: %w: the file and its directory must exist and be writable by this user", err)
	}
	begins := make([]byte, len(magic))
	n, err := io.ReadFull(file, begins)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if n > 0 && string(begins) != magic {
		return newShared(path, sqlite).explain(errNotADB)
	}
	return nil
}

func newShared(path string, d dialect) *DB {
	return &DB{shared: &shared{path: path, dialect: d, queue: make(chan *op, maxGroup), idle: make(chan struct{}),
		lanes: lanes{waiting: make(map[common.Hash][]*op), slots: make(chan struct{}, maxLanes)}}}
}

func connect(path, extra string, connections int) (*sqlx.DB, error) {
	file := (&url.URL{Path: path}).EscapedPath()
	source := fmt.Sprintf("file:%s?_journal_mode=WAL&_synchronous=FULL&_foreign_keys=true&_busy_timeout=%d&_stmt_cache_size=64&%s",
		file, busyTimeout.Milliseconds(), extra)
	db, err := openSQLite(source)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

func openSQLite(source string) (*sqlx.DB, error) {
	db, err := sql.Open(fault.SQLite, source)
	if err != nil {
		return nil, err
	}
	return sqlx.NewDb(db, "sqlite3"), nil
}

// checkMode refuses a place where SQLite cannot do what durability rests on.
func (db *DB) checkMode(ctx context.Context) error {
	var mode string
	if err := db.writer.GetContext(ctx, &mode, "PRAGMA journal_mode"); err != nil {
		return db.explain(err)
	}
	if mode != "wal" {
		return fmt.Errorf("store %s: journal mode is %q, want wal: keep the file on a local disk", db.path, mode)
	}
	return nil
}

// checkpointSeldom lets the write-ahead log grow to 32 MiB before its pages are
// moved into the file, each once, however often it was written. After the usual
// thousand pages a busy store moves pages all the time, and its writers wait.
func (db *DB) checkpointSeldom(ctx context.Context) error {
	_, err := db.writer.ExecContext(ctx, "PRAGMA wal_autocheckpoint = 8192")
	return db.explain(err)
}

// Close waits for the writes under way and closes the database.
func (db *DB) Close() error {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	close(db.queue)
	db.mu.Unlock()
	<-db.idle
	db.lanes.wait.Wait()
	err := errors.Join(db.reader.Close(), db.writer.Close())
	if db.grouper != nil {
		err = errors.Join(err, db.grouper.Close())
	}
	if db.lock != nil {
		err = errors.Join(err, db.lock.Close())
	}
	return err
}

// Path is the file, or where the server is, without a password: with the schema that is
// written, where that is not the public one.
func (db *DB) Path() string { return db.path }

// Formerly is what Path was before it named the schema; empty where it is the same, or
// where several schemas of one database had that path.
func (db *DB) Formerly() string { return db.was }

// View returns the database for reading. What it reads is committed. Writes
// through it fail.
func (db *DB) View() *sqlx.DB { return db.reader }

// Shared reports whether other processes may write this database at the same
// time.
func (db *DB) Shared() bool { return db.dialect == postgres }

// Guard returns the same database with a condition on every write through it:
// check runs first in the write's transaction, and if it fails nothing is
// written. It takes the place of an earlier guard.
func (db *DB) Guard(check func(tx *sqlx.Tx) error) *DB {
	return &DB{shared: db.shared, guard: check}
}

// Payee returns the store of a payee's channels.
func (db *DB) Payee() channel.Store { return payeeStore{db} }

// Payer returns the store of a payer's channels and budget.
func (db *DB) Payer() channel.PayerStore { return payerStore{db} }
