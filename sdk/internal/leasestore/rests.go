package leasestore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// Rests is the inventory.RestBook of a database: of the gateways that share it, and of the next process. All of its times are spans of
// the database's clock, that of the server or of the file's host, so that a gateway's clock may say whatever it does.
type Rests struct{ db *store.DB }

var _ inventory.RestBook = Rests{}

// restKept is for how long a row is remembered: longer than a device is that was well for an hour, and than one rests that nobody rented for a day.
const restKept = 25 * time.Hour

// fileNow is database.ServerNow of SQLite.
const fileNow = `CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)`

func (t Rests) now() string {
	if t.db.Shared() {
		return database.ServerNow
	}
	return fileNow
}

// greatest is the greater one of two expressions.
func (t Rests) greatest(a, b string) string {
	if t.db.Shared() {
		return "GREATEST(" + a + ", " + b + ")"
	}
	return "max(" + a + ", " + b + ")"
}

// left is of how much of its rest a row says that it is still to come, as restRow.rest does.
func (t Rests) left() string {
	age := t.greatest("device_rests.ttl - (device_rests.expires - "+t.now()+")", "0")
	return t.greatest("device_rests.rest - "+age, "0")
}

type restRow struct {
	Device  string `db:"device"`
	Version int64  `db:"version"`
	Span    int64  `db:"span"`
	Rest    int64  `db:"rest"`
	Healed  int64  `db:"healed"`
	TTL     int64  `db:"ttl"`
	Expires int64  `db:"expires"` // from now on
}

// rest is what a row says now. One whose age is not known, as the clock was set back, counts as new.
func (r restRow) rest() inventory.Rest {
	age := max(r.TTL-r.Expires, 0)
	all := inventory.Rest{Device: r.Device, Version: r.Version, Span: time.Duration(r.Span) * time.Millisecond,
		Left: time.Duration(max(r.Rest-age, 0)) * time.Millisecond, Healed: r.Healed >= 0}
	if all.Healed {
		all.Well = time.Duration(r.Healed+age) * time.Millisecond
	}
	return all
}

// columns are those of restRow.
func (t Rests) columns() string {
	return `device, version, span, rest, healed, ttl, expires - ` + t.now() + ` AS expires`
}

// All are the rests that are remembered.
func (t Rests) All(ctx context.Context) ([]inventory.Rest, error) {
	var rows []restRow
	if err := t.db.View().SelectContext(ctx, &rows, `SELECT `+t.columns()+` FROM device_rests WHERE expires > `+t.now()); err != nil {
		return nil, err
	}
	all := make([]inventory.Rest, len(rows))
	for i, row := range rows {
		all[i] = row.rest()
	}
	return all, nil
}

// Redate gives rests that were written before the clock of the file's host was set back once more what they were written for, from now on:
// until that clock had caught up each process that starts would take them for new. Those of a server the gateways redate (cluster.Restamp).
func (t Rests) Redate(ctx context.Context) error {
	misdated := `expires - ttl > ` + t.now()
	var any bool // most often there are none, and a write is one of the disk
	err := t.db.View().GetContext(ctx, &any, `SELECT EXISTS (SELECT 1 FROM device_rests WHERE `+misdated+`)`)
	if err != nil || !any {
		return err
	}
	return t.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE device_rests SET expires = ttl + `+t.now()+` WHERE `+misdated)
		return err
	})
}

// Put writes what a process heard, and deletes what is remembered no more.
func (t Rests) Put(ctx context.Context, news []inventory.Rest) (has []inventory.Rest, err error) {
	news = slices.SortedFunc(slices.Values(news), func(a, b inventory.Rest) int { return cmp.Compare(a.Device, b.Device) }) // nobody waits for who waits for him
	err = t.db.Update(ctx, func(tx *sqlx.Tx) error {
		has = nil
		if _, err := tx.ExecContext(ctx, `DELETE FROM device_rests WHERE expires <= `+t.now()); err != nil {
			return err
		}
		for _, r := range news {
			put := t.fail
			if r.Healed {
				put = t.heal
			}
			row, err := put(ctx, tx, r)
			switch {
			case errors.Is(err, sql.ErrNoRows):
				continue
			case err != nil:
				return err
			}
			has = append(has, row.rest())
		}
		return nil
	})
	return has, err
}

// fail writes a failure. Where another process has written what this one did not know, the rest stands that ends later: the row is dated
// now, and what it had of its rest before is over.
func (t Rests) fail(ctx context.Context, tx *sqlx.Tx, r inventory.Rest) (row restRow, err error) {
	err = tx.GetContext(ctx, &row, tx.Rebind(`INSERT INTO device_rests (device, version, span, rest, healed, expires, ttl) VALUES (?, `+t.now()+`, ?, ?, -1, `+t.now()+` + ?, ?)
		ON CONFLICT (device) DO UPDATE SET healed = -1, expires = excluded.expires, ttl = excluded.ttl,
			version = CASE WHEN device_rests.version < excluded.version THEN excluded.version ELSE device_rests.version + 1 END,
			span = CASE WHEN device_rests.version = ? OR device_rests.span < excluded.span THEN excluded.span ELSE device_rests.span END,
			rest = CASE WHEN device_rests.version = ? THEN excluded.rest ELSE `+t.greatest("excluded.rest", t.left())+` END
		RETURNING `+t.columns()),
		r.Device, r.Span.Milliseconds(), r.Left.Milliseconds(), restKept.Milliseconds(), restKept.Milliseconds(), r.Version, r.Version)
	return row, err
}

// heal writes a heal of the failure that this process knows, and nothing where there is a younger one.
func (t Rests) heal(ctx context.Context, tx *sqlx.Tx, r inventory.Rest) (row restRow, err error) {
	if r.Version == 0 { // its failure was never written
		err = tx.GetContext(ctx, &row, tx.Rebind(`INSERT INTO device_rests (device, version, span, rest, healed, expires, ttl) VALUES (?, `+t.now()+`, ?, ?, ?, `+t.now()+` + ?, ?)
			ON CONFLICT (device) DO NOTHING RETURNING `+t.columns()),
			r.Device, r.Span.Milliseconds(), r.Left.Milliseconds(), r.Well.Milliseconds(), restKept.Milliseconds(), restKept.Milliseconds())
		return row, err
	}
	err = tx.GetContext(ctx, &row, tx.Rebind(`UPDATE device_rests SET span = ?, rest = ?, healed = ?, expires = `+t.now()+` + ?, ttl = ?,
			version = CASE WHEN version < `+t.now()+` THEN `+t.now()+` ELSE version + 1 END
		WHERE device = ? AND version = ? RETURNING `+t.columns()),
		r.Span.Milliseconds(), r.Left.Milliseconds(), r.Well.Milliseconds(), restKept.Milliseconds(), restKept.Milliseconds(), r.Device, r.Version)
	return row, err
}
