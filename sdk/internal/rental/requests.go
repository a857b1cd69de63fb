package rental

import (
	"context"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
)

// Request is one of a lease that shares GPUs, from before it is sent until a record names it.
type Request struct {
	ID      int64 `db:"id"`
	Started int64 `db:"started"` // nanoseconds of the host's clock
	Epoch   int64 `db:"epoch"`   // of that clock
	Wall    int64 `db:"wall"`    // when it was started, in unix nanoseconds
	Most    int64 `db:"most"`    // nanoseconds after which its renter ends it; 0: it lets it run

	Ended  *int64 `db:"ended"` // by the same clock as Started; nil: it runs, or its process died
	Failed Ending `db:"failed"`
}

// Ending is how a request ended here.
type Ending int

// A request is done or was aborted, broke off near a limit at which its provider may end it, or failed: it was answered with a server's error,
// or broke off far from any limit.
const (
	Done Ending = iota
	Broken
	Errored
)

// AddRequest puts a request on disk before it is sent: one that a record names and nobody knows is not paid.
func (s Store) AddRequest(ctx context.Context, channel common.Hash, r Request) error {
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO rental_requests (channel, id, started, epoch, wall, most) VALUES (?, ?, ?, ?, ?, ?)`),
			channel.Hex(), r.ID, r.Started, r.Epoch, r.Wall, r.Most)
		return err
	})
}

// EndRequest puts on disk how a request ended, unless a record has named it: who is started anew pays it no longer than it took.
func (s Store) EndRequest(ctx context.Context, channel common.Hash, id, ended int64, failed Ending) error {
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE rental_requests SET ended = ?, failed = ? WHERE channel = ? AND id = ?`),
			ended, failed, channel.Hex(), id)
		return err
	})
}

// Requests are those of a channel that no record has named.
func (s Store) Requests(ctx context.Context, channel common.Hash) (all []Request, err error) {
	db := s.DB.View()
	err = db.SelectContext(ctx, &all, db.Rebind(`SELECT id, started, epoch, wall, most, ended, failed FROM rental_requests WHERE channel = ?`), channel.Hex())
	return all, err
}

// forgetRequests drops those up to the newest that the row's books had, and have no more.
func forgetRequests(ctx context.Context, tx *sqlx.Tx, row Row) error {
	if row.Books == nil {
		return nil
	}
	var ids []int64
	id := row.Terms.ID().Hex()
	if err := tx.SelectContext(ctx, &ids, tx.Rebind(`SELECT id FROM rental_requests WHERE channel = ? AND id <= ?`), id, int64(row.Requested)); err != nil {
		return err
	}
	for _, n := range ids {
		if _, ok := row.Books.Own[uint64(n)]; ok {
			continue
		}
		if _, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM rental_requests WHERE channel = ? AND id = ?`), id, n); err != nil {
			return err
		}
	}
	return nil
}
