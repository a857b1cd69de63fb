package cluster

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// Devices is the inventory.Book of gateways that share a PostgreSQL: which lease has which device.
type Devices struct{ DB *store.DB }

var _ inventory.Book = Devices{}

type deviceRow struct {
	Device string `db:"device"`
	Lease  string `db:"lease"`
}

func (d Devices) Held(ctx context.Context) (map[string]common.Hash, error) {
	return held(ctx, d.DB.View())
}

// pinnedPool begins the pool of a reservation that is of one device, whose name follows; its channel is the lease.
const pinnedPool = "device "

func held(ctx context.Context, db sqlx.ExtContext) (map[string]common.Hash, error) {
	var rows []deviceRow
	err := sqlx.SelectContext(ctx, db, &rows, db.Rebind(`SELECT device, lease FROM lease_devices
		UNION SELECT substr(pool, ?), channel FROM reservations WHERE pool LIKE ? AND expires > `+database.ServerNow), len(pinnedPool)+1, pinnedPool+"%")
	m := make(map[string]common.Hash, len(rows))
	for _, row := range rows {
		m[row.Device] = common.HexToHash(row.Lease)
	}
	return m, err
}

// Reserve gives a lease the devices that choose picks of those that are not held. One gateway chooses at a time. A lease that has no row,
// as the database has forgotten it, has them until it is freed, or is not told of again for forgottenFor.
func (d Devices) Reserve(ctx context.Context, lease common.Hash, choose func(held map[string]common.Hash) ([]string, error)) ([]string, error) {
	return d.choose(ctx, lease, choose, func(tx *sqlx.Tx, device string) error {
		var known bool
		if err := tx.GetContext(ctx, &known, tx.Rebind(`SELECT EXISTS (SELECT 1 FROM leases WHERE id = ?)`), lease.Hex()); err != nil {
			return err
		}
		if !known { // lease_devices names leases that there are
			return pin(ctx, tx, "forgotten "+lease.Hex()+" "+device, device, lease, forgottenFor)
		}
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO lease_devices (device, lease) VALUES (?, ?) ON CONFLICT (device) DO NOTHING`), device, lease.Hex())
		return err
	})
}

// forgottenFor is how long a forgotten lease has its devices after a gateway of their host said so. They do so each half minute, and each
// time that somebody wants a GPU, but for as long as a command runs that takes them back.
const forgottenFor = 10 * time.Minute

// Keep reserves devices for a lease that has no row yet, for as long as ttl.
func (d Devices) Keep(ctx context.Context, lease common.Hash, devices []string, route inventory.Route, ttl time.Duration) error {
	_, err := d.choose(ctx, lease, inventory.These(devices, route), func(tx *sqlx.Tx, device string) error {
		return pin(ctx, tx, rand.Text(), device, lease, ttl)
	})
	return err
}

// pin reserves one device for a lease that has no row, once more where the reservation is there.
func pin(ctx context.Context, tx *sqlx.Tx, id, device string, lease common.Hash, ttl time.Duration) error {
	_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO reservations (id, pool, channel, gpus, expires, ttl) VALUES (?, ?, ?, 1, `+database.ServerNow+` + ?, ?)
		ON CONFLICT (id) DO UPDATE SET expires = excluded.expires, ttl = excluded.ttl`),
		id, pinnedPool+device, lease.Hex(), ttl.Milliseconds(), ttl.Milliseconds())
	return err
}

// choose writes down what is picked while no other gateway picks.
func (d Devices) choose(ctx context.Context, lease common.Hash, pick func(held map[string]common.Hash) ([]string, error), write func(tx *sqlx.Tx, device string) error) ([]string, error) {
	var chosen []string
	err := d.DB.Update(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `LOCK TABLE lease_devices IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		held, err := held(ctx, tx)
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

func (d Devices) Free(ctx context.Context, lease common.Hash) error {
	return d.DB.Update(ctx, func(tx *sqlx.Tx) error {
		for _, held := range []string{`DELETE FROM lease_devices WHERE lease = ?`, `DELETE FROM reservations WHERE channel = ?`} {
			if _, err := tx.ExecContext(ctx, tx.Rebind(held), lease.Hex()); err != nil {
				return err
			}
		}
		return nil
	})
}
