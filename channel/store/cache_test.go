package store

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
)

// onDisk reads a channel past the cache.
func onDisk(t *testing.T, db *DB, id common.Hash) channel.State {
	t.Helper()
	s, err := loadPayee(t.Context(), db.reader, id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What a writer undoes is not remembered, by its group or after it.
func TestCacheForgetsWhatWasUndone(t *testing.T) {
	db, ctx := newDB(t), t.Context()
	id := create(t, db, 1)
	charge := func(spent uint64, then error) error {
		return db.Update(ctx, func(tx *sqlx.Tx) error { return errors.Join(db.Charge(t.Context(), tx, id, units(spent)), then) })
	}
	if err := errors.Join(raise(db, id, 50), charge(30, nil)); err != nil {
		t.Fatal(err)
	}
	if err := charge(90, errors.New("undone")); err == nil {
		t.Fatal("no error")
	}
	if err := charge(40, nil); err != nil {
		t.Errorf("the charge that was undone still counts: %v", err)
	}
	got, err := db.Payee().Load(ctx, id)
	if want := onDisk(t, db, id); err != nil || !same(&got, &want) || got.Spent != units(40) {
		t.Errorf("%+v, %v; on disk %+v", got, err, want)
	}
}

// One group in which a charge is undone between others.
func TestCacheWithinAGroup(t *testing.T) {
	db, ctx := newDB(t), t.Context()
	id := create(t, db, 1)
	held, g := make(chan struct{}), make(chan struct{})
	go db.Update(ctx, func(*sqlx.Tx) error { close(held); <-g; return nil }) // holds the loop until all wait
	<-held
	steps := []struct {
		spent uint64
		fails bool
	}{{10, false}, {80, true}, {20, false}, {90, true}, {30, false}}
	errs := make(chan error, len(steps))
	for _, s := range steps {
		go func() {
			errs <- db.Update(ctx, func(tx *sqlx.Tx) error {
				now, err := db.changeIn(t.Context(), tx, id, func(s *channel.State) error { return nil })
				if err != nil || now.Spent.Uint64() > 30 {
					return errors.Join(err, errors.New("sees what was undone"))
				}
				if s.fails {
					_ = db.Charge(t.Context(), tx, id, units(s.spent))
					return errors.New("undone")
				}
				return db.Charge(t.Context(), tx, id, *now.Spent.AddUint64(&now.Spent, 10))
			})
		}()
	}
	for len(db.queue) < len(steps) {
		runtime.Gosched()
	}
	close(g)
	undone := 0
	for range steps {
		if err := <-errs; err != nil {
			undone++
			if err.Error() != "undone" {
				t.Error(err)
			}
		}
	}
	got, err := db.Payee().Load(ctx, id)
	if want := onDisk(t, db, id); err != nil || undone != 2 || !same(&got, &want) || got.Spent != units(30) {
		t.Errorf("%d undone, spent %s, %v; on disk %s", undone, got.Spent.Dec(), err, want.Spent.Dec())
	}
}

// A caller may do with a state what it likes.
func TestCacheIsNobodysToChange(t *testing.T) {
	db, ctx := newDB(t), t.Context()
	id := create(t, db, 1)
	if err := raise(db, id, 5); err != nil {
		t.Fatal(err)
	}
	got, err := db.Payee().Load(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	got.Signature[0] = 99
	if again, err := db.Payee().Load(ctx, id); err != nil || again.Signature[0] != 5 {
		t.Errorf("signature %x, %v", again.Signature, err)
	}
}

// Another program has written the file: the next write starts from what it left.
func TestCacheGivesWayToAnotherWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpupay.db")
	db, other := openAt(t, path), openAt(t, path)
	id := create(t, db, 1)
	if err := errors.Join(raise(db, id, 5), raise(other, id, 9)); err != nil {
		t.Fatal(err)
	}
	if err := raise(db, id, 7); err == nil || !strings.Contains(err.Error(), "would fall") {
		t.Errorf("a lower voucher was taken over the other program's: %v", err)
	}
	got, err := db.Payee().Load(context.Background(), id)
	if err != nil || got.Accepted != units(9) {
		t.Errorf("accepted %s, %v", got.Accepted.Dec(), err)
	}
}

// A full cache starts anew and loses nothing.
func TestCacheIsBounded(t *testing.T) {
	var c cache
	for i, want := range []int{maxCached / 2, maxCached, maxCached / 2} {
		batch := make(map[common.Hash]*entry)
		for n := range maxCached / 2 {
			batch[common.Hash{byte(i), byte(n >> 16), byte(n >> 8), byte(n)}] = &entry{}
		}
		c.keep(batch)
		if len(c.states) != want {
			t.Errorf("%d states are kept after %d batches, want %d", len(c.states), i+1, want)
		}
	}
	if _, ok := c.get(common.Hash{2}); !ok {
		t.Error("the newest are not kept")
	}
}
