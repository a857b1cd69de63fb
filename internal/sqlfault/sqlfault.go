// Package sqlfault has single statements of SQLite fail in tests, once at each place of the program that sends one.
//
// A place is the functions that a statement came through: a read that two callers share fails for each of them. What
// fails is as a disk that fails for a moment: the next try of the same statement succeeds. Each fault has words of its own, so
// that a test can ask whether the program has said it.
package sqlfault

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/mattn/go-sqlite3"

	"github.com/gpupay/gpupay/internal/fault"
)

const name = "sqlite3 that fails"

func init() {
	sql.Register(name, faulty{&sqlite3.SQLiteDriver{}})
	fault.SQLite = name
}

// A Disk holds databases whose statements fail.
type Disk struct {
	dir string

	mu     sync.Mutex
	armed  bool
	failed map[string]bool // by place
	faults []*Fault
}

// A Fault is the error of one statement.
type Fault struct {
	Number int
	Place  string // the functions that it came through, the innermost first
}

// Error is unlike that of any other fault.
func (f *Fault) Error() string {
	return fmt.Sprintf("the disk failed for a moment, fault %d.", f.Number)
}

// Unwrap has it explained as SQLite's own.
func (f *Fault) Unwrap() error { return sqlite3.Error{Code: sqlite3.ErrIoErr} }

var (
	mu    sync.Mutex
	disks []*Disk
)

// At has statements fail that are sent to databases within a directory, once the disk is armed.
func At(t testing.TB, dir string) *Disk {
	d := &Disk{dir: dir, failed: map[string]bool{}}
	mu.Lock()
	defer mu.Unlock()
	disks = append(disks, d)
	t.Cleanup(func() { d.Arm(false) })
	return d
}

// Arm begins or ends the faults.
func (d *Disk) Arm(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed = on
}

// Faults are those that there were.
func (d *Disk) Faults() []*Fault {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*Fault(nil), d.faults...)
}

// Said holds that a program has said every fault, in its log or in an error that it returned. Of places that silent names it may keep quiet; a
// fault of a write counts as said where the whole transaction failed then, and that was.
func (d *Disk) Said(t testing.TB, text string, silent map[string]string) {
	t.Helper()
	faults := d.Faults()
	said := func(i int) bool { return i < len(faults) && strings.Contains(text, faults[i].Error()) }
	for i, f := range faults {
		quiet := said(i) || f.writes() && said(i+1) && faults[i+1].writes()
		for place := range silent {
			quiet = quiet || strings.Contains(f.Place, place)
		}
		if !quiet {
			t.Errorf("nothing is said of fault %d at\n\t%s", f.Number, strings.ReplaceAll(f.Place, " < ", "\n\t< "))
		}
	}
	t.Logf("%d faults", len(faults))
}

// writes reports whether a fault is within the transaction that writers share.
func (f *Fault) writes() bool { return strings.Contains(f.Place, "channel/store.(*group)") }

// Told makes a call until nothing of it fails: one in which a statement fails has to return that error.
func (d *Disk) Told(t testing.TB, call func() error) {
	t.Helper()
	for {
		before := len(d.Faults())
		d.Arm(true)
		err := call()
		d.Arm(false)
		faults := d.Faults()[before:]
		if len(faults) == 0 {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		for i, f := range faults {
			if (err == nil || !strings.Contains(err.Error(), f.Error())) && i == len(faults)-1 {
				t.Errorf("%v does not tell fault %d at\n\t%s", err, f.Number, strings.ReplaceAll(f.Place, " < ", "\n\t< "))
			}
		}
	}
}

// depth is how many of the program's functions make a place.
const depth = 6

// place names the functions of the program that a statement comes through, but those that every statement does.
func place() string {
	var callers [64]uintptr
	frames := runtime.CallersFrames(callers[:runtime.Callers(3, callers[:])])
	var names []string
	for {
		frame, more := frames.Next()
		function, ours := strings.CutPrefix(frame.Function, "github.com/gpupay/gpupay/")
		if ours && !strings.HasPrefix(function, "channel/store.(*DB)") && !strings.HasPrefix(function, "internal/sqlfault") {
			names = append(names, fmt.Sprintf("%s:%d", function, frame.Line))
		}
		if !more || len(names) == depth {
			return strings.Join(names, " < ")
		}
	}
}

// next is the error of a statement, if it is to fail.
func (d *Disk) next() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.armed {
		return nil
	}
	at := place()
	if at == "" || d.failed[at] {
		return nil
	}
	d.failed[at] = true
	f := &Fault{Number: len(d.faults) + 1, Place: at}
	d.faults = append(d.faults, f)
	return f
}

type faulty struct{ *sqlite3.SQLiteDriver }

// Open connects to a database, as one that fails if it is on such a disk.
func (f faulty) Open(source string) (driver.Conn, error) {
	c, err := f.SQLiteDriver.Open(source)
	if err != nil {
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	for _, d := range disks {
		if strings.HasPrefix(source, "file:"+d.dir+"/") {
			return &conn{c.(*sqlite3.SQLiteConn), d}, nil
		}
	}
	return c, nil
}

type conn struct {
	*sqlite3.SQLiteConn
	disk *Disk
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.fails(query); err != nil {
		return nil, err
	}
	return c.SQLiteConn.ExecContext(ctx, query, args)
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.fails(query); err != nil {
		return nil, err
	}
	return c.SQLiteConn.QueryContext(ctx, query, args)
}

// fails leaves alone what ends a transaction: SQLite's own would go on without a word.
func (c *conn) fails(query string) error {
	if word, _, _ := strings.Cut(strings.ToUpper(query), " "); word == "ROLLBACK" || word == "PRAGMA" {
		return nil
	}
	return c.disk.next()
}

// BeginTx gives a transaction whose end fails as statements do: what it wrote is undone then.
func (c *conn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	begun, err := c.SQLiteConn.BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	return tx{begun, c.disk}, nil
}

type tx struct {
	driver.Tx
	disk *Disk
}

func (t tx) Commit() error {
	if err := t.disk.next(); err != nil {
		_ = t.Rollback()
		return err
	}
	return t.Tx.Commit()
}

func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.fails(query); err != nil {
		return nil, err
	}
	return c.SQLiteConn.PrepareContext(ctx, query)
}

func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}
