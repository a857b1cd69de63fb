package store

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
)

// replicas opens one database several times: to the server they are as many
// processes.
func replicas(t *testing.T, n int) []*DB {
	address := pgtest.URL(t)
	dbs := make([]*DB, n)
	var wait sync.WaitGroup
	for i := range dbs {
		wait.Go(func() { // at once: they migrate an empty database together
			db, err := Open(context.Background(), address)
			if err != nil {
				t.Error(err)
			}
			dbs[i] = db
		})
	}
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, db := range dbs {
		t.Cleanup(func() { db.Close() })
	}
	return dbs
}

// TestReplicasLoseAndDoubleNothing: 99 writers over three connections to one
// database change the same few channels at once, by vouchers and by charges in
// transactions of their own; every change counts once.
func TestReplicasLoseAndDoubleNothing(t *testing.T) {
	dbs := replicas(t, 3)
	ctx := context.Background()
	ids := []byte{1, 2, 3, 4}
	for _, salt := range ids {
		create(t, dbs[0], salt)
	}
	const writers, rounds = 99, 10
	var wait sync.WaitGroup
	for w := range writers {
		wait.Go(func() {
			db := dbs[w%len(dbs)]
			for r := range rounds {
				id := stateOf(ids[(w+r)%len(ids)]).ID
				_, err := db.Payee().Update(ctx, id, func(s *channel.State) error {
					s.Accepted.AddUint64(&s.Accepted, 1)
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				err = db.Update(ctx, func(tx *sqlx.Tx) error {
					s, err := lockPayee(t.Context(), tx, id)
					if err != nil {
						return err
					}
					return db.Charge(t.Context(), tx, id, *s.Spent.AddUint64(&s.Spent, 1))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	var accepted, spent uint64
	for _, salt := range ids {
		s := load(t, dbs[1], stateOf(salt).ID)
		accepted, spent = accepted+s.Accepted.Uint64(), spent+s.Spent.Uint64()
	}
	if accepted != writers*rounds || spent != writers*rounds {
		t.Errorf("accepted %d, spent %d; want %d each", accepted, spent, writers*rounds)
	}
}

// TestAVoucherIsSeenByAll: what one process acknowledged, every other one reads
// and none can lower.
func TestAVoucherIsSeenByAll(t *testing.T) {
	dbs := replicas(t, 3)
	id := create(t, dbs[0], 1)
	for n := range uint64(30) {
		if err := raise(dbs[n%3], id, n+1); err != nil {
			t.Fatal(err)
		}
		for i, db := range dbs {
			if s := load(t, db, id); s.Accepted != units(n+1) {
				t.Fatalf("process %d sees %s after %d was accepted", i, s.Accepted.Dec(), n+1)
			}
		}
		if err := raise(dbs[(n+1)%3], id, n); n > 0 && (err == nil || !strings.Contains(err.Error(), "would fall")) {
			t.Fatalf("another process lowered it: %v", err)
		}
	}
	states, err := dbs[2].States(context.Background(), stateIDs(1, 9))
	if err != nil || len(states) != 1 || states[0].Accepted != units(30) {
		t.Errorf("States: %v, %v", states, err)
	}
}

func stateIDs(salts ...byte) (ids []common.Hash) {
	for _, s := range salts {
		ids = append(ids, stateOf(s).ID)
	}
	return ids
}

// TestGuardRefusesEveryWrite: through a guard that fails nothing is written, by
// no way there is.
func TestGuardRefusesEveryWrite(t *testing.T) { each(t, testGuardRefusesEveryWrite) }

func testGuardRefusesEveryWrite(t *testing.T, db *DB) {
	ctx := context.Background()
	id := create(t, db, 1)
	var open atomic.Bool
	guarded := db.Guard(func(*sqlx.Tx) error {
		if open.Load() {
			return nil
		}
		return fmt.Errorf("not the leader")
	})
	writes := map[string]func() error{
		"update": func() error { return raise(guarded, id, 5) },
		"create": func() error { _, err := guarded.Payee().Create(ctx, stateOf(2)); return err },
		"own": func() error {
			return guarded.Update(ctx, func(tx *sqlx.Tx) error { return guarded.Charge(t.Context(), tx, id, units(3)) })
		},
		"tables": func() error {
			return guarded.Migrate(ctx, "test", fstest.MapFS{"0001_a.sql": {Data: []byte("CREATE TABLE a (n INTEGER)")}})
		},
	}
	for name, write := range writes {
		if err := write(); err == nil || !strings.Contains(err.Error(), "not the leader") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := load(t, db, id); !s.Accepted.IsZero() || !s.Spent.IsZero() {
		t.Errorf("written all the same: %+v", s)
	}
	open.Store(true)
	for name, write := range writes {
		if err := write(); err != nil {
			t.Errorf("%s with the guard open: %v", name, err)
		}
	}
	if s := load(t, db, id); s.Accepted != units(5) || s.Spent != units(3) {
		t.Errorf("kept %+v", s)
	}
	if err := raise(guarded, id, 4); err == nil {
		t.Error("lowered through a guard")
	}
}

// TestServersThatCannotBeUsed: one clear line each, without the password.
func TestServersThatCannotBeUsed(t *testing.T) {
	good := pgtest.Database(t)
	db := openAt(t, good)
	_, err := db.writer.Exec("DO $$BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET synchronous_commit = off'; END$$")
	if err != nil {
		t.Fatal(err)
	}
	var mode string
	if err := openAt(t, good).writer.Get(&mode, "SHOW synchronous_commit"); err != nil || mode != "on" {
		t.Errorf("a database that does not sync by default: %q, %v; want it to sync for vouchers", mode, err)
	}
	t.Chdir(t.TempDir()) // where a file would be made of an address that is taken for a path
	for address, says := range map[string]string{
		"postgres://u:hunter2@127.0.0.1:1/gpupay":        "cannot be reached",
		"postgres://u:hunter2@%zz/gpupay":                "postgres://user@host/database",
		"postgres://u:1/hunter2@127.0.0.1/gpupay":        "%2F",
		"postgres://u:x/hunter2@127.0.0.1/gpupay":        "%2F",
		"postgresql+psycopg://u:hunter2@127.0.0.1/x":     "neither the path of a file nor",
		"host=127.0.0.1 password=hunter2":                "neither the path of a file nor",
		strings.Replace(good, "@/test", "@/nowhere", 1):  "create it",
		strings.Replace(good, "gpupay@", "stranger@", 1): "check the address",
	} {
		db, err := Open(context.Background(), address)
		if err == nil {
			db.Close()
			t.Errorf("%s opened", address)
			continue
		}
		if !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v; want %q and no password", err, says)
		}
	}
}
