package sdk

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/database"
)

// An offer has one price for any of its devices, so that all nodes behind one
// database have devices of one kind: that of the node which was enlisted first. A
// node of another kind begins no lease; those that run there go on.

// enlistEvery is how often a gateway says which nodes it has. enlistedFor is how
// long a node counts that no gateway names any more. enlistedDevice is how long a GPU
// stays the node's that has listed it: one that is lost for a while is nobody else's.
const (
	enlistEvery    = 10 * time.Second
	enlistedFor    = time.Minute
	enlistedDevice = time.Hour
	refusalTimeout = time.Second // the others wait so long for a node that does not hear it
)

// enlistment is a node's row: of what kind its devices are.
type enlistment struct {
	Node   string `db:"node"`
	Model  string `db:"model"`
	Memory int64  `db:"memory_bytes"`
	MIG    bool   `db:"mig"`

	Simulated bool `db:"simulated"`
}

// kind is a device of the node's, as far as its kind is concerned.
func (e enlistment) kind() metering.Device {
	return metering.Device{UUID: "node " + e.Node, Name: e.Model, MemoryBytes: uint64(e.Memory), MIG: e.MIG, Simulated: e.Simulated}
}

// enlist takes in the nodes that were heard of, one after the other, and says why
// others are refused. All gateways of a database have one list: links are the nodes
// that this one names, which stay on it whether they answer or not.
func (s leaseStore) enlist(ctx context.Context, now time.Time, links []string, heard map[string][]metering.Device) (refused map[string]string, err error) {
	err = s.db.Update(ctx, func(tx *sqlx.Tx) error {
		at := now.UnixMilli()
		if s.db.Shared() { // no other gateway enlists the first node of another kind meanwhile
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
			_, err = tx.ExecContext(ctx, tx.Rebind(`DELETE FROM enlisted_nodes WHERE seen < ?`), at-enlistedFor.Milliseconds())
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
	var others []enlistment
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
		unfit = ofOneKind(all)
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
		at-enlistedDevice.Milliseconds())
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
	names := namesOf(devices)
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

// namesOf is the UUIDs of real GPUs, each once: of the devices and of those that slices are cut from.
func namesOf(devices []metering.Device) (names []string) {
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

// owns refuses devices that an enlisted node did not list, is not to have twice, or that are more or fewer than were asked for.
func (n *nodes) owns(name string, devices []string, gpus int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(devices) != gpus {
		return fmt.Errorf("it gives %d devices for %d", len(devices), gpus)
	}
	for i, uuid := range devices {
		if !slices.ContainsFunc(n.known[name], func(d metering.Device) bool { return d.UUID == uuid }) || slices.Contains(devices[:i], uuid) {
			return fmt.Errorf("it gives device %.*q, which is not one of those that it lists, or gives it twice", maxListedText, uuid)
		}
	}
	return nil
}

// slicesOfAnother refuses a record of MIG slices that are said to be cut from another node's GPU: who checks whether a GPU is
// billed twice would blame that node. The slices themselves are the lease's, see owns.
func (n *nodes) slicesOfAnother(name string, billed []metering.DeviceEvidence) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other, devices := range n.known {
		if other == name {
			continue
		}
		theirs := namesOf(devices)
		for _, d := range billed {
			if d.Device.Parent != "" && slices.Contains(theirs, d.Device.Parent) {
				return fmt.Errorf("it bills slices of GPU %s, which is node %s's", d.Device.Parent, other)
			}
		}
	}
	return nil
}

// enlist has the list of all gateways say which nodes begin leases, and tells those
// that do not why.
func (n *nodes) enlist(ctx context.Context) error {
	n.mu.Lock()
	now, heard := n.now(), make(map[string][]metering.Device)
	due := now.Sub(n.enlistedAt).Abs() >= enlistEvery
	for name, s := range n.status {
		if s.Problem != "" {
			continue // it has what it had
		}
		heard[name] = s.Devices
		before, known := n.enlisted[name]
		due = due || !known || !slices.Equal(offered(s.Devices), before)
	}
	n.mu.Unlock()
	if !due {
		return nil
	}
	links := make([]string, len(n.links))
	for i, c := range n.links {
		links[i] = c.name
	}
	refused, err := n.p.store.enlist(ctx, now, links, heard)
	if err != nil {
		return fmt.Errorf("enlisting nodes: %w", err)
	}
	n.noteEnlisted(now, heard, refused)
	var wait sync.WaitGroup
	for name := range refused {
		wait.Go(func() {
			var answer struct{}
			if err := n.link(name).call(ctx, refusalTimeout, "POST", "/refusal", nodeRefusal{Reason: refused[name]}, &answer); err != nil {
				n.p.config.Log.Debug("node does not hear why it is refused", "node", name, "error", err)
			}
		})
	}
	wait.Wait()
	return nil
}

func (n *nodes) noteEnlisted(now time.Time, heard map[string][]metering.Device, refused map[string]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.enlistedAt = now
	for name, devices := range heard {
		n.enlisted[name] = offered(devices)
		if why := refused[name]; why == "" {
			if n.refused[name] != "" {
				n.p.config.Log.Info("node is enlisted", "node", name)
			}
			delete(n.refused, name)
			n.known[name] = devices
		} else {
			if n.refused[name] != why {
				n.p.config.Log.Error("node is refused: it begins no lease, and those that run there go on", "node", name, "error", why)
			}
			n.refused[name] = why
			delete(n.known, name)
		}
	}
}

// takes reports whether a node may begin a lease: it answered, with devices that are
// enlisted. n.mu is held.
func (n *nodes) takes(name string) bool {
	s, ok := n.status[name]
	kind, listed := n.enlisted[name]
	return ok && listed && n.refused[name] == "" && slices.Equal(kind, offered(s.Devices)) && !n.resting(name)
}

// refusals is why nodes begin no lease, by their names.
func (n *nodes) refusals() map[string]string {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.refused)
}
