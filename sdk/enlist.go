package sdk

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering"
)

// An offer has one price for any of its devices, so that all nodes behind one
// database have devices of one kind: that of the node which was enlisted first. A
// node of another kind begins no lease; those that run there go on.

// enlistEvery is how often a gateway says which nodes it has. enlistedFor is how
// long a node counts that no gateway names any more.
const (
	enlistEvery = 10 * time.Second
	enlistedFor = time.Minute
)

// enlistment is a node's row: of what kind its devices are.
type enlistment struct {
	Node   string `db:"node"`
	Model  string `db:"model"`
	Memory int64  `db:"memory_bytes"`
	MIG    bool   `db:"mig"`
}

// kind is a device of the node's, as far as its kind is concerned.
func (e enlistment) kind() metering.Device {
	return metering.Device{UUID: "node " + e.Node, Name: e.Model, MemoryBytes: uint64(e.Memory), MIG: e.MIG}
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
			if err := tx.GetContext(ctx, &at, `SELECT `+serverNow); err != nil {
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
	err := tx.SelectContext(ctx, &others, tx.Rebind(`SELECT node, model, memory_bytes, mig FROM enlisted_nodes WHERE node <> ? ORDER BY node`), node)
	if err != nil {
		return err
	}
	all := slices.Clone(devices)
	for _, other := range others {
		all = append(all, other.kind())
	}
	if unlike := ofOneKind(all); unlike != nil {
		refused[node] = unlike.Error()
		_, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM enlisted_nodes WHERE node = ?`), node) // its GPUs were exchanged
		return err
	}
	_, err = tx.ExecContext(ctx, tx.Rebind(`INSERT INTO enlisted_nodes (node, model, memory_bytes, mig, seen) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (node) DO UPDATE SET model = excluded.model, memory_bytes = excluded.memory_bytes, mig = excluded.mig`),
		node, devices[0].Name, int64(devices[0].MemoryBytes), devices[0].MIG, at)
	return err
}

// enlist has the list of all gateways say which nodes begin leases, and tells those
// that do not why.
func (n *nodes) enlist(ctx context.Context) error {
	n.mu.Lock()
	now, heard := n.now(), make(map[string][]metering.Device)
	due := now.Sub(n.enlistedAt).Abs() >= enlistEvery
	for name, s := range n.status {
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
	for _, name := range slices.Sorted(maps.Keys(refused)) {
		var answer struct{}
		if err := n.link(name).call(ctx, nodeTimeout, "POST", "/refusal", nodeRefusal{Reason: refused[name]}, &answer); err != nil {
			n.p.config.Log.Debug("node does not hear why it is refused", "node", name, "error", err)
		}
	}
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
