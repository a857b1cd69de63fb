package sdk

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// What several gateways over one PostgreSQL keep beside their leases. Times are
// the server's, in milliseconds, so that the gateways' clocks need not agree. A row
// that runs out has beside its deadline how long it was written for: see restamp.
const serverNow = `(extract(epoch FROM clock_timestamp()) * 1000)::bigint`

// orphaned is a lease whose gateway has not said for too long that it lives.
const orphaned = `NOT EXISTS (SELECT 1 FROM gateways g WHERE g.id = leases.owner AND g.expires > ` + serverNow + `)`

// beat says that a gateway lives, and that it does not under the names that it had before.
func (s leaseStore) beat(ctx context.Context, id string, ttl time.Duration, past []string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO gateways (id, expires, ttl) VALUES (?, `+serverNow+` + ?, ?)
			ON CONFLICT (id) DO UPDATE SET expires = excluded.expires, ttl = excluded.ttl`), id, ttl.Milliseconds(), ttl.Milliseconds())
		if err == nil {
			err = retire(ctx, tx, past)
		}
		return err
	})
}

// leave hands the leases that a gateway has under some names to the others at once.
func (s leaseStore) leave(ctx context.Context, names ...string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error { return retire(ctx, tx, names) })
}

// retire has nobody live under some names. One that has run out has been silent since then.
func retire(ctx context.Context, tx *sqlx.Tx, names []string) error {
	if len(names) == 0 {
		return nil
	}
	query, args, err := sqlx.In(`UPDATE gateways SET expires = `+serverNow+`, ttl = 0 WHERE id IN (?) AND expires > `+serverNow, names)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, tx.Rebind(query), args...)
	return err
}

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

// lives reports whether a gateway has said lately that it lives.
func (s leaseStore) lives(ctx context.Context, owner string) (lives bool, err error) {
	db := s.db.View()
	err = db.GetContext(ctx, &lives, db.Rebind(`SELECT EXISTS (SELECT 1 FROM gateways WHERE id = ? AND expires > `+serverNow+`)`), owner)
	return lives, err
}

// silent is how long ago the gateway of a lease should have said that it lives.
func (s leaseStore) silent(ctx context.Context, owner string) (time.Duration, error) {
	var ms int64
	db := s.db.View()
	err := db.GetContext(ctx, &ms, db.Rebind(`SELECT COALESCE((SELECT `+serverNow+` - expires FROM gateways WHERE id = ?), 0)`), owner)
	return time.Duration(ms) * time.Millisecond, err
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
		done, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO claims (name, owner, expires, ttl) VALUES (?, ?, `+serverNow+` + ?, ?)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires = excluded.expires, ttl = excluded.ttl WHERE claims.expires < `+serverNow),
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
	err := db.GetContext(ctx, &n, db.Rebind(`SELECT count(*) FROM claims WHERE name = ? AND expires > `+serverNow), name)
	return n > 0, err
}

// reservationRow is GPUs that a gateway keeps for a channel.
type reservationRow struct {
	ID      string `db:"id"` // of the lease that begins on it
	Pool    string `db:"pool"`
	Channel string `db:"channel"`
	GPUs    int    `db:"gpus"`
}

// keepGPUs keeps GPUs until they are dropped or time is up, if fits agrees to what
// the other channels of the pool keep, at all gateways: one of them asks at a time.
func (s leaseStore) keepGPUs(ctx context.Context, r reservationRow, ttl time.Duration, fits func(others []kept) error) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `LOCK TABLE reservations IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM reservations WHERE expires <= `+serverNow); err != nil {
			return err
		}
		others, err := keptGPUs(ctx, tx, r.Pool, r.Channel)
		if err != nil {
			return err
		}
		if err := fits(others); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, tx.Rebind(`INSERT INTO reservations (id, pool, channel, gpus, expires, ttl) VALUES (?, ?, ?, ?, `+serverNow+` + ?, ?)`),
			r.ID, r.Pool, r.Channel, r.GPUs, ttl.Milliseconds(), ttl.Milliseconds())
		return err
	})
}

// keptGPUs is what each channel of a pool but one keeps.
func (s leaseStore) keptGPUs(ctx context.Context, pool string, but common.Hash) ([]kept, error) {
	return keptGPUs(ctx, s.db.View(), pool, but.Hex())
}

func keptGPUs(ctx context.Context, db sqlx.ExtContext, pool, but string) ([]kept, error) {
	var rows []reservationRow
	err := sqlx.SelectContext(ctx, db, &rows, db.Rebind(`SELECT id, channel, gpus FROM reservations
		WHERE pool = ? AND channel <> ? AND expires > `+serverNow), pool, but)
	most := make(map[string]kept)
	for _, row := range rows {
		k := most[row.Channel]
		most[row.Channel] = kept{max(k.gpus, row.GPUs), append(k.leases, common.HexToHash(row.ID))}
	}
	return slices.Collect(maps.Values(most)), err
}

func (s leaseStore) dropGPUs(ctx context.Context, id string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM reservations WHERE id = ?`), id)
		return err
	})
}

// deviceTable is the book of devices of gateways that share a database.
type deviceTable struct{ leaseStore }

var _ inventory.Book = deviceTable{}

type deviceRow struct {
	Device string `db:"device"`
	Lease  string `db:"lease"`
}

func (d deviceTable) Held(ctx context.Context) (map[string]common.Hash, error) {
	return heldDevices(ctx, d.db.View())
}

// keptDevice begins the pool of a reservation that is of one device, whose name follows; its channel is the lease.
const keptDevice = "device "

func heldDevices(ctx context.Context, db sqlx.ExtContext) (map[string]common.Hash, error) {
	var rows []deviceRow
	err := sqlx.SelectContext(ctx, db, &rows, db.Rebind(`SELECT device, lease FROM lease_devices
		UNION SELECT substr(pool, ?), channel FROM reservations WHERE pool LIKE ? AND expires > `+serverNow), len(keptDevice)+1, keptDevice+"%")
	m := make(map[string]common.Hash, len(rows))
	for _, row := range rows {
		m[row.Device] = common.HexToHash(row.Lease)
	}
	return m, err
}

// reserve lets one gateway choose at a time.
func (d deviceTable) Reserve(ctx context.Context, lease common.Hash, choose func(held map[string]common.Hash) ([]string, error)) ([]string, error) {
	return d.choose(ctx, lease, choose, func(tx *sqlx.Tx, device string) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO lease_devices (device, lease) VALUES (?, ?) ON CONFLICT (device) DO NOTHING`), device, lease.Hex())
		return err
	})
}

// keep is for a lease that has no row yet.
func (d deviceTable) Keep(ctx context.Context, lease common.Hash, devices []string, route inventory.Route, ttl time.Duration) error {
	_, err := d.choose(ctx, lease, inventory.These(devices, route), func(tx *sqlx.Tx, device string) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO reservations (id, pool, channel, gpus, expires, ttl) VALUES (?, ?, ?, 1, `+serverNow+` + ?, ?)`),
			newGatewayID(), keptDevice+device, lease.Hex(), ttl.Milliseconds(), ttl.Milliseconds())
		return err
	})
	return err
}

// choose writes down what is picked while nobody else picks.
func (d deviceTable) choose(ctx context.Context, lease common.Hash, pick func(held map[string]common.Hash) ([]string, error), write func(tx *sqlx.Tx, device string) error) ([]string, error) {
	var chosen []string
	err := d.db.Update(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `LOCK TABLE lease_devices IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		held, err := heldDevices(ctx, tx)
		if err != nil {
			return err
		}
		if chosen, err = pick(held); err != nil {
			return err
		}
		for _, device := range slices.Sorted(slices.Values(chosen)) {
			if err := write(tx, device); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("devices of lease %s: %w", lease, err)
	}
	return chosen, nil
}

func (d deviceTable) Free(ctx context.Context, lease common.Hash) error {
	return d.db.Update(ctx, func(tx *sqlx.Tx) error {
		for _, held := range []string{`DELETE FROM lease_devices WHERE lease = ?`, `DELETE FROM reservations WHERE channel = ?`} {
			if _, err := tx.ExecContext(ctx, tx.Rebind(held), lease.Hex()); err != nil {
				return err
			}
		}
		return nil
	})
}
