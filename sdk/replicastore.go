package sdk

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/internal/database"
)

// orphaned is a lease whose gateway has not said for too long that it lives.
const orphaned = `NOT EXISTS (SELECT 1 FROM gateways g WHERE g.id = leases.owner AND g.expires > ` + database.ServerNow + `)`

// idle returns the leases that nobody may run, those of a gateway that began before a time included, and the ended ones whose
// devices were not taken back: their host was gone, or taking them back failed.
func (s leaseStore) idle(ctx context.Context, owner string, before time.Time) (rows []leaseRow, err error) {
	db := s.db.View()
	err = db.SelectContext(ctx, &rows, db.Rebind(`SELECT `+leaseColumns+` FROM leases WHERE state <> 'ended' AND (`+orphaned+` OR owner = ? AND started_at < ?)
		UNION ALL SELECT `+leaseColumns+` FROM leases WHERE state = 'ended' AND (held = 1 OR id IN (SELECT lease FROM lease_devices))
		ORDER BY started_at`), owner, before.UnixNano())
	return rows, err
}

// stillHeld returns the ended leases whose devices could not be taken back. It is
// asked once a second, and has an index.
func (s leaseStore) stillHeld(ctx context.Context) (rows []leaseRow, err error) {
	err = s.db.View().SelectContext(ctx, &rows, `SELECT `+leaseColumns+` FROM leases WHERE held = 1 ORDER BY started_at`)
	return rows, err
}

// holds reports whether a lease of a channel is still held.
func (s leaseStore) holds(ctx context.Context, channelID common.Hash) (bool, error) {
	var n int
	db := s.db.View()
	err := db.GetContext(ctx, &n, db.Rebind(`SELECT COUNT(*) FROM leases WHERE held = 1 AND channel = ?`), channelID.Hex())
	return n > 0, err
}

// take makes a gateway the owner of an orphan, or once more of what is its own: a new
// term begins, in which nobody else can write. ok is false if another one was faster.
// What was written last is read by the same statement: nobody would run a lease that was
// taken and not read.
func (s leaseStore) take(ctx context.Context, row *leaseRow, owner string) (ok bool, err error) {
	err = s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return tx.GetContext(ctx, row, tx.Rebind(`UPDATE leases SET owner = ?, term = term + 1 WHERE id = ? AND term = ? AND (owner = ? OR `+orphaned+`)
			RETURNING `+leaseColumns), owner, row.ID, row.Term, owner)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// giveBack leaves an orphan to a gateway that can do more for it.
func (s leaseStore) giveBack(ctx context.Context, row leaseRow, owner string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET owner = ? WHERE id = ? AND term = ?`), owner, row.ID, row.Term)
		return err
	})
}

func (s leaseStore) byID(ctx context.Context, id string) (row leaseRow, err error) {
	db := s.db.View()
	err = db.GetContext(ctx, &row, db.Rebind(`SELECT `+leaseColumns+` FROM leases WHERE id = ?`), id)
	return row, err
}

// byIDs returns rows by their id.
func (s leaseStore) byIDs(ctx context.Context, ids []common.Hash) (map[common.Hash]leaseRow, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.Hex()
	}
	query, args, err := sqlx.In(`SELECT `+leaseColumns+` FROM leases WHERE id IN (?)`, names)
	if err != nil {
		return nil, err
	}
	var list []leaseRow
	db := s.db.View()
	if err := db.SelectContext(ctx, &list, db.Rebind(query), args...); err != nil {
		return nil, err
	}
	rows := make(map[common.Hash]leaseRow, len(list))
	for _, row := range list {
		rows[common.HexToHash(row.ID)] = row
	}
	return rows, nil
}

// command asks the gateway that runs a lease to end it.
func (s leaseStore) command(ctx context.Context, id common.Hash, reason string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET command = ? WHERE id = ? AND command = ''`), reason, id.Hex())
		return err
	})
}

func (s leaseStore) nextStream(ctx context.Context, id common.Hash) (number uint64, err error) {
	err = s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return tx.GetContext(ctx, &number, tx.Rebind(`UPDATE leases SET stream = stream + 1 WHERE id = ? RETURNING stream`), id.Hex())
	})
	return number, err
}

// setHeld remembers of an ended lease whether its devices are still to be taken
// back.
func (s leaseStore) setHeld(ctx context.Context, id string, held int) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET held = ? WHERE id = ?`), held, id)
		return err
	})
}

// idleSince returns the channels on which no lease runs and whose last one ended in a time, unix seconds.
func (s leaseStore) idleSince(ctx context.Context, from, to int64) ([]common.Hash, error) {
	var rows []string
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT channel FROM leases l WHERE state = 'ended' AND ended_at > ?
		AND NOT EXISTS (SELECT 1 FROM leases r WHERE r.channel = l.channel AND r.state <> 'ended')
		GROUP BY channel HAVING MAX(ended_at) <= ?`), from, to)
	ids := make([]common.Hash, len(rows))
	for i, row := range rows {
		ids[i] = common.HexToHash(row)
	}
	return ids, err
}

// claim is true for the one who may do what it names, until it is given back or
// time is up.
func (s leaseStore) claim(ctx context.Context, name, owner string, ttl time.Duration) (ok bool, err error) {
	err = s.db.Update(ctx, func(tx *sqlx.Tx) error {
		done, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO claims (name, owner, expires, ttl) VALUES (?, ?, `+database.ServerNow+` + ?, ?)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires = excluded.expires, ttl = excluded.ttl WHERE claims.expires < `+database.ServerNow),
			name, owner, ttl.Milliseconds(), ttl.Milliseconds())
		if err != nil {
			return err
		}
		n, err := done.RowsAffected()
		ok = n == 1
		return err
	})
	return ok, err
}

func (s leaseStore) unclaim(ctx context.Context, name, owner string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM claims WHERE name = ? AND owner = ?`), name, owner)
		return err
	})
}

func (s leaseStore) claimed(ctx context.Context, name string) (bool, error) {
	var n int
	db := s.db.View()
	err := db.GetContext(ctx, &n, db.Rebind(`SELECT count(*) FROM claims WHERE name = ? AND expires > `+database.ServerNow), name)
	return n > 0, err
}
