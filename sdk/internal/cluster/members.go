// Package cluster is what several gateways share beside their leases, in one PostgreSQL: who lives, who leads, whose provider it is,
// which lease has which device, and which GPUs are kept for one that is about to begin.
package cluster

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/database"
)

// Members is the table of the gateways that share a PostgreSQL, and of what all of them have in common. Its times are the
// server's, so that the gateways' clocks need not agree.
type Members struct{ DB *store.DB }

// Heartbeat says that a gateway lives for ttl, and that it does not under the names that it had before.
func (m Members) Heartbeat(ctx context.Context, id string, ttl time.Duration, past []string) error {
	return m.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO gateways (id, expires, ttl) VALUES (?, `+database.ServerNow+` + ?, ?)
			ON CONFLICT (id) DO UPDATE SET expires = excluded.expires, ttl = excluded.ttl`), id, ttl.Milliseconds(), ttl.Milliseconds())
		if err == nil {
			err = deregister(ctx, tx, past)
		}
		return err
	})
}

// Deregister has a gateway live no more under its names: others may take its leases at once.
func (m Members) Deregister(ctx context.Context, names ...string) error {
	return m.DB.Update(ctx, func(tx *sqlx.Tx) error { return deregister(ctx, tx, names) })
}

// deregister ends the time of some names. One whose time is over stays as it is: it has been silent since then.
func deregister(ctx context.Context, tx *sqlx.Tx, names []string) error {
	if len(names) == 0 {
		return nil
	}
	query, args, err := sqlx.In(`UPDATE gateways SET expires = `+database.ServerNow+`, ttl = 0 WHERE id IN (?) AND expires > `+database.ServerNow, names)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, tx.Rebind(query), args...)
	return err
}

// Lives reports whether a gateway's heartbeat has not run out.
func (m Members) Lives(ctx context.Context, owner string) (lives bool, err error) {
	db := m.DB.View()
	err = db.GetContext(ctx, &lives, db.Rebind(`SELECT EXISTS (SELECT 1 FROM gateways WHERE id = ? AND expires > `+database.ServerNow+`)`), owner)
	return lives, err
}

// Silent is for how long a gateway's heartbeat has run out.
func (m Members) Silent(ctx context.Context, owner string) (time.Duration, error) {
	var ms int64
	db := m.DB.View()
	err := db.GetContext(ctx, &ms, db.Rebind(`SELECT COALESCE((SELECT `+database.ServerNow+` - expires FROM gateways WHERE id = ?), 0)`), owner)
	return time.Duration(ms) * time.Millisecond, err
}
