package sdk

import (
	"context"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"
)

// runningOut are the tables whose rows run out by the server's clock: expires is
// when, ttl for how long each was written.
var runningOut = []string{"gateways", "leaders", "claims", "reservations"}

// misdated is a row that was written before the server's clock was set back, as by a
// fail-over to a server that is behind: no row has longer to go than it was written for.
const misdated = `expires > ` + serverNow + ` + ttl`

// restamp gives each row whose age nobody knows, because the server's clock was set
// back, once more what it was written for, from now on. That is later than its owner
// believes, so that one who lives loses nothing by it; what a dead one left ends that
// long after a gateway that lives has looked, and not when the clock has caught up. What
// was given back was written for no time, and has ended at once. It returns how far the
// clock is behind, at least.
func (s leaseStore) restamp(ctx context.Context) (behind time.Duration, err error) {
	for _, table := range runningOut { // one that is locked holds up no other
		var ms int64
		failed := s.db.View().GetContext(ctx, &ms, `SELECT COALESCE(MAX(expires - ttl - `+serverNow+`), 0) FROM `+table+` WHERE `+misdated)
		if failed == nil && ms > 0 {
			failed = s.db.Update(ctx, func(tx *sqlx.Tx) error {
				_, err := tx.ExecContext(ctx, `UPDATE `+table+` SET expires = `+serverNow+` + ttl WHERE `+misdated)
				return err
			})
		}
		behind, err = max(behind, time.Duration(ms)*time.Millisecond), errors.Join(err, failed)
	}
	return behind, err
}

// restamp is the store's, and tells the operator of a clock that was set back.
func (p *Provider) restamp(ctx context.Context) error {
	behind, err := p.store.restamp(ctx)
	if behind >= time.Second {
		p.config.Log.Warn("the database server's clock was set back: what gateways left that died ends later than usual", "by at least", behind)
	}
	return err
}
