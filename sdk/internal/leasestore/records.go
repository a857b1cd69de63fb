package leasestore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
)

// Records keeps usage records, each with the charge that it states.
type Records struct {
	db        *store.DB
	uncharged bool // a node's: its gateway charges the channel
	Late      bool // of records that a node delivers: what they say may have been charged before
}

// Reserve makes a record durable that is about to be signed. It refuses where the
// lease is another gateway's, and where the newest record on disk is not the one
// before: then the database was exchanged for an older one while it was in use.
func (s Records) Reserve(ctx context.Context, term int64, p Pending) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	update := s.db.UpdateSoon // the record is of time that has passed
	if p.Record.Final {
		update = s.db.Update
	}
	id := p.Record.LeaseID
	return update(ctx, func(tx *sqlx.Tx) error {
		if !s.db.Shared() {
			ctx = context.WithoutCancel(ctx) // as in append
		}
		done, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET pending = ? WHERE id = ? AND term = ? AND sequence = ?`),
			string(text), id.Hex(), term, int64(p.Record.Sequence)-1)
		if err == nil {
			var n int64
			if n, err = done.RowsAffected(); n == 1 {
				return err
			}
		}
		if err != nil {
			return err
		}
		return s.refused(ctx, tx, id, term)
	})
}

// refused says why a record was not reserved.
func (s Records) refused(ctx context.Context, tx *sqlx.Tx, id common.Hash, term int64) error {
	var now []int64
	err := tx.SelectContext(ctx, &now, tx.Rebind(`SELECT term FROM leases WHERE id = ?`), id.Hex())
	switch {
	case err != nil:
		return err
	case len(now) == 0 || now[0] == term:
		return fmt.Errorf("lease %s: %w", id, ErrRolledBack)
	}
	return fmt.Errorf("lease %s: %w", id, ErrNotOwner)
}

// Append makes a usage record and the charge it states durable in one step: a
// record that a renter sees is a charge that a restart remembers, and the
// other way round. meter is what the lease's meter goes on from. What closing writes is there with a final record.
func (s Records) Append(ctx context.Context, term int64, rec metering.SignedRecord, meter any, closing *func(*sqlx.Tx, metering.SignedRecord) error) error {
	record, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	totals, err := json.Marshal(meter)
	if err != nil {
		return err
	}
	update := s.db.UpdateSoon // the record is of time that has passed
	if rec.Final {
		update = s.db.Update
	}
	return update(ctx, func(tx *sqlx.Tx) error {
		if !s.db.Shared() {
			ctx = context.WithoutCancel(ctx) // the driver starts a goroutine for each statement that could be cut off
		}
		// First, so that whoever takes the lease over waits until the record stands.
		query := `UPDATE leases SET meter = ?, sequence = ?, pending = '' WHERE id = ? AND term = ?`
		if rec.Final { // in one step: nobody meters the lease on
			query = `UPDATE leases SET meter = ?, sequence = ?, pending = '', state = CASE WHEN state = 'ended' THEN state ELSE 'ending' END WHERE id = ? AND term = ?`
		}
		// Nor a hole, where the database was exchanged for an older one since the record was reserved.
		done, err := tx.ExecContext(ctx, tx.Rebind(query+` AND sequence BETWEEN ? AND ?`), string(totals), int64(rec.Sequence),
			rec.LeaseID.Hex(), term, int64(rec.Sequence)-1, int64(rec.Sequence))
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, s.refused(ctx, tx, rec.LeaseID, term))
		}
		added, err := addRecord(ctx, tx, rec, string(record))
		if err != nil {
			return fmt.Errorf("record %d of lease %s: %w", rec.Sequence, rec.LeaseID, err)
		}
		if !added || s.uncharged {
			return nil
		}
		err = s.db.Charge(ctx, tx, rec.ChannelID, rec.Owed)
		if s.Late && errors.Is(err, channel.ErrLower) {
			err = nil // the chain had paid for it: the charge stands
		}
		if err != nil || !rec.Final || closing == nil {
			return err
		}
		return (*closing)(tx, rec)
	})
}

// addRecord takes the very record that is there already for success, and adds
// nothing: a server may have committed it, with all that goes to disk beside it,
// and been cut off before it could say so.
func addRecord(ctx context.Context, tx *sqlx.Tx, rec metering.SignedRecord, text string) (added bool, err error) {
	done, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO records (lease, sequence, record) VALUES (?, ?, ?) ON CONFLICT (lease, sequence) DO NOTHING`),
		rec.LeaseID.Hex(), int64(rec.Sequence), text)
	if err != nil {
		return false, err
	}
	if n, err := done.RowsAffected(); err != nil || n == 1 {
		return n == 1, err
	}
	var stored string
	err = tx.GetContext(ctx, &stored, tx.Rebind(`SELECT record FROM records WHERE lease = ? AND sequence = ?`), rec.LeaseID.Hex(), int64(rec.Sequence))
	if err == nil && stored != text {
		err = errors.New("there is another one of this number: two would be a fork that the payee signed")
	}
	return false, err
}

// After returns the usage records of a lease after a sequence number.
func (s Records) After(ctx context.Context, lease common.Hash, after uint64, limit int) ([]metering.SignedRecord, error) {
	var rows []string
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(
		`SELECT record FROM records WHERE lease = ? AND sequence > ? ORDER BY sequence LIMIT ?`), lease.Hex(), int64(after), limit)
	if err != nil {
		return nil, fmt.Errorf("records of lease %s: %w", lease, err)
	}
	records := make([]metering.SignedRecord, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal([]byte(row), &records[i]); err != nil {
			return nil, fmt.Errorf("stored record of lease %s: %w", lease, err)
		}
	}
	return records, nil
}

// Last returns the newest record of a lease, nil if it has none yet.
func (s Records) Last(ctx context.Context, lease common.Hash) (*metering.SignedRecord, error) {
	var row string
	db := s.db.View()
	err := db.GetContext(ctx, &row, db.Rebind(
		`SELECT record FROM records WHERE lease = ? ORDER BY sequence DESC LIMIT 1`), lease.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("newest record of lease %s: %w", lease, err)
	}
	var rec metering.SignedRecord
	if err := json.Unmarshal([]byte(row), &rec); err != nil {
		return nil, fmt.Errorf("stored record of lease %s: %w", lease, err)
	}
	return &rec, nil
}
