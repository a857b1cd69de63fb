package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/redact"
)

// dialect is which database this is.
type dialect uint8

const (
	sqlite dialect = iota
	postgres
)

const (
	// driverName has sqlx number placeholders ($1) instead of writing them as ?.
	driverName = "pgx"
	// writers is how many connections one process writes through beside that of its
	// groups; three gateways together stay within a server's usual hundred.
	writers = 7
	// patience bounds each query, and each transaction, on a server that does not
	// answer: who waits for a voucher to count must hear that it did not.
	patience = 30 * time.Second
	// retries is how often a transaction that another one stood in the way of is
	// run again.
	retries = 10
)

func isPostgres(address string) bool {
	return strings.HasPrefix(address, "postgres://") || strings.HasPrefix(address, "postgresql://")
}

func onPostgres(q interface{ DriverName() string }) bool { return q.DriverName() == driverName }

// forUpdate ends a SELECT of what is about to be changed. SQLite has one writer
// at a time.
func forUpdate(q interface{ DriverName() string }) string {
	if onPostgres(q) {
		return " FOR UPDATE"
	}
	return ""
}

func openPostgres(ctx context.Context, address string) (*DB, error) {
	if redact.Cut(address) {
		return nil, errors.New("store: the address must be postgres://user@host/database, with %2F, %3F, %23 and %40 for each /, ?, # and @ in the user, the password and the rest")
	}
	config, err := pgx.ParseConfig(address)
	if err != nil {
		return nil, fmt.Errorf("store: the address must be postgres://user@host/database: %w", err)
	}
	if config.Database == "" {
		return nil, errors.New("store: the address names no database: postgres://user@host/database")
	}
	db := newShared(fmt.Sprintf("%s:%d/%s", config.Host, config.Port, config.Database), postgres)
	db.writer = pool(config, writers, patience, nil)
	db.grouper = pool(config, 1, patience, nil)
	db.reader = pool(config, readers, patience, map[string]string{"default_transaction_read_only": "on"})
	schema, err := db.checkServer(ctx)
	if err != nil {
		return nil, errors.Join(err, db.writer.Close(), db.grouper.Close(), db.reader.Close())
	}
	db.locate(schema, config.RuntimeParams["search_path"])
	go db.loop()
	return db, nil
}

// locate has the path name the schema that is written. Its address does not say which one
// that is: it may have several, those of its user ("$user") or none, and the server's options or
// a setting of the user name another.
func (db *DB) locate(schema, asked string) {
	address := db.path
	if schema != "public" {
		db.path += "?search_path=" + schema
	}
	if was := address + "?search_path=" + asked; asked != "" && was != db.path && !strings.Contains(asked, "$user") {
		db.was = was
	}
}

// settings are what the promises of this package rest on, whatever the server's own
// defaults are. An address may name others, but none of the weaker ones.
var settings = map[string]string{
	"application_name":                    "gpupay",
	"synchronous_commit":                  "on", // an acknowledged voucher is on disk
	"default_transaction_isolation":       "read committed",
	"lock_timeout":                        "10s",
	"statement_timeout":                   "30s", // patience: what nobody waits for holds no lock
	"idle_in_transaction_session_timeout": "30s", // a process that hangs must not hold a channel
	"tcp_keepalives_idle":                 "5",   // nor one whose machine is gone a lock
	"tcp_keepalives_interval":             "2",
	"tcp_keepalives_count":                "3",
	"tcp_user_timeout":                    "15s",
}

// pool connects, and then sets what has to be in force: poolers refuse or drop
// what a client asks for as it connects. Of several servers in the address only one
// that can be written is taken, also to read from: a standby is behind, and shows
// less than was accepted, charged or ended.
func pool(config *pgx.ConnConfig, connections int, wait time.Duration, more map[string]string) *sqlx.DB {
	c := config.Copy()
	c.ValidateConnect, c.Tracer = writable, deadline(wait)
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 5 * time.Second
	}
	want := maps.Clone(settings)
	for name, value := range c.RuntimeParams {
		if name == "options" { // of the server's command line: it cannot be set later
			continue
		}
		delete(c.RuntimeParams, name)
		if value != "" && value != "off" && value != "local" && value != "0" { // 0 is a timeout that never comes
			want[name] = value
		}
	}
	maps.Copy(want, more)
	db := sqlx.NewDb(stdlib.OpenDB(*c, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		return configure(ctx, conn, want)
	}), stdlib.OptionShouldPing(ping), stdlib.OptionResetSession(usable)), driverName)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db
}

// errReadOnly is a server that cannot be written, such as a standby.
var errReadOnly = errors.New("cannot be written")

// writable refuses a connection to a server that cannot be written.
func writable(ctx context.Context, conn *pgconn.PgConn) error {
	if err := pgconn.ValidateConnectTargetSessionAttrsReadWrite(ctx, conn); err != nil {
		return fmt.Errorf("%w: %w", errReadOnly, err)
	}
	return nil
}

// ping asks a connection that was idle whether it lives, in place of the driver, which
// would wait for ever: one that does not answer is closed.
func ping(ctx context.Context, p stdlib.ShouldPingParams) bool {
	if p.IdleDuration > time.Second {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		_ = p.Conn.Ping(ctx)
	}
	return false
}

// usable has another connection take the place of a closed one.
func usable(_ context.Context, conn *pgx.Conn) error {
	if conn.IsClosed() {
		return driver.ErrBadConn
	}
	return nil
}

// deadline ends each query, with the reading of its rows, on a connection that is
// dead and does not say so. The driver drops the connection then.
type deadline time.Duration

type cancelKey struct{}

func (d deadline) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(d))
	return context.WithValue(ctx, cancelKey{}, cancel)
}

func (d deadline) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if cancel, ok := ctx.Value(cancelKey{}).(context.CancelFunc); ok {
		cancel()
	}
}

// verified are the settings without which money is lost: they are read back.
var verified = []string{"synchronous_commit", "default_transaction_isolation", "default_transaction_read_only"}

// configure sets what one session needs and makes sure that it is in force.
func configure(ctx context.Context, conn *pgx.Conn, want map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if _, err := conn.Exec(ctx, "SELECT set_config($1, $2, false)", name, want[name]); err != nil {
			return fmt.Errorf("setting %s to %q: %w", name, want[name], err)
		}
	}
	for _, name := range verified {
		if want[name] == "" {
			continue
		}
		var got string
		if err := conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&got); err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		if got != want[name] {
			return fmt.Errorf("%s is %q after it was set to %q: connect to PostgreSQL directly, or through a pooler that keeps sessions (pool_mode = session)", name, got, want[name])
		}
	}
	return nil
}

// checkServer refuses a server that cannot do what durability rests on, and says which
// schema is written.
func (db *shared) checkServer(ctx context.Context) (schema string, err error) {
	var s struct {
		Fsync   string `db:"fsync"`
		Version int    `db:"version"`
		Schema  string `db:"schema"`
	}
	err = db.writer.GetContext(ctx, &s, `SELECT current_setting('fsync') AS fsync, current_setting('server_version_num')::int AS version, COALESCE(current_schema(), '') AS schema`)
	switch {
	case err != nil:
		return "", db.explain(err)
	case s.Fsync != "on":
		return "", fmt.Errorf("store %s: the server has fsync %s: a power cut would lose vouchers: set fsync = on", db.path, s.Fsync)
	case s.Version < 120000:
		return "", fmt.Errorf("store %s: the server is PostgreSQL %d, this needs 12 or newer", db.path, s.Version/10000)
	}
	return s.Schema, nil
}

// alone runs fn in a transaction of its own, again where another transaction
// stood in the way.
func (db *shared) alone(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	db.mu.RLock() // Close waits
	defer db.mu.RUnlock()
	if db.closed {
		return fmt.Errorf("store %s: %w", db.path, ErrClosed)
	}
	for try := 0; ; try++ {
		err := db.transact(ctx, fn)
		if try == retries || !transient(err) || ctx.Err() != nil {
			return db.explain(err)
		}
		time.Sleep(time.Duration(rand.IntN(1+10*try)) * time.Millisecond)
	}
}

// transact does not let the caller's context cut the commit: nobody is told that
// a write failed which is on disk. It cuts the wait for a connection.
func (db *shared) transact(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	waiting, done := context.WithTimeout(ctx, patience)
	conn, err := db.writer.Connx(waiting)
	done()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	tx, err := conn.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	if err := contained(tx, fn); err != nil {
		tx.Rollback()
		return err
	}
	return tx.Commit()
}

// transient reports a transaction that was undone because of another one, and
// can be run again.
func transient(err error) bool {
	var fault *pgconn.PgError
	return errors.As(err, &fault) && (fault.Code == "40001" || fault.Code == "40P01") // serialization failure, deadlock
}

// serverAdvice is what an operator does about the surroundings' faults, by
// PostgreSQL's error code.
var serverAdvice = map[string]string{
	"25006": "the server is read-only: name the primary, or make it writable",
	"28000": "the server refuses this user: check the address",
	"28P01": "the password is wrong: check the address",
	"3D000": "the database does not exist: create it (CREATE DATABASE)",
	"42501": "this user may not do that: give it its own database, or the right to create tables",
	"53100": "the server's disk is full: free some space",
	"53300": "the server has no connection left: raise max_connections",
	"55P03": "another process holds a row locked: see pg_stat_activity",
	"57014": "the server did not answer in time: see pg_stat_activity",
	"57P01": "the server is shutting down: start it, nothing that was acknowledged is lost",
	"57P03": "the server is starting: wait for it",
	"XX001": "the server's data is damaged: stop, and restore it from a backup",
}

func (db *shared) explainServer(err error) error {
	var fault *pgconn.PgError
	if errors.As(err, &fault) {
		if what, ok := serverAdvice[fault.Code]; ok {
			return fmt.Errorf("store %s: %s: %w", db.path, what, err)
		}
		return fmt.Errorf("store %s: %w", db.path, err)
	}
	if errors.Is(err, errReadOnly) {
		return fmt.Errorf("store %s: no server of the address can be written, as a standby cannot: name the primary: %w", db.path, err)
	}
	var refused *pgconn.ConnectError
	if errors.As(err, &refused) {
		return fmt.Errorf("store %s: the server cannot be reached: start it, or check the address: %w", db.path, err)
	}
	return err
}
