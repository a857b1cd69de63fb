package highwater

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
)

// Hand puts on disk that a lease of a database has its devices. A database that is lost, or restored from before the lease, does
// not know that they are not free.
func (m *Marks) Hand(ctx context.Context, database string, lease common.Hash, devices []string) error {
	text, err := json.Marshal(devices)
	if err != nil {
		return err
	}
	var known []string // there are many leases at a start, and each write is one of the disk
	err = m.db.View().SelectContext(ctx, &known, `SELECT devices FROM in_hands WHERE database = ? AND lease = ?`, database, lease.Hex())
	if err == nil && len(known) == 1 && known[0] == string(text) {
		return nil
	}
	err = m.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`INSERT INTO in_hands (database, lease, devices) VALUES (?, ?, ?)
			ON CONFLICT (database, lease) DO UPDATE SET devices = excluded.devices`, database, lease.Hex(), string(text))
		return err
	})
	if err != nil {
		return fmt.Errorf("high-water mark %s: devices of lease %s: %w", m.path, lease, err)
	}
	return nil
}

// TakenBack puts on disk that a lease has its devices no more, whichever database it is of.
func (m *Marks) TakenBack(ctx context.Context, lease common.Hash) error {
	err := m.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`DELETE FROM in_hands WHERE lease = ?`, lease.Hex())
		return err
	})
	if err != nil {
		return fmt.Errorf("high-water mark %s: devices of lease %s: %w", m.path, lease, err)
	}
	return nil
}

// Handed reports whether a lease has devices of this host, whichever database it is of: gateways of a host may reach one by different
// addresses.
func (m *Marks) Handed(ctx context.Context, lease common.Hash) (handed bool, err error) {
	if err = m.db.View().GetContext(ctx, &handed, `SELECT EXISTS (SELECT 1 FROM in_hands WHERE lease = ?)`, lease.Hex()); err != nil {
		err = fmt.Errorf("high-water mark %s: devices of lease %s: %w", m.path, lease, err)
	}
	return handed, err
}

// InHands are the devices of the leases of a database that have them.
func (m *Marks) InHands(ctx context.Context, database string) (map[common.Hash][]string, error) {
	var rows []struct{ Lease, Devices string }
	if err := m.db.View().SelectContext(ctx, &rows, `SELECT lease, devices FROM in_hands WHERE database = ?`, database); err != nil {
		return nil, fmt.Errorf("high-water mark %s: devices in leases: %w", m.path, err)
	}
	all := make(map[common.Hash][]string, len(rows))
	for _, row := range rows {
		var devices []string
		if err := json.Unmarshal([]byte(row.Devices), &devices); err != nil {
			return nil, fmt.Errorf("high-water mark %s: devices of lease %s: %w", m.path, row.Lease, err)
		}
		all[common.HexToHash(row.Lease)] = devices
	}
	return all, nil
}
