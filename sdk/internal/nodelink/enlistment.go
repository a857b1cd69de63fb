package nodelink

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
// listed it: one that is lost for a while is nobody else's. RivalKept is that where another node
// listed it while its owner did: for that one.
const (
	EnlistedFor = time.Minute
	DeviceKept  = time.Hour
	RivalKept   = 24 * time.Hour
)

// Bounds of what one node may have in the tables, in rows: UUIDs that it lists, or has listed for DeviceKept, and those of others that it
// lists. refreshed is how old a row may become before it says anew that it is listed: each is a write for all gateways.
const (
	mostDevices = 4 * maxListed
	mostRivals  = 2 * maxListed
	refreshed   = time.Minute
)

// Enlistments is the list of the nodes behind one database. An offer has one price for any of its devices, so that all nodes of a class,
// or all where there are no classes, have devices of one kind: that of the node which was enlisted first. A node of another kind begins
// no lease; those that run there go on.
type Enlistments struct {
	DB      *store.DB
	Classes inventory.Classes
}

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

// Verdict is what gateways hold against nodes, by their names.
type Verdict struct {
	Refused  map[string]string   // why a node begins no lease
	Withheld map[string]Withheld // of nodes that begin leases
}

// Withheld are devices of a node that go into no lease there, and why.
type Withheld struct {
	Devices []string
	Reason  string
}

// Rest are the devices that are not withheld.
func (w Withheld) Rest(devices []metering.Device) []metering.Device {
	withheld := setOf(w.Devices)
	return slices.DeleteFunc(slices.Clone(devices), func(d metering.Device) bool { return withheld[d.UUID] })
}

// pass is one look at the list, in one transaction.
type pass struct {
	tx    *sqlx.Tx
	class inventory.Classes
	at    int64 // unix milliseconds
	links []string
	heard map[string][]metering.Device
	Verdict
}

// Enlist takes in the nodes that were heard of, one after the other, and says what is held against others. All gateways of a database have
// one list: links are the nodes that this one names, which stay on it whether they answer or not.
func (t Enlistments) Enlist(ctx context.Context, now time.Time, links []string, heard map[string][]metering.Device) (Verdict, error) {
	var p *pass
	err := t.DB.Update(ctx, func(tx *sqlx.Tx) error {
		p = &pass{tx, t.Classes, now.UnixMilli(), links, heard, Verdict{make(map[string]string), make(map[string]Withheld)}}
		if t.DB.Shared() { // no other gateway enlists the first node of another kind meanwhile
			if err := p.exec(ctx, `LOCK TABLE enlisted_nodes IN SHARE ROW EXCLUSIVE MODE`); err != nil {
				return err
			}
			if err := tx.GetContext(ctx, &p.at, `SELECT `+database.ServerNow); err != nil {
				return err
			}
		}
		for _, table := range []string{"enlisted_nodes", "enlisted_devices", "enlisted_rivals"} { // seen before the clock was set back: nobody knows how long ago
			if err := p.exec(ctx, `UPDATE `+table+` SET seen = ? WHERE seen > ?`, p.at, p.at); err != nil {
				return err
			}
		}
		err := p.exec(ctx, `UPDATE enlisted_nodes SET seen = ? WHERE node IN (?)`, p.at, links)
		if err == nil {
			err = p.exec(ctx, `DELETE FROM enlisted_nodes WHERE seen < ?`, p.at-EnlistedFor.Milliseconds())
		}
		if err == nil {
			err = p.age(ctx)
		}
		for _, node := range links {
			if devices := heard[node]; err == nil && len(devices) > 0 {
				err = p.enlist(ctx, node, devices)
			}
		}
		return err
	})
	if err != nil {
		return Verdict{}, err
	}
	return p.Verdict, nil
}

// exec executes a statement in which each list takes one question mark.
func (p *pass) exec(ctx context.Context, query string, args ...any) error {
	query, args, err := sqlx.In(query, args...)
	if err == nil {
		_, err = p.tx.ExecContext(ctx, p.tx.Rebind(query), args...)
	}
	return err
}

// enlist enlists a node, or says why not.
func (p *pass) enlist(ctx context.Context, node string, devices []metering.Device) error {
	var others []enlisted
	err := p.tx.SelectContext(ctx, &others, p.tx.Rebind(`SELECT node, model, memory_bytes, mig, simulated FROM enlisted_nodes WHERE node <> ? ORDER BY node`), node)
	if err != nil {
		return err
	}
	unfit := listable(devices)
	if unfit == nil {
		unfit = p.alike(devices, others)
	}
	if unfit == nil {
		if unfit, err = p.claim(ctx, node, devices); err != nil {
			return err
		}
	}
	if unfit != nil {
		p.Refused[node] = unfit.Error()
		return p.exec(ctx, `DELETE FROM enlisted_nodes WHERE node = ?`, node) // its GPUs were exchanged
	}
	return p.exec(ctx, `INSERT INTO enlisted_nodes (node, model, memory_bytes, mig, simulated, seen) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (node) DO UPDATE SET model = excluded.model, memory_bytes = excluded.memory_bytes, mig = excluded.mig, simulated = excluded.simulated`,
		node, devices[0].Name, int64(devices[0].MemoryBytes), devices[0].MIG, devices[0].Simulated, p.at)
}

// alike refuses a node whose devices are of several kinds, of another one than those of their class, or of no class.
func (p *pass) alike(devices []metering.Device, others []enlisted) error {
	class, ok := p.class.Of(devices[0])
	if err := p.class.Check(devices); !ok && err != nil { // of two classes
		return err
	} else if !ok {
		return fmt.Errorf("%s is a %s with %d bytes, which is of no class of this provider's (%s)", devices[0].UUID, devices[0].Name, devices[0].MemoryBytes, strings.Join(p.class.IDs(), ", "))
	}
	all := slices.Clone(devices)
	for _, other := range others {
		if of, ok := p.class.Of(other.kind()); ok && of == class {
			all = append(all, other.kind())
		}
	}
	err := p.class.Check(all)
	if err == nil {
		err = inventory.OfOneKind(all) // of one node all are of one class
	}
	return err
}

// age forgets whose GPUs those are that their node has not listed for long, or which no gateway names any more. Of a node that is
// away all stay.
func (p *pass) age(ctx context.Context) error {
	old := p.at - refreshed.Milliseconds()
	away := slices.DeleteFunc(slices.Clone(p.links), func(node string) bool { return len(p.heard[node]) > 0 })
	if len(away) > 0 {
		if err := p.exec(ctx, `UPDATE enlisted_devices SET seen = ? WHERE node IN (?) AND seen < ?`, p.at, away, old); err != nil {
			return err
		}
	}
	for _, node := range p.links {
		devices := p.heard[node]
		if names := DeviceNames(devices); len(names) > 0 && listable(devices) == nil {
			if err := p.exec(ctx, `UPDATE enlisted_devices SET seen = ? WHERE node = ? AND seen < ? AND device IN (?)`, p.at, node, old, names); err != nil {
				return err
			}
		}
	}
	for _, query := range []string{
		`DELETE FROM enlisted_devices WHERE node NOT IN (SELECT node FROM enlisted_nodes) AND node NOT IN (?)`,
		`DELETE FROM enlisted_rivals WHERE owner NOT IN (SELECT node FROM enlisted_nodes) AND owner NOT IN (?)`,
	} {
		if err := p.exec(ctx, query, p.links); err != nil {
			return err
		}
	}
	err := p.exec(ctx, `DELETE FROM enlisted_devices WHERE seen < ?`, p.at-DeviceKept.Milliseconds())
	if err == nil {
		err = p.exec(ctx, `DELETE FROM enlisted_rivals WHERE seen < ?`, p.at-RivalKept.Milliseconds())
	}
	return err
}

// claim has a node's GPUs, and those that its MIG slices are cut from, be its own, and withholds those that are another node's: two that
// bill one GPU would have their provider look like a cheat to its renters, and a node that lies keeps no other of the well node's idle.
// Simulated GPUs are called alike on all hosts.
func (p *pass) claim(ctx context.Context, node string, devices []metering.Device) (unfit, err error) {
	names := DeviceNames(devices)
	if len(names) == 0 {
		return nil, nil
	}
	owners, err := p.owners(ctx, names)
	if err != nil {
		return nil, err
	}
	theirs, err := p.contest(ctx, node, names, owners)
	if err != nil {
		return nil, err
	}
	withheld := withhold(devices, names, theirs)
	rest := withheld.Rest(devices)
	if len(rest) == 0 {
		return errors.New(withheld.Reason), nil
	}
	fresh := slices.DeleteFunc(DeviceNames(rest), func(name string) bool { return owners[name] != "" })
	if len(fresh) > 0 {
		var count int
		if err := p.tx.GetContext(ctx, &count, p.tx.Rebind(`SELECT count(*) FROM enlisted_devices WHERE node = ?`), node); err != nil {
			return nil, err
		}
		if count+len(fresh) > mostDevices {
			return fmt.Errorf("it has listed more than %d GPUs, of ever new UUIDs: no host has so many, and it begins no lease for up to %s", mostDevices, DeviceKept), nil
		}
	}
	if len(withheld.Devices) > 0 {
		p.Withheld[node] = withheld
	}
	for some := range slices.Chunk(fresh, 1000) {
		args := make([]any, 0, 3*len(some))
		for _, name := range some {
			args = append(args, name, node, p.at)
		}
		rows := strings.Repeat(", (?, ?, ?)", len(some))[2:]
		if err := p.exec(ctx, `INSERT INTO enlisted_devices (device, node, seen) VALUES `+rows, args...); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// owners is whose the GPUs of a list are, by their UUIDs.
func (p *pass) owners(ctx context.Context, names []string) (map[string]string, error) {
	query, args, err := sqlx.In(`SELECT device, node FROM enlisted_devices WHERE device IN (?)`, names)
	if err != nil {
		return nil, err
	}
	var rows []struct {
		Device string `db:"device"`
		Node   string `db:"node"`
	}
	if err := p.tx.SelectContext(ctx, &rows, p.tx.Rebind(query), args...); err != nil {
		return nil, err
	}
	owners := make(map[string]string, len(rows))
	for _, r := range rows {
		owners[r.Device] = r.Node
	}
	return owners, nil
}

// rival is a row of who listed a GPU while its owner did.
type rival struct {
	Device string `db:"device"`
	Owner  string `db:"owner"`
	Seen   int64  `db:"seen"` // by which both listed it
}

// contest is which GPUs of a node's list are another one's, and whose. That the node lists one while its owner lists it, too, is remembered:
// it does not get that one when the owner has lost it for DeviceKept, but for RivalKept.
func (p *pass) contest(ctx context.Context, node string, names []string, owners map[string]string) (theirs map[string]string, err error) {
	var rows []rival
	if err := p.tx.SelectContext(ctx, &rows, p.tx.Rebind(`SELECT device, owner, seen FROM enlisted_rivals WHERE node = ?`), node); err != nil {
		return nil, err
	}
	theirs = make(map[string]string)
	for _, name := range names {
		if of := owners[name]; of != "" && of != node {
			theirs[name] = of
		}
	}
	listed, known := setOf(names), make(map[string]rival, len(rows))
	for _, r := range rows {
		known[r.Device] = r
		if listed[r.Device] && owners[r.Device] == "" {
			theirs[r.Device] = r.Owner
		}
	}
	return theirs, p.remember(ctx, node, theirs, known)
}

// remember writes down which GPUs of others a node lists while they list them.
func (p *pass) remember(ctx context.Context, node string, theirs map[string]string, known map[string]rival) error {
	lists := make(map[string]map[string]bool)
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		of := theirs[name]
		if lists[of] == nil {
			lists[of] = setOf(DeviceNames(p.heard[of]))
		}
		before, is := known[name]
		if !lists[of][name] || is && before.Seen >= p.at-refreshed.Milliseconds() || !is && len(known) >= mostRivals {
			continue
		}
		known[name] = rival{name, of, p.at}
		err := p.exec(ctx, `INSERT INTO enlisted_rivals (node, device, owner, seen) VALUES (?, ?, ?, ?)
			ON CONFLICT (node, device) DO UPDATE SET owner = excluded.owner, seen = excluded.seen`, node, name, of, p.at)
		if err != nil {
			return err
		}
	}
	return nil
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}

// withhold are the devices of a list that are another node's, or are cut from one that is.
func withhold(devices []metering.Device, names []string, theirs map[string]string) (w Withheld) {
	for _, d := range devices {
		if !d.Simulated && (theirs[d.UUID] != "" || theirs[d.Parent] != "") {
			w.Devices = append(w.Devices, d.UUID)
		}
	}
	if i := slices.IndexFunc(names, func(name string) bool { return theirs[name] != "" }); i >= 0 {
		w.Reason = fmt.Sprintf("it lists %s, which is node %s's: a GPU is on one host", names[i], theirs[names[i]])
	}
	if more := len(theirs) - 1; more > 0 {
		w.Reason += fmt.Sprintf(" (and %d more that are other nodes')", more)
	}
	return w
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
