package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
)

func newDB(t testing.TB) *DB {
	t.Helper()
	db, err := Open(context.Background(), filepath.Join(t.TempDir(), "gpupay.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// each runs a test against every database: what a store promises does not depend
// on it.
func each(t *testing.T, test func(t *testing.T, db *DB)) {
	t.Run("sqlite", func(t *testing.T) { test(t, newDB(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, openAt(t, pgtest.URL(t))) })
}

func openAt(t testing.TB, address string) *DB {
	t.Helper()
	db, err := Open(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func units(n uint64) uint256.Int { return *uint256.NewInt(n) }

func stateOf(salt byte) channel.State {
	terms := channel.Terms{ChainID: 31337, Escrow: common.Address{1}, Payer: common.Address{2},
		Payee: common.Address{3}, Token: common.Address{4}, Salt: common.Hash{31: salt}}
	return channel.State{ID: terms.ID(), Terms: terms, Deposit: units(1000), Status: channel.Open}
}

func create(t testing.TB, db *DB, salt byte) common.Hash {
	t.Helper()
	s, err := db.Payee().Create(context.Background(), stateOf(salt))
	if err != nil {
		t.Fatal(err)
	}
	return s.ID
}

func load(t testing.TB, db *DB, id common.Hash) channel.State {
	t.Helper()
	s, err := db.Payee().Load(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func raise(db *DB, id common.Hash, n uint64) error {
	_, err := db.Payee().Update(context.Background(), id, func(s *channel.State) error {
		s.Accepted, s.Signature = units(n), []byte{byte(n)}
		return nil
	})
	return err
}

func TestRoundTrip(t *testing.T) { each(t, testRoundTrip) }

func testRoundTrip(t *testing.T, db *DB) {
	ctx := context.Background()
	want := stateOf(1)
	want.Terms.ChainID, want.Terms.AuthorizedSigner = 1<<63+5, common.Address{9} // over what SQL's integers hold
	want.ID = want.Terms.ID()
	want.Deposit, want.Settled, want.Accepted, want.Spent = channel.MaxAmount(), units(2), units(1<<63), units(0)
	want.Signature, want.Status, want.CloseRequestedAt = []byte{0, 1, 0}, channel.Closing, 1_700_000_000
	if _, err := db.Payee().Create(ctx, want); err != nil {
		t.Fatal(err)
	}
	got := load(t, db, want.ID)
	if !same(&got, &want) || got.Terms != want.Terms || got.ID != want.ID || got.UpdatedAt.IsZero() {
		t.Errorf("read back %+v, want %+v", got, want)
	}
	if _, err := db.Payee().Load(ctx, common.Hash{1}); !errors.Is(err, channel.ErrUnknown) {
		t.Errorf("unknown channel: %v", err)
	}
}

var lessThan = map[dialect]string{sqlite: "SELECT ? < ?", postgres: "SELECT ?::bytea < ?::bytea"}

// TestOrderOfBytesIsOrderOfNumbers: SQL compares amounts, so bytes must order as
// numbers do, over every width.
func TestOrderOfBytesIsOrderOfNumbers(t *testing.T) { each(t, testOrderOfBytesIsOrderOfNumbers) }

func testOrderOfBytesIsOrderOfNumbers(t *testing.T, db *DB) {
	before := units(0)
	for shift := range uint(96) {
		next := *new(uint256.Int).Lsh(uint256.NewInt(1), shift)
		var less bool
		if err := db.View().Get(&less, db.View().Rebind(lessThan[db.dialect]), amount(before), amount(next)); err != nil || !less {
			t.Errorf("%s is not below %s: %v", before.Dec(), next.Dec(), err)
		}
		before = next
	}
	if _, err := amount(uint256.Int{0, 0, 1}).Value(); !errors.Is(err, channel.ErrAmount) {
		t.Errorf("an amount over the column: %v", err)
	}
}

// TestCreateKeepsWhatIsKept: registering a channel again forgets no money.
func TestCreateKeepsWhatIsKept(t *testing.T) { each(t, testCreateKeepsWhatIsKept) }

func testCreateKeepsWhatIsKept(t *testing.T, db *DB) {
	id := create(t, db, 1)
	if err := raise(db, id, 7); err != nil {
		t.Fatal(err)
	}
	if s, err := db.Payee().Create(context.Background(), stateOf(1)); err != nil || s.Accepted != units(7) {
		t.Errorf("created again: accepted %s, %v", s.Accepted.Dec(), err)
	}
}

// TestLastGuard: even a caller that forgot to compare cannot lower what was
// accepted, charged or signed.
func TestLastGuard(t *testing.T) { each(t, testLastGuard) }

func testLastGuard(t *testing.T, db *DB) {
	ctx := context.Background()
	id := create(t, db, 1)
	if err := raise(db, id, 7); err != nil {
		t.Fatal(err)
	}
	if err := raise(db, id, 6); !errors.Is(err, channel.ErrLower) {
		t.Errorf("accepted lowered: %v", err)
	}
	lowered := load(t, db, id)
	lowered.Accepted = units(6)
	err := db.Update(ctx, func(tx *sqlx.Tx) error { return savePayee(tx, lowered) })
	if !errors.Is(err, channel.ErrLower) {
		t.Errorf("accepted lowered in SQL: %v", err)
	}
	payer := channel.PayerState{ID: id, Terms: stateOf(1).Terms, Status: channel.Open, Signed: units(7)}
	if _, err := db.Payer().Create(ctx, payer, "", func(channel.Budget) error { return nil }); err != nil {
		t.Fatal(err)
	}
	_, err = db.Payer().Update(ctx, id, "2026-01-01", func(s *channel.PayerState, _ channel.Budget) error {
		s.Signed = units(6)
		return nil
	})
	if !errors.Is(err, channel.ErrLower) {
		t.Errorf("signed lowered: %v", err)
	}
}

// held fills the queue while the commit loop is held, so that all its writers
// are in one group, and returns their errors.
func held(t *testing.T, db *DB, writers ...func() error) []error {
	t.Helper()
	hold, entered := make(chan struct{}), make(chan struct{})
	enter := sync.OnceFunc(func() { close(entered) })
	var wait sync.WaitGroup
	wait.Go(func() {
		defer enter()
		if err := db.Update(context.Background(), func(*sqlx.Tx) error { enter(); <-hold; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-entered
	errs := make([]error, len(writers))
	for i, write := range writers {
		wait.Go(func() { errs[i] = write() })
		for len(db.queue) <= i { // in order
			runtime.Gosched()
		}
	}
	close(hold)
	wait.Wait()
	return errs
}

func TestGroupIsolatesErrors(t *testing.T) {
	db := newDB(t)
	ctx := context.Background()
	a, b := create(t, db, 1), create(t, db, 2)
	mine := errors.New("mine")
	cancelled, cancel := context.WithCancel(ctx)
	insert := func(tx *sqlx.Tx, name string) error {
		_, err := tx.Exec("INSERT INTO migrations VALUES ('test', 1, ?, 0)", name)
		return err
	}
	errs := held(t, db,
		func() error { return raise(db, a, 10) },
		func() error {
			return db.Update(ctx, func(tx *sqlx.Tx) error { return errors.Join(insert(tx, "undone"), mine) })
		},
		func() error { return raise(db, a, 9) }, // lower than its neighbour in the group
		func() error { return db.Update(ctx, func(tx *sqlx.Tx) error { panic("boom") }) },
		func() error { return db.Update(ctx, func(tx *sqlx.Tx) error { return insert(tx, "kept") }) },
		func() error { return db.Update(ctx, func(tx *sqlx.Tx) error { return insert(tx, "twice") }) }, // breaks the key
		func() error { return db.Update(cancelled, func(tx *sqlx.Tx) error { return insert(tx, "late") }) },
		func() error {
			cancel()
			return db.Update(ctx, func(tx *sqlx.Tx) error { return db.Charge(t.Context(), tx, a, units(4)) })
		},
		func() error { return raise(db, common.Hash{7}, 1) },
		func() error { return raise(db, b, 20) },
	)
	for i, want := range []string{"", "mine", "would fall", "boom", "", "UNIQUE", "context canceled", "", "unknown channel", ""} {
		if got := fmt.Sprint(errs[i]); (errs[i] != nil) != (want != "") || !strings.Contains(got, want) {
			t.Errorf("writer %d: %v, want %q", i, errs[i], want)
		}
	}
	if s := load(t, db, a); s.Accepted != units(10) || s.Spent != units(4) || s.Signature[0] != 10 {
		t.Errorf("first channel: %+v", s)
	}
	if s := load(t, db, b); s.Accepted != units(20) {
		t.Errorf("second channel: %+v", s)
	}
	var names []string
	if err := db.View().Select(&names, "SELECT name FROM migrations WHERE component = 'test'"); err != nil || fmt.Sprint(names) != "[kept]" {
		t.Errorf("rows %v, %v; want the kept one only", names, err)
	}
}

// TestGroupSurvivesALostTransaction: SQLite rolls everything back where a
// statement is interrupted. The one whose context ended is answered so; the
// others' work is done again.
func TestGroupSurvivesALostTransaction(t *testing.T) {
	db := newDB(t)
	ctx := context.Background()
	a, b := create(t, db, 1), create(t, db, 2)
	var ran int
	errs := held(t, db,
		func() error { return raise(db, a, 10) },
		func() error {
			return db.Update(ctx, func(tx *sqlx.Tx) error {
				ran++
				_, err := tx.Exec("ROLLBACK") // as SQLite does by itself
				return errors.Join(err, context.Canceled)
			})
		},
		func() error { return raise(db, b, 20) },
	)
	if errs[0] != nil || !errors.Is(errs[1], context.Canceled) || errs[2] != nil || ran != 1 {
		t.Errorf("answers %v, the culprit ran %d times", errs, ran)
	}
	if load(t, db, a).Accepted != units(10) || load(t, db, b).Accepted != units(20) {
		t.Error("a neighbour's accepted voucher is gone")
	}
}

// TestGroupThatCannotCommitFailsAll: nobody is told that a write is on disk
// which is not.
func TestGroupThatCannotCommitFailsAll(t *testing.T) {
	db := newDB(t)
	a, b := create(t, db, 1), create(t, db, 2)
	errs := held(t, db,
		func() error {
			return db.Update(context.Background(), func(tx *sqlx.Tx) error {
				_, err := tx.Exec("PRAGMA query_only = true") // from here on nothing can be written
				return err
			})
		},
		func() error { return raise(db, a, 10) },
		func() error { return raise(db, b, 20) },
	)
	for i, err := range errs {
		if err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("writer %d: %v", i, err)
		}
	}
	setWriter(t, db, "PRAGMA query_only = false")
	if s := load(t, db, a); !s.Accepted.IsZero() {
		t.Errorf("kept %s", s.Accepted.Dec())
	}
	if err := raise(db, a, 11); err != nil {
		t.Errorf("after recovery: %v", err)
	}
}

func TestReadOnlyDatabase(t *testing.T) {
	db := newDB(t)
	id := create(t, db, 1)
	setWriter(t, db, "PRAGMA query_only = true")
	err := raise(db, id, 5)
	if err == nil || !strings.Contains(err.Error(), "the file is read-only") || !strings.Contains(err.Error(), db.path) {
		t.Errorf("read-only: %v", err)
	}
}

func setWriter(t *testing.T, db *DB, pragma string) {
	t.Helper()
	if _, err := db.writer.Exec(pragma); err != nil {
		t.Fatal(err)
	}
}

func TestFullDisk(t *testing.T) {
	db := newDB(t)
	id := create(t, db, 1)
	setWriter(t, db, "PRAGMA max_page_count = 1") // SQLite takes the present size for the least
	var err error
	for salt := byte(2); err == nil && salt < 255; salt++ {
		_, err = db.Payee().Create(context.Background(), stateOf(salt))
	}
	if err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Fatalf("full: %v", err)
	}
	setWriter(t, db, "PRAGMA max_page_count = 100000")
	if err := raise(db, id, 5); err != nil {
		t.Errorf("after space was freed: %v", err)
	}
}

func TestLockedDatabase(t *testing.T) {
	db := newDB(t)
	id := create(t, db, 1)
	setWriter(t, db, "PRAGMA busy_timeout = 20")
	other, err := connect(db.path, "_txlock=immediate", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tx, err := other.Beginx()
	if err != nil {
		t.Fatal(err)
	}
	if err := raise(db, id, 5); err == nil || !strings.Contains(err.Error(), "another process holds the database locked") {
		t.Errorf("locked: %v", err)
	}
	if s := load(t, db, id); !s.Accepted.IsZero() {
		t.Error("reading is blocked or wrong while another process writes")
	}
	tx.Rollback()
	if err := raise(db, id, 5); err != nil {
		t.Errorf("after it was unlocked: %v", err)
	}
}

func TestBadFiles(t *testing.T) {
	dir := t.TempDir()
	noise := filepath.Join(dir, "noise.db")
	if err := os.WriteFile(noise, []byte(strings.Repeat("not a database. ", 300)), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		noise: "not a database", dir: "writable by this user",
		filepath.Join(dir, "no", "such.db"): "directory must exist", "": "name a file", ":memory:": "name a file",
	} {
		db, err := Open(context.Background(), path)
		if err == nil {
			db.Close()
			t.Errorf("%q opened", path)
		} else if !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", path, err, says)
		}
	}
}

func TestPathsAreTakenLiterally(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?mode=memory&x=%41#.db")
	db, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	id := create(t, db, 1)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v: want a file for its owner only", info, err)
	}
	if db, err = Open(context.Background(), path); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	load(t, db, id)
}

func TestViewOnlyReads(t *testing.T) { each(t, testViewOnlyReads) }

func testViewOnlyReads(t *testing.T, db *DB) {
	if _, err := db.View().Exec("DELETE FROM payee_channels"); err == nil {
		t.Error("a reader deleted vouchers")
	}
}

func TestSettings(t *testing.T) {
	db := newDB(t)
	for pragma, want := range map[string]int{"synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000, "wal_autocheckpoint": 8192} {
		var got int
		if err := db.writer.Get(&got, "PRAGMA "+pragma); err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", pragma, got, err, want)
		}
	}
}

func TestClose(t *testing.T) { each(t, testClose) }

func testClose(t *testing.T, db *DB) {
	id := create(t, db, 1)
	if err := errors.Join(db.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	if err := raise(db, id, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if err := db.Update(done, func(*sqlx.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("write with an ended context: %v", err)
	}
}

func TestMigrate(t *testing.T) { each(t, testMigrate) }

func testMigrate(t *testing.T, db *DB) {
	ctx := context.Background()
	file := func(sql string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(sql)} }
	one := fstest.MapFS{"0001_a.sql": file("CREATE TABLE a (n INTEGER); INSERT INTO a VALUES (1);")}
	two := fstest.MapFS{"0001_a.sql": one["0001_a.sql"], "0002_b.sql": file("INSERT INTO a VALUES (2)")}
	broken := fstest.MapFS{"0001_a.sql": one["0001_a.sql"], "0002_b.sql": two["0002_b.sql"],
		"0003_c.sql": file("INSERT INTO a VALUES (3); INSERT INTO nowhere VALUES (1)")}
	for i, fsys := range []fstest.MapFS{one, one, two, two} {
		if err := db.Migrate(ctx, "test", fsys); err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
	}
	if err := db.Migrate(ctx, "test", broken); err == nil || !strings.Contains(err.Error(), "0003_c.sql") {
		t.Errorf("broken migration: %v", err)
	}
	var sum int
	if err := db.View().Get(&sum, "SELECT sum(n) FROM a"); err != nil || sum != 3 {
		t.Errorf("applied to %d, %v; want each once and the broken one not at all", sum, err)
	}
	if err := db.Migrate(ctx, "test", one); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "run a newer program") {
		t.Errorf("newer database: %v", err)
	}
	for _, name := range []string{"0002_hole.sql", "1_short.sql", "abcd_x.sql"} {
		err := db.Migrate(ctx, "other", fstest.MapFS{name: file("")})
		if err == nil || !strings.Contains(err.Error(), "want number 0001, as in 0001_name.sql") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNewerDatabaseIsRefusedAtOpen: an old program must not touch what it could
// misread.
func TestNewerDatabaseIsRefusedAtOpen(t *testing.T) {
	file, server := filepath.Join(t.TempDir(), "gpupay.db"), pgtest.URL(t)
	for _, address := range []string{file, server} {
		db := openAt(t, address)
		err := db.Update(context.Background(), func(tx *sqlx.Tx) error {
			_, err := tx.Exec("INSERT INTO migrations VALUES ('channel', 999, 'future', 0)")
			return err
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		for _, open := range []func(context.Context, string) (*DB, error){Open, OpenToRead, OpenAlone} {
			if db, err := open(context.Background(), address); !errors.Is(err, ErrNewer) || db != nil {
				t.Errorf("opened a newer database: %v", err)
			}
		}
	}
}

// TestChargeWithARecord: the usage record and what it charges are kept together
// or not at all.
func TestChargeWithARecord(t *testing.T) { each(t, testChargeWithARecord) }

func testChargeWithARecord(t *testing.T, db *DB) {
	ctx := context.Background()
	id := create(t, db, 1)
	both := func(version int, spent uint64) error {
		return db.Update(ctx, func(tx *sqlx.Tx) error {
			if _, err := tx.Exec(tx.Rebind("INSERT INTO migrations VALUES ('record', ?, '', 0)"), version); err != nil {
				return err
			}
			return db.Charge(t.Context(), tx, id, units(spent))
		})
	}
	if err := both(1, 100); err != nil {
		t.Fatal(err)
	}
	if err := both(1, 200); err == nil {
		t.Error("the same record twice")
	}
	if err := both(2, 99); !errors.Is(err, channel.ErrLower) {
		t.Errorf("a lower charge: %v", err)
	}
	var records int
	if err := db.View().Get(&records, "SELECT count(*) FROM migrations WHERE component = 'record'"); err != nil || records != 1 {
		t.Errorf("%d records, %v; want 1", records, err)
	}
	if s := load(t, db, id); s.Spent != units(100) {
		t.Errorf("spent %s, want 100", s.Spent.Dec())
	}
}
