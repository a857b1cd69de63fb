package rental

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// Store keeps rentals and checked records.
type Store struct{ wallet.Store }

// Create puts a rental on disk before anything of it is signed.
func (s Store) Create(ctx context.Context, row Row) error {
	document, err := json.Marshal(&row) // by reference: uint256.Int only then writes a decimal
	if err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(
			`INSERT INTO rentals (channel, state, url, document, updated_at) VALUES (?, ?, ?, ?, ?)`),
			row.Terms.ID().Hex(), row.Phase, row.URL, string(document), time.Now().UnixMilli())
		return err
	})
}

// Save puts what became of a rental on disk.
func (s Store) Save(ctx context.Context, row Row) error {
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error { return saveRental(ctx, tx, row) })
}

func saveRental(ctx context.Context, tx *sqlx.Tx, row Row) error {
	document, err := json.Marshal(&row) // by reference: uint256.Int only then writes a decimal
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, tx.Rebind(`UPDATE rentals SET state = ?, document = ?, updated_at = ? WHERE channel = ?`),
		row.Phase, string(document), time.Now().UnixMilli(), row.Terms.ID().Hex())
	return err
}

// Accept keeps a checked record and what the checker knows after it, in one
// step, before a voucher is signed for it.
func (s Store) Accept(ctx context.Context, row Row, rec metering.SignedRecord) error {
	defer fault.Point(fault.CheckerStored)
	document, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(
			`INSERT INTO rental_records (channel, lease, sequence, record) VALUES (?, ?, ?, ?)`),
			rec.ChannelID.Hex(), rec.LeaseID.Hex(), int64(rec.Sequence), string(document))
		if err != nil {
			return fmt.Errorf("channel %s, record %d: %w", rec.ChannelID, rec.Sequence, err)
		}
		if err := forgetRequests(ctx, tx, row); err != nil {
			return err
		}
		return saveRental(ctx, tx, row)
	})
}

// Record returns the accepted record of a number, or nil.
func (s Store) Record(ctx context.Context, id, lease common.Hash, sequence uint64) (json.RawMessage, error) {
	return s.Store.Record(ctx, "rental_records", id, lease, sequence)
}

// RecordsAfter returns the accepted records of a lease that are newer than a sequence, at most so many, in order.
func (s Store) RecordsAfter(ctx context.Context, id, lease common.Hash, sequence uint64, most int) ([]metering.SignedRecord, error) {
	var documents []string
	db := s.DB.View()
	err := db.SelectContext(ctx, &documents, db.Rebind(`SELECT record FROM rental_records WHERE channel = ? AND lease = ? AND sequence > ? ORDER BY sequence LIMIT ?`),
		id.Hex(), lease.Hex(), int64(sequence), most)
	if err != nil {
		return nil, fmt.Errorf("channel %s: reading its records: %w", id, err)
	}
	records := make([]metering.SignedRecord, len(documents))
	for i, document := range documents {
		if err := json.Unmarshal([]byte(document), &records[i]); err != nil {
			return nil, fmt.Errorf("channel %s: a record on disk does not parse: %w", id, err)
		}
	}
	return records, nil
}

// Records returns every accepted record of a channel, in order.
func (s Store) Records(ctx context.Context, id common.Hash) ([]metering.SignedRecord, error) {
	return s.Store.Records(ctx, "rental_records", id)
}

// Load returns one rental, or channel.ErrUnknown.
func (s Store) Load(ctx context.Context, id common.Hash) (Row, error) {
	rows, err := s.list(ctx, `WHERE channel = ?`, id.Hex())
	if err != nil {
		return Row{}, err
	}
	if len(rows) == 0 {
		return Row{}, fmt.Errorf("%w: %s is no rental in this database", channel.ErrUnknown, id)
	}
	return rows[0], nil
}

// All returns every rental, oldest first.
func (s Store) All(ctx context.Context) ([]Row, error) {
	return s.list(ctx, `ORDER BY updated_at`)
}

// Unfinished returns the rentals that may still hold money, oldest first.
func (s Store) Unfinished(ctx context.Context) ([]Row, error) {
	return s.list(ctx, `WHERE state <> ? ORDER BY updated_at`, PhaseFinished)
}

// Settled returns the rentals that have been finished since before a time, that have records and of which there is no evidence.
func (s Store) Settled(ctx context.Context, before time.Time) ([]Row, error) {
	return s.list(ctx, isSettled, PhaseFinished, before.UnixMilli())
}

func (s Store) list(ctx context.Context, where string, args ...any) ([]Row, error) {
	var found []struct {
		State    string `db:"state"`
		Document string `db:"document"`
	}
	db := s.DB.View()
	if err := db.SelectContext(ctx, &found, db.Rebind(`SELECT state, document FROM rentals `+where), args...); err != nil {
		return nil, fmt.Errorf("reading rentals: %w", err)
	}
	rows := make([]Row, len(found))
	for i, f := range found {
		if err := json.Unmarshal([]byte(f.Document), &rows[i]); err != nil {
			return nil, fmt.Errorf("a rental on disk does not parse; restore the database from its backup: %w", err)
		}
		rows[i].Phase = Phase(f.State)
	}
	return rows, nil
}

// Prune deletes a rental's records, unless it is open again by now.
func (s Store) Prune(ctx context.Context, id common.Hash, before time.Time) (deleted bool, err error) {
	err = s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		done, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM rental_records WHERE channel = ? AND channel IN (SELECT channel FROM rentals `+isSettled+`)`),
			id.Hex(), PhaseFinished, before.UnixMilli())
		if err != nil {
			return err
		}
		n, err := done.RowsAffected()
		deleted = n > 0
		return err
	})
	return deleted, err
}

// isSettled takes a state and unix milliseconds.
const isSettled = `WHERE state = ? AND updated_at < ?
	AND channel IN (SELECT channel FROM rental_records)
	AND channel NOT IN (SELECT channel FROM rental_evidence) AND channel NOT IN (SELECT channel FROM rental_proofs)`
