package store

import (
	"context"
	"errors"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
)

// TestEachFieldIsInItsOwnColumn: the row, not the copy in memory, by each way
// that a change is written.
func TestEachFieldIsInItsOwnColumn(t *testing.T) { each(t, testEachFieldIsInItsOwnColumn) }

func testEachFieldIsInItsOwnColumn(t *testing.T, db *DB) {
	ctx := context.Background()
	id := create(t, db, 1)
	change := func(n uint64) func(*channel.State) error {
		return func(s *channel.State) error {
			s.Deposit, s.Settled, s.Accepted, s.Spent = units(n+4), units(n+1), units(n+3), units(n+2)
			s.Signature, s.Status, s.CloseRequestedAt = []byte{byte(n), 9}, channel.Closing, n+5
			return nil
		}
	}
	for name, write := range map[string]func(uint64) (channel.State, error){
		"group": func(n uint64) (channel.State, error) { return db.Payee().Update(ctx, id, change(n)) },
		"own transaction": func(n uint64) (s channel.State, err error) {
			err = db.Update(ctx, func(tx *sqlx.Tx) error {
				s, err = db.changeIn(t.Context(), tx, id, change(n))
				return err
			})
			return s, err
		},
	} {
		before, err := loadPayee(ctx, db.reader, id)
		n := before.Accepted.Uint64() + 1<<40
		want, failed := write(n)
		got, unread := loadPayee(ctx, db.reader, id)
		if err := errors.Join(err, failed, unread); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !same(&got, &want) || got.Accepted != units(n+3) || !got.UpdatedAt.Equal(want.UpdatedAt) {
			t.Errorf("%s: the row holds\n%+v, want\n%+v", name, got, want)
		}
	}
}
