package highwater

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
)

// InHand is what a lease has.
type InHand struct {
	Devices []string
	Placed  int64 // greater than that of all that were there before; 0: it is not known since when
}

// Has reports whether one of some devices is among them.
func (i InHand) Has(devices []string) bool {
	return slices.ContainsFunc(devices, func(d string) bool { return slices.Contains(i.Devices, d) })
}

// Own says where a database is now, by its name, which is drawn once and which a restore does not change. It takes over what was handed out
// from any other one that was at its address: that was lost, or is from a program that knew the address alone, and nobody else would
// take its devices back. So it does with what is of no database that is anywhere, as an older program left that behind. Before is how an
// older program wrote the address of this database alone; empty: as it is now, or it wrote those of several so.
func (m *Marks) Own(ctx context.Context, database, address, before string) error {
	err := m.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`UPDATE OR REPLACE in_hands SET database = ? WHERE database <> ? AND (database IN (?, ?)
			OR database IN (SELECT name FROM databases WHERE address IN (?, ?))
			OR database <> '' AND database NOT GLOB '*[^0-9a-f]*' AND database NOT IN (SELECT name FROM databases))`, // names are hex, addresses are not
			database, database, address, before, address, before)
		if err == nil {
			_, err = tx.Exec(`DELETE FROM databases WHERE address IN (?, ?)`, address, before)
		}
		if err == nil {
			_, err = tx.Exec(`INSERT INTO databases (name, address) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET address = excluded.address`, database, address)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("high-water mark %s: whose leases have devices: %w", m.path, err)
	}
	return nil
}

// Hand puts on disk that a lease of a database has its devices, from now on where it is placed now. A database that is lost, or restored
// from before the lease, does not know that they are not free.
func (m *Marks) Hand(ctx context.Context, database string, lease common.Hash, devices []string, placed bool) error {
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
		_, err := tx.Exec(`INSERT INTO in_hands (database, lease, devices, placed)
			VALUES (?, ?, ?, CASE WHEN ? THEN (SELECT COALESCE(max(placed), 0) + 1 FROM in_hands) ELSE 0 END)
			ON CONFLICT (database, lease) DO UPDATE SET devices = excluded.devices`, database, lease.Hex(), string(text), placed)
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

// Handed reports whether a lease has devices of this host, whichever database it is of.
func (m *Marks) Handed(ctx context.Context, lease common.Hash) (handed bool, err error) {
	if err = m.db.View().GetContext(ctx, &handed, `SELECT EXISTS (SELECT 1 FROM in_hands WHERE lease = ?)`, lease.Hex()); err != nil {
		err = fmt.Errorf("high-water mark %s: devices of lease %s: %w", m.path, lease, err)
	}
	return handed, err
}

// Elsewhere is what a lease of another database has.
type Elsewhere struct {
	InHand
	Lease   common.Hash
	Address string // where that database was last
}

// Elsewhere are what the leases of all other databases that have this file have.
func (m *Marks) Elsewhere(ctx context.Context, database string) ([]Elsewhere, error) {
	var rows []struct{ Lease, Devices, Address string }
	if err := m.db.View().SelectContext(ctx, &rows, `SELECT lease, devices, COALESCE((SELECT address FROM databases WHERE name = in_hands.database), in_hands.database) AS address
		FROM in_hands WHERE database <> ? ORDER BY lease`, database); err != nil {
		return nil, fmt.Errorf("high-water mark %s: devices in leases of other databases: %w", m.path, err)
	}
	var all []Elsewhere
	for _, row := range rows {
		e := Elsewhere{Lease: common.HexToHash(row.Lease), Address: row.Address}
		if err := json.Unmarshal([]byte(row.Devices), &e.Devices); err != nil {
			return nil, fmt.Errorf("high-water mark %s: devices of lease %s: %w", m.path, row.Lease, err)
		}
		all = append(all, e)
	}
	return all, nil
}

// InHands are what the leases of a database have.
func (m *Marks) InHands(ctx context.Context, database string) (map[common.Hash]InHand, error) {
	var rows []struct {
		Lease, Devices string
		Placed         int64
	}
	if err := m.db.View().SelectContext(ctx, &rows, `SELECT lease, devices, placed FROM in_hands WHERE database = ?`, database); err != nil {
		return nil, fmt.Errorf("high-water mark %s: devices in leases: %w", m.path, err)
	}
	all := make(map[common.Hash]InHand, len(rows))
	for _, row := range rows {
		in := InHand{Placed: row.Placed}
		if err := json.Unmarshal([]byte(row.Devices), &in.Devices); err != nil {
			return nil, fmt.Errorf("high-water mark %s: devices of lease %s: %w", m.path, row.Lease, err)
		}
		all[common.HexToHash(row.Lease)] = in
	}
	return all, nil
}
