package cluster

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/database"
)

// Reservations is the GPUs that gateways which share a PostgreSQL keep for leases that are about to begin.
type Reservations struct{ DB *store.DB }

// Reservation is GPUs that a gateway keeps for a channel.
type Reservation struct {
	ID      string `db:"id"`   // of the lease that begins on it
	Pool    string `db:"pool"` // the devices that it is of, one a line, or a name for all that a provider has
	Channel string `db:"channel"`
	GPUs    int    `db:"gpus"`
}

// Keep keeps GPUs until they are dropped or ttl is over, if fits agrees to what the other channels keep of what is in the pool, at all
// gateways: one of them asks at a time.
func (t Reservations) Keep(ctx context.Context, r Reservation, ttl time.Duration, fits func(others []Kept) error) error {
	return t.DB.Update(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `LOCK TABLE reservations IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM reservations WHERE expires <= `+database.ServerNow); err != nil {
			return err
		}
		others, err := keptBesides(ctx, tx, r.Pool, r.Channel)
		if err != nil {
			return err
		}
		if err := fits(others); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, tx.Rebind(`INSERT INTO reservations (id, pool, channel, gpus, expires, ttl) VALUES (?, ?, ?, ?, `+database.ServerNow+` + ?, ?)`),
			r.ID, r.Pool, r.Channel, r.GPUs, ttl.Milliseconds(), ttl.Milliseconds())
		return err
	})
}

// Others is what each channel but one keeps of what is in a pool.
func (t Reservations) Others(ctx context.Context, pool string, but common.Hash) ([]Kept, error) {
	return keptBesides(ctx, t.DB.View(), pool, but.Hex())
}

func keptBesides(ctx context.Context, db sqlx.ExtContext, pool, but string) ([]Kept, error) {
	var rows []Reservation
	err := sqlx.SelectContext(ctx, db, &rows, db.Rebind(`SELECT id, pool, channel, gpus FROM reservations
		WHERE channel <> ? AND expires > `+database.ServerNow), but)
	most := make(map[string]Kept)
	for _, row := range rows {
		if !overlap(pool, row.Pool) {
			continue
		}
		k := most[row.Channel]
		most[row.Channel] = Kept{max(k.GPUs, row.GPUs), append(k.Leases, common.HexToHash(row.ID))}
	}
	return slices.Collect(maps.Values(most)), err
}

// overlap reports whether a device is in both pools.
func overlap(a, b string) bool {
	in := strings.Split(a, "\n")
	return slices.ContainsFunc(strings.Split(b, "\n"), func(device string) bool { return slices.Contains(in, device) })
}

// Drop lets the others have what a reservation keeps.
func (t Reservations) Drop(ctx context.Context, id string) error {
	return t.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM reservations WHERE id = ?`), id)
		return err
	})
}

// Kept is what the requests of one channel keep, the most of them: a channel has one lease at a time.
type Kept struct {
	GPUs   int
	Leases []common.Hash // one of which begins
}

// Beside is how many GPUs are kept, for each channel, beside those that its lease has by now. The largest come first.
func Beside(all []Kept, held map[string]common.Hash) (gpus []int) {
	for _, k := range all {
		for _, lease := range held {
			if slices.Contains(k.Leases, lease) {
				k.GPUs--
			}
		}
		if k.GPUs > 0 {
			gpus = append(gpus, k.GPUs)
		}
	}
	slices.SortFunc(gpus, func(a, b int) int { return b - a })
	return gpus
}
