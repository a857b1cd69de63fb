package nodelink

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
)

// EnlistedFor is how long a node counts that no gateway names any more. DeviceKept is how long a GPU stays the node's that has
// listed it: one that is lost for a while is nobody else's.
const (
	EnlistedFor = time.Minute
	DeviceKept  = time.Hour
)

// Enlistments is the list of the nodes behind one database. An offer has one price for any of its devices, so that all nodes have
// devices of one kind: that of the node which was enlisted first. A node of another kind begins no lease; those that run there go on.
type Enlistments struct{ DB *store.DB }

// enlisted is a node's row: of what kind its devices are.
type enlisted struct {
	Node   string `db:"node"`
	Model  string `db:"model"`
	Memory int64  `db:"memory_bytes"`
	MIG    bool   `db:"mig"`

	Simulated bool `db:"simulated"`
}

// kind is a device of the node's, as far as its kind is concerned.
func (e enlisted) kind() metering.Device {
	return metering.Device{UUID: "node " + e.Node, Name: e.Model, MemoryBytes: uint64(e.Memory), MIG: e.MIG, Simulated: e.Simulated}
}

// Enlist takes in the nodes that were heard of, one after the other, and says why others are refused. All gateways of a database have
// one list: links are the nodes that this one names, which stay on it whether they answer or not.
func (t Enlistments) Enlist(ctx context.Context, now time.Time, links []string, heard map[string][]metering.Device) (refused map[string]string, err error) {
	err = t.DB.Update(ctx, func(tx *sqlx.Tx) error {
		at := now.UnixMilli()
		if t.DB.Shared() { // no other gateway enlists the first node of another kind meanwhile
			if _, err := tx.ExecContext(ctx, `LOCK TABLE enlisted_nodes IN SHARE ROW EXCLUSIVE MODE`); err != nil {
				return err
			}
			if err := tx.GetContext(ctx, &at, `SELECT `+database.ServerNow); err != nil {
				return err
			}
		}
		for _, table := range []string{"enlisted_nodes", "enlisted_devices"} { // seen before the clock was set back: nobody knows how long ago
			if _, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE `+table+` SET seen = ? WHERE seen > ?`), at, at); err != nil {
				return err
			}
		}
		query, args, err := sqlx.In(`UPDATE enlisted_nodes SET seen = ? WHERE node IN (?)`, at, links)
		if err == nil {
			_, err = tx.ExecContext(ctx, tx.Rebind(query), args...)
		}
		if err == nil {
			_, err = tx.ExecContext(ctx, tx.Rebind(`DELETE FROM enlisted_nodes WHERE seen < ?`), at-EnlistedFor.Milliseconds())
		}
		if err == nil {
			err = ageDevices(ctx, tx, at, links, heard)
		}
		if err != nil {
			return err
		}
		refused = make(map[string]string)
		for _, node := range links {
			if devices := heard[node]; len(devices) == 0 {
				continue
			} else if err := enlistOne(ctx, tx, node, devices, at, refused); err != nil {
				return err
			}
		}
		return nil
	})
	return refused, err
}

// enlistOne enlists a node, or says why not.
func enlistOne(ctx context.Context, tx *sqlx.Tx, node string, devices []metering.Device, at int64, refused map[string]string) error {
	var others []enlisted
	err := tx.SelectContext(ctx, &others, tx.Rebind(`SELECT node, model, memory_bytes, mig, simulated FROM enlisted_nodes WHERE node <> ? ORDER BY node`), node)
	if err != nil {
		return err
	}
	all := slices.Clone(devices)
	for _, other := range others {
		all = append(all, other.kind())
	}
	unfit := listable(devices)
	if unfit == nil {
		unfit = inventory.OfOneKind(all)
	}
	if unfit == nil {
		if unfit, err = claimDevices(ctx, tx, node, devices, at); err != nil {
			return err
		}
	}
	if unfit != nil {
		refused[node] = unfit.Error()
		_, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM enlisted_nodes WHERE node = ?`), node) // its GPUs were exchanged
		return err
	}
	_, err = tx.ExecContext(ctx, tx.Rebind(`INSERT INTO enlisted_nodes (node, model, memory_bytes, mig, simulated, seen) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (node) DO UPDATE SET model = excluded.model, memory_bytes = excluded.memory_bytes, mig = excluded.mig, simulated = excluded.simulated`),
		node, devices[0].Name, int64(devices[0].MemoryBytes), devices[0].MIG, devices[0].Simulated, at)
	return err
}

// ageDevices forgets whose GPUs those are that their node has not listed for long, or whose node is on the list no more. Of a
// node that is away all stay.
func ageDevices(ctx context.Context, tx *sqlx.Tx, at int64, links []string, heard map[string][]metering.Device) error {
	away := slices.DeleteFunc(slices.Clone(links), func(node string) bool { return len(heard[node]) > 0 })
	if len(away) > 0 {
		query, args, err := sqlx.In(`UPDATE enlisted_devices SET seen = ? WHERE node IN (?)`, at, away)
		if err == nil {
			_, err = tx.ExecContext(ctx, tx.Rebind(query), args...)
		}
		if err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM enlisted_devices WHERE seen < ? OR node NOT IN (SELECT node FROM enlisted_nodes)`),
		at-DeviceKept.Milliseconds())
	return err
}

// claimDevices has a node's GPUs, and those that its MIG slices are cut from, be its own. It says which one is another node's:
// two that bill one GPU would have their provider look like a cheat to its renters. Simulated GPUs are called alike on all hosts.
func claimDevices(ctx context.Context, tx *sqlx.Tx, node string, devices []metering.Device, at int64) (taken, err error) {
	var rows []struct {
		Device string `db:"device"`
		Node   string `db:"node"`
	}
	if err := tx.SelectContext(ctx, &rows, `SELECT device, node FROM enlisted_devices`); err != nil {
		return nil, err
	}
	owner := make(map[string]string, len(rows))
	for _, r := range rows {
		owner[r.Device] = r.Node
	}
	names := DeviceNames(devices)
	for _, name := range names {
		if of := owner[name]; of != "" && of != node {
			return fmt.Errorf("it lists %s, which is node %s's: a GPU is on one host", name, of), nil
		}
	}
	for _, name := range names {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO enlisted_devices (device, node, seen) VALUES (?, ?, ?)
			ON CONFLICT (device) DO UPDATE SET seen = excluded.seen`), name, node, at)
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// DeviceNames is the UUIDs of real GPUs, each once: of the devices and of those that slices are cut from.
func DeviceNames(devices []metering.Device) (names []string) {
	seen := map[string]bool{"": true}
	for _, d := range devices {
		for _, name := range []string{d.UUID, d.Parent} {
			if !d.Simulated && !seen[name] {
				seen[name], names = true, append(names, name)
			}
		}
	}
	return names
}

// Bounds of the list that a node gives of its devices: what it says becomes a signed offer, rows and log lines.
const (
	maxListed     = 1024
	MaxDeviceText = 128 // bytes
)

// listable refuses a list of devices that no honest node gives.
func listable(devices []metering.Device) error {
	if len(devices) > maxListed {
		return fmt.Errorf("it lists %d devices, at most %d are one host's", len(devices), maxListed)
	}
	seen := make(map[string]bool, len(devices))
	for i, d := range devices {
		for _, text := range []string{d.UUID, d.Name, d.Parent} {
			if len(text) > MaxDeviceText || strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text) {
				return fmt.Errorf("device %d of its list has a name that is not printable text of at most %d bytes", i, MaxDeviceText)
			}
		}
		if d.UUID == "" || seen[d.UUID] {
			return fmt.Errorf("it lists device %q twice, or without a UUID", d.UUID)
		}
		seen[d.UUID] = true
	}
	return nil
}
