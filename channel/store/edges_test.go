package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
)

// TestFailedReadsAreSaid: a list that could not be read is not an empty one, or nothing would be settled.
func TestFailedReadsAreSaid(t *testing.T) { each(t, testFailedReadsAreSaid) }

func testFailedReadsAreSaid(t *testing.T, db *DB) {
	id := create(t, db, 1)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, read := range map[string]func() error{
		"named":     func() error { _, err := db.States(ended, []common.Hash{id}); return err },
		"all":       func() error { _, err := db.Payee().List(ended); return err },
		"by status": func() error { _, err := db.Payee().List(ended, stateOf(1).Status); return err },
		"unsettled": func() error { _, err := db.Payee().Unsettled(ended); return err },
		"payer's":   func() error { _, err := db.Payer().List(ended); return err },
	} {
		if err := read(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDamagedAmountIsNoZero: a column that holds no amount must not read as nothing owed.
func TestDamagedAmountIsNoZero(t *testing.T) {
	var a amount
	if err := a.Scan("12"); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("text for an amount: %v", err)
	}
	if err := a.Scan(nil); err == nil {
		t.Error("NULL for an amount")
	}
}

// TestOwnedFileThatDoesNotOpen: it is said why, and the lock is not kept.
func TestOwnedFileThatDoesNotOpen(t *testing.T) {
	if db, err := OpenAlone(t.Context(), filepath.Join(t.TempDir(), "nowhere", "a.db")); err == nil || db != nil {
		t.Errorf("a file in no directory: %v, %v", db, err)
	}
	path := filepath.Join(t.TempDir(), "a.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if db, err := OpenAlone(t.Context(), path); err == nil || db != nil || errors.Is(err, ErrInUse) {
			t.Errorf("a file that is no database: %v, %v", db, err)
		}
	}
}

// TestUnseenMoneyIsOfItsChannelAndPayee: what ended without being seen counts for its channel, for all of its payee's, for the token,
// and for one day.
func TestUnseenMoneyIsOfItsChannelAndPayee(t *testing.T) {
	each(t, testUnseenMoneyIsOfItsChannelAndPayee)
}

func testUnseenMoneyIsOfItsChannelAndPayee(t *testing.T, db *DB) {
	const day = "2026-01-01"
	own, beside, stranger, coin := stateOf(1).Terms, stateOf(2).Terms, stateOf(3).Terms, stateOf(4).Terms
	stranger.Payee, coin.Token = common.Address{9}, common.Address{9}
	for i, t2 := range []channel.Terms{own, own, beside, stranger, coin} {
		if err := db.Payer().Unseen(t.Context(), t2, common.Hash{31: byte(i)}, units(1<<(4*i)), day); err != nil {
			t.Fatal(err)
		}
	}
	for when, want := range map[string][3]uint64{day: {0x11, 0x111, 0x1111}, "2026-01-02": {}} {
		_, spent, err := db.Payer().Budget(t.Context(), own, when)
		if err != nil {
			t.Fatal(err)
		}
		one, payee, all, err := spent.Locked()
		if got := [3]uint64{one.Uint64(), payee.Uint64(), all.Uint64()}; err != nil || got != want {
			t.Errorf("on %s %x are locked by the channel, its payee and all, want %x (%v)", when, got, want, err)
		}
	}
}

// TestCutConnectionLosesNoWrite: of a write whose connection the server cuts an error is said, or it is on disk.
func TestCutConnectionLosesNoWrite(t *testing.T) {
	address := pgtest.URL(t)
	db, other := openAt(t, address), openAt(t, address)
	id := create(t, db, 1)
	for n := uint64(1); n <= 8; n++ {
		if _, err := other.View().Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
		err := db.Update(t.Context(), func(tx *sqlx.Tx) error {
			_, err := tx.Exec(`UPDATE payee_channels SET updated_at = $1 WHERE id = $2`, n, id)
			return err
		})
		if err != nil {
			continue
		}
		var kept uint64
		if err := other.View().Get(&kept, `SELECT updated_at FROM payee_channels WHERE id = $1`, id); err != nil || kept != n {
			t.Errorf("write %d is acknowledged, and %d is kept (%v)", n, kept, err)
		}
	}
}

// unreadable is a folder of migrations one of which the disk does not give out.
type unreadable struct{ fstest.MapFS }

var errDisk = errors.New("disk on fire")

func (u unreadable) ReadFile(name string) ([]byte, error) {
	if name == "postgres/0001_a.sql" {
		return nil, errDisk
	}
	return u.MapFS.ReadFile(name)
}

// TestUnreadMigrationIsNotDone: one that was not read, or not noted, must not count as applied.
func TestUnreadMigrationIsNotDone(t *testing.T) { each(t, testUnreadMigrationIsNotDone) }

func testUnreadMigrationIsNotDone(t *testing.T, db *DB) {
	file := fstest.MapFS{"0001_a.sql": &fstest.MapFile{Data: []byte("CREATE TABLE a (n INTEGER)")}}
	if err := db.Migrate(t.Context(), "unread", unreadable{file}); db.dialect == postgres && !errors.Is(err, errDisk) {
		t.Errorf("one that cannot be read: %v", err)
	}
	file["0001_a.sql"].Data = []byte("DROP TABLE migrations")
	if err := db.Migrate(t.Context(), "unnoted", file); err == nil {
		t.Error("one that cannot be noted")
	}
	if _, err := db.Payee().Create(t.Context(), stateOf(9)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
