package leasestore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Leases keeps the leases' rows. Each write of a lease that runs names the term of its owner, its fencing token.
type Leases struct{ db *store.DB }

// orphaned is a lease whose gateway has not said for too long that it lives.
const orphaned = `NOT EXISTS (SELECT 1 FROM gateways g WHERE g.id = leases.owner AND g.expires > ` + database.ServerNow + `)`

// Guarded is the same table with a condition on what it writes; nil: none.
func (s Leases) Guarded(may func(*sqlx.Tx) error) Leases {
	if may != nil {
		s.db = s.db.Guard(may)
	}
	return s
}

// Insert begins a lease on disk, in state allocating: before the first command for it runs.
func (s Leases) Insert(ctx context.Context, row Row) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		if err := s.refuseClosing(ctx, tx, common.HexToHash(row.Channel)); err != nil {
			return err
		}
		// The newest lease of a channel is found by this figure, also where the clock was
		// set back since the last one: whose secret opens it must be certain.
		var before int64
		err := tx.GetContext(ctx, &before, tx.Rebind(`SELECT COALESCE(MAX(started_at), 0) FROM leases WHERE channel = ?`), row.Channel)
		if err != nil {
			return err
		}
		row.StartedAt = max(row.StartedAt, before+1)
		_, err = tx.NamedExecContext(ctx, `
			INSERT INTO leases (id, channel, offer, secret_hash, gpus, allocation, owed_before, state, started_at, owner, term, carried)
			VALUES (:id, :channel, :offer, :secret_hash, :gpus, :allocation, :owed_before, :state, :started_at, :owner, :term, :carried)`, row)
		return err
	})
}

// refuseClosing refuses a lease on a channel that closes, by whichever gateway. A node has no
// channels: its gateways have.
func (s Leases) refuseClosing(ctx context.Context, tx *sqlx.Tx, id common.Hash) error {
	query := `SELECT status FROM payee_channels WHERE id = ?`
	if s.db.Shared() {
		query += ` FOR SHARE` // a close that begins now waits, and then finds the lease
	}
	var statuses []channel.Status
	if err := tx.SelectContext(ctx, &statuses, tx.Rebind(query), id[:]); err != nil {
		return err
	}
	if len(statuses) == 1 && statuses[0] != channel.Open {
		return fmt.Errorf("channel %s: %w", id, channel.ErrClosing)
	}
	return nil
}

// Place records what was allocated, and whose key would sign the records. Nothing is metered yet: a lease that gets no further never began.
func (s Leases) Place(ctx context.Context, row Row) error {
	err := s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return requireOwner(common.HexToHash(row.ID))(tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET allocation = ?, meter_key = ?, binding = ?
			WHERE id = ? AND term = ? AND state = ?`),
			row.Allocation, row.MeterKey, row.Binding, row.ID, row.Term, Allocating))
	})
	if err == nil {
		fault.Point(fault.LeasePlaced)
	}
	return err
}

// Activate has a lease that was placed begin: from here on it is metered, and goes on wherever its process ends.
func (s Leases) Activate(ctx context.Context, id common.Hash, term int64) error {
	err := s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return requireOwner(id)(tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET state = ? WHERE id = ? AND term = ? AND state = ?`), Active, id.Hex(), term, Allocating))
	})
	if err == nil {
		fault.Point(fault.LeaseActivated)
	}
	return err
}

// Unplace has a lease be as before it was allocated: no node meters it, nor did.
func (s Leases) Unplace(ctx context.Context, row *Row) error {
	row.Allocation, row.MeterKey, row.Binding, row.State = "{}", "", "", wire.StateAllocating
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return requireOwner(common.HexToHash(row.ID))(tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET allocation = ?, meter_key = ?, binding = ?, state = ? WHERE id = ? AND term = ?`),
			row.Allocation, row.MeterKey, row.Binding, row.State, row.ID, row.Term))
	})
}

// SetState has a lease in a state, for a reason. What was suspended before, for whatever reason, has been since then.
func (s Leases) SetState(ctx context.Context, id common.Hash, term int64, state State, reason string, endedAt int64) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return requireOwner(id)(tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET suspended_at = CASE WHEN ? <> 'suspended' THEN 0
			WHEN state = 'suspended' AND suspended_at > 0 THEN suspended_at ELSE ? END,
			state = ?, reason = ?, ended_at = ? WHERE id = ? AND term = ?`),
			state, time.Now().UnixNano(), state, reason, endedAt, id.Hex(), term))
	})
}

// SetEnded ends a lease, at the time at which it was asked to, where that is on disk. Where its devices are held they are
// still to be taken back, and what its node metered last is still to be taken over: by whichever gateway can. One that is over and whose
// devices nobody asks for any more stays so, unless the table has them: who waited for its node for longer was given up.
func (s Leases) SetEnded(ctx context.Context, id common.Hash, term int64, reason string, held bool) error {
	flag := 0
	if held {
		flag = 1
	}
	givenUp := `state = 'ended' AND held = 0`
	if s.db.Shared() {
		givenUp += ` AND NOT EXISTS (SELECT 1 FROM lease_devices WHERE lease = leases.id)`
	}
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		err := requireOwner(id)(tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET state = 'ended', reason = ?, held = CASE WHEN `+givenUp+` THEN 0 ELSE ? END, owner = CASE WHEN ? = 1 THEN '' ELSE owner END,
			ended_at = CASE WHEN state IN ('ending', 'ended') AND ended_at > 0 THEN ended_at ELSE ? END WHERE id = ? AND term = ?`),
			reason, flag, flag, time.Now().Unix(), id.Hex(), term))
		if err != nil {
			return err
		}
		return forgetAccess(ctx, tx, id)
	})
}

// OwnerTimeout is how long the database may take to say whose a lease is.
const OwnerTimeout = 2 * time.Second

// Term is the newest term of a lease's ownership.
func (s Leases) Term(ctx context.Context, id common.Hash) (term int64, err error) {
	db := s.db.View()
	err = db.GetContext(ctx, &term, db.Rebind(`SELECT term FROM leases WHERE id = ?`), id.Hex())
	return term, err
}

// forgetAccess cuts the access document, often a password, out of a lease that has
// ended: a running lease needs it, also in the next process.
func forgetAccess(ctx context.Context, tx *sqlx.Tx, id common.Hash) error {
	var text string
	if err := tx.GetContext(ctx, &text, tx.Rebind(`SELECT allocation FROM leases WHERE id = ?`), id.Hex()); err != nil {
		return err
	}
	var a gpu.Allocation
	if err := json.Unmarshal([]byte(text), &a); err != nil || len(a.Access) == 0 {
		return nil // nothing that could be read was allocated
	}
	a.Access = nil
	rest, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET allocation = ? WHERE id = ?`), string(rest), id.Hex())
	return err
}

// Elsewhere is what a renter is told of a lease that another gateway is about to begin, to take over or to end.
func Elsewhere(channelID common.Hash) error {
	return wire.Unavailable.With("another gateway is at work on the lease of channel %s: try again", channelID)
}

// requireOwner turns a write that found no lease of its term into ErrNotOwner.
func requireOwner(id common.Hash) func(sql.Result, error) error {
	return func(done sql.Result, err error) error {
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(fmt.Errorf("lease %s: %w", id, ErrNotOwner), err)
		}
		return nil
	}
}

// Unfinished returns the leases that were running when the process stopped, and those that still hold devices.
func (s Leases) Unfinished(ctx context.Context) ([]Row, error) {
	var rows []Row
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT `+Columns+` FROM leases WHERE state <> ? OR held = 1 ORDER BY started_at`), Ended)
	return rows, err
}

// Served lists the channels that have a lease, at whatever gateway.
func (s Leases) Served(ctx context.Context) ([]common.Hash, error) {
	var channels []string
	if err := s.db.View().SelectContext(ctx, &channels, `SELECT DISTINCT channel FROM leases WHERE state <> 'ended'`); err != nil {
		return nil, fmt.Errorf("channels that have a lease: %w", err)
	}
	ids := make([]common.Hash, len(channels))
	for i, text := range channels {
		ids[i] = common.HexToHash(text)
	}
	return ids, nil
}

// Newest returns the newest lease of a channel; ok is false if it never had one.
func (s Leases) Newest(ctx context.Context, channelID common.Hash) (row Row, ok bool, err error) {
	db := s.db.View()
	err = db.GetContext(ctx, &row, db.Rebind(
		`SELECT `+Columns+` FROM leases WHERE channel = ? ORDER BY started_at DESC, id LIMIT 1`), channelID.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return row, false, nil
	}
	return row, err == nil, err
}

// SetSecret exchanges the hash of the secret by which a renter attaches.
func (s Leases) SetSecret(ctx context.Context, id common.Hash, secretHash string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET secret_hash = ? WHERE id = ?`), secretHash, id.Hex())
		return err
	})
}

// RaiseTerm begins a newer term of a lease, of the same owner.
func (s Leases) RaiseTerm(ctx context.Context, id common.Hash, term, next int64) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return requireOwner(id)(tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET term = ? WHERE id = ? AND term = ?`), next, id.Hex(), term))
	})
}

// Orphans returns the leases that nobody may run, those of a gateway that began before a time included, and the ended ones whose
// devices were not taken back: their host was gone, or taking them back failed.
func (s Leases) Orphans(ctx context.Context, owner string, before time.Time) (rows []Row, err error) {
	db := s.db.View()
	err = db.SelectContext(ctx, &rows, db.Rebind(`SELECT `+Columns+` FROM leases WHERE state <> 'ended' AND (`+orphaned+` OR owner = ? AND started_at < ?)
		UNION ALL SELECT `+Columns+` FROM leases WHERE state = 'ended' AND (held = 1 OR id IN (SELECT lease FROM lease_devices))
		ORDER BY started_at`), owner, before.UnixNano())
	return rows, err
}

// StillHeld returns the ended leases whose devices could not be taken back. It is
// asked once a second, and has an index.
func (s Leases) StillHeld(ctx context.Context) (rows []Row, err error) {
	err = s.db.View().SelectContext(ctx, &rows, `SELECT `+Columns+` FROM leases WHERE held = 1 ORDER BY started_at`)
	return rows, err
}

// Holds reports whether a lease of a channel is still held.
func (s Leases) Holds(ctx context.Context, channelID common.Hash) (bool, error) {
	var n int
	db := s.db.View()
	err := db.GetContext(ctx, &n, db.Rebind(`SELECT COUNT(*) FROM leases WHERE held = 1 AND channel = ?`), channelID.Hex())
	return n > 0, err
}

// TakeOver makes a gateway the owner of an orphan, or once more of what is its own: a new
// term begins, in which nobody else can write. ok is false if another one was faster.
// What was written last is read by the same statement: nobody would run a lease that was
// taken and not read.
func (s Leases) TakeOver(ctx context.Context, row *Row, owner string) (ok bool, err error) {
	err = s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return tx.GetContext(ctx, row, tx.Rebind(`UPDATE leases SET owner = ?, term = term + 1 WHERE id = ? AND term = ? AND (owner = ? OR `+orphaned+`)
			RETURNING `+Columns), owner, row.ID, row.Term, owner)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// GiveBack leaves an orphan to a gateway that can do more for it.
func (s Leases) GiveBack(ctx context.Context, row Row, owner string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET owner = ? WHERE id = ? AND term = ?`), owner, row.ID, row.Term)
		return err
	})
}

// ByID is sql.ErrNoRows where there is no such lease.
func (s Leases) ByID(ctx context.Context, id string) (row Row, err error) {
	db := s.db.View()
	err = db.GetContext(ctx, &row, db.Rebind(`SELECT `+Columns+` FROM leases WHERE id = ?`), id)
	return row, err
}

// Glimpse is what of a lease is looked at again and again: nothing of its row whose length another part has a say in.
type Glimpse struct {
	ID       string `db:"id"`
	State    string `db:"state"`
	Reason   string `db:"reason"`
	Term     int64  `db:"term"`
	Sequence int64  `db:"sequence"`
	Stream   int64  `db:"stream"`
	Command  string `db:"command"`
	Held     int64  `db:"held"`
}

var glimpses = database.Columns[Glimpse]()

// Glimpses returns leases by their id.
func (s Leases) Glimpses(ctx context.Context, ids []common.Hash) (map[common.Hash]Glimpse, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.Hex()
	}
	query, args, err := sqlx.In(`SELECT `+glimpses+` FROM leases WHERE id IN (?)`, names)
	if err != nil {
		return nil, err
	}
	var list []Glimpse
	db := s.db.View()
	if err := db.SelectContext(ctx, &list, db.Rebind(query), args...); err != nil {
		return nil, err
	}
	rows := make(map[common.Hash]Glimpse, len(list))
	for _, row := range list {
		rows[common.HexToHash(row.ID)] = row
	}
	return rows, nil
}

// Command asks the gateway that runs a lease to end it.
func (s Leases) Command(ctx context.Context, id common.Hash, reason string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET command = ? WHERE id = ? AND command = ''`), reason, id.Hex())
		return err
	})
}

// NextStream numbers a stream of a lease: no gateway writes to an older one from then on.
func (s Leases) NextStream(ctx context.Context, id common.Hash) (number uint64, err error) {
	err = s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return tx.GetContext(ctx, &number, tx.Rebind(`UPDATE leases SET stream = stream + 1 WHERE id = ? RETURNING stream`), id.Hex())
	})
	return number, err
}

// GiveUp asks no more for the devices of an ended lease, and says whether anybody asked until now.
func (s Leases) GiveUp(ctx context.Context, id string) (held bool, err error) {
	err = s.db.Update(ctx, func(tx *sqlx.Tx) error {
		changed, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET held = 0 WHERE id = ? AND held <> 0`), id)
		if err != nil {
			return err
		}
		n, err := changed.RowsAffected()
		held = n > 0
		return err
	})
	return held, err
}

// IdleSince returns the channels on which no lease runs and whose last one ended in a time, unix seconds.
func (s Leases) IdleSince(ctx context.Context, from, to int64) ([]common.Hash, error) {
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

// Find returns a lease, if there is one of this id.
func (s Leases) Find(ctx context.Context, id common.Hash) (row Row, ok bool, err error) {
	row, err = s.ByID(ctx, id.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return Row{}, false, nil
	}
	return row, err == nil, err
}

// HeldAfter returns which of the channels had a lease, or something to collect of
// one, after a time.
func (s Leases) HeldAfter(ctx context.Context, channels []string, after time.Time) (map[common.Hash]bool, error) {
	query, args, err := sqlx.In(`SELECT DISTINCT channel FROM leases WHERE channel IN (?) AND (state <> 'ended' OR held = 1 OR ended_at > ?)`,
		channels, after.Unix())
	if err != nil {
		return nil, err
	}
	var rows []string
	db := s.db.View()
	err = db.SelectContext(ctx, &rows, db.Rebind(query), args...)
	held := make(map[common.Hash]bool, len(rows))
	for _, text := range rows {
		held[common.HexToHash(text)] = true
	}
	return held, err
}
