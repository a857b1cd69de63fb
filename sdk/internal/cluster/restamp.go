package cluster

import (
	"context"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/database"
)

// withExpiry are the tables whose rows run out by the server's clock: expires is
// when, ttl for how long each was written.
var withExpiry = []string{"gateways", "leaders", "claims", "reservations", "device_rests"}

// misdated is a row that was written before the server's clock was set back, as by a
// fail-over to a server that is behind: no row has longer to go than it was written for.
const misdated = `expires > ` + database.ServerNow + ` + ttl`

// Restamp gives each row whose age nobody knows, because the server's clock was set
// back, once more what it was written for, from now on. That is later than its owner
// believes, so that one who lives loses nothing by it; what a dead one left ends that
// long after a gateway that lives has looked, and not when the clock has caught up. What
// was given back was written for no time, and has ended at once. It returns how far the
// clock is behind, at least.
func Restamp(ctx context.Context, db *store.DB) (behind time.Duration, err error) {
	for _, table := range withExpiry { // one that is locked holds up no other
		var ms int64
		failed := db.View().GetContext(ctx, &ms, `SELECT COALESCE(MAX(expires - ttl - `+database.ServerNow+`), 0) FROM `+table+` WHERE `+misdated)
		if failed == nil && ms > 0 {
			failed = db.Update(ctx, func(tx *sqlx.Tx) error {
				_, err := tx.ExecContext(ctx, `UPDATE `+table+` SET expires = `+database.ServerNow+` + ttl WHERE `+misdated)
				return err
			})
		}
		behind, err = max(behind, time.Duration(ms)*time.Millisecond), errors.Join(err, failed)
	}
	return behind, err
}
