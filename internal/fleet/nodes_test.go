package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// books is a database as it stands, read while its program runs or not.
type books struct {
	*testing.T
	db *sqlx.DB
}

func openBooks(t *testing.T, path string) *books {
	t.Helper()
	db, err := sqlx.Open("sqlite3", "file:"+path+"?_query_only=true&_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &books{t, db}
}

// lease is the state of the channel's lease and its records.
func (b *books) lease(r *Renter) (state string, records []metering.SignedRecord) {
	b.Helper()
	records = readLease(b.T, b.db, r, &state)
	return state, records
}

func readLease(t *testing.T, db *sqlx.DB, r *Renter, state *string) []metering.SignedRecord {
	t.Helper()
	var rows []string
	if err := db.Get(state, db.Rebind(`SELECT state FROM leases WHERE channel = ?`), r.Terms.ID().Hex()); err != nil {
		t.Fatal(err)
	}
	err := db.Select(&rows, db.Rebind(`SELECT record FROM records JOIN leases ON leases.id = records.lease WHERE leases.channel = ? ORDER BY records.sequence`), r.Terms.ID().Hex())
	if err != nil {
		t.Fatal(err)
	}
	records := make([]metering.SignedRecord, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal([]byte(row), &records[i]); err != nil {
			t.Fatal(err)
		}
	}
	return records
}

// until waits for a lease to be as it should.
func (b *books) until(r *Renter, what string, ok func(state string, records []metering.SignedRecord) bool) []metering.SignedRecord {
	b.Helper()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		state, records := b.lease(r)
		if ok(state, records) {
			return records
		}
		if time.Now().After(deadline) {
			b.Fatalf("waited in vain: %s; the lease is %s and has %d records", what, state, len(records))
		}
	}
}

// hears waits until a node knows what is vouchered.
func (b *books) hears(r *Renter, amount uint64) {
	b.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var accepted string
		err := b.db.Get(&accepted, `SELECT accepted FROM spool JOIN leases ON leases.id = spool.lease WHERE leases.channel = ?`, r.Terms.ID().Hex())
		if err == nil && accepted == strconv.FormatUint(amount, 10) {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("the node believes that %s is vouchered, not %d (%v)", accepted, amount, err)
		}
	}
}

func in(want string) func(string, []metering.SignedRecord) bool {
	return func(state string, _ []metering.SignedRecord) bool { return state == want }
}

func owed(records []metering.SignedRecord) uint64 {
	if len(records) == 0 {
		return 0
	}
	return records[len(records)-1].Owed.Uint64()
}

// same waits until the gateway has all that the node has, and holds the two
// against each other.
func same(r *Renter, gateway, node *books) []metering.SignedRecord {
	node.Helper()
	_, there := node.lease(r)
	here := gateway.until(r, "the gateway catches up", func(_ string, records []metering.SignedRecord) bool { return len(records) >= len(there) })
	if !slices.EqualFunc(here[:len(there)], there, func(a, b metering.SignedRecord) bool { return a.Record == b.Record }) {
		node.Fatal("gateway and node have different records")
	}
	return here
}

// TestNodeApartFromItsGateway: node and gateway are processes of their own; each
// is killed, and the network between them cut, while a renter has a GPU. The node
// gives no service beyond the credit, the gateway gets every record once, and
// what was vouchered is paid out on the chain.
func TestNodeApartFromItsGateway(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for a minute")
	}
	t.Parallel()                    // it waits more than it works
	const credit, late = 6000, 3000 // base units: 6 s, and one reading that comes MaxGap late
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	c := chaintest.Anvil(t)
	h := NewHost(t, c, "north", 1)
	database := filepath.Join(t.TempDir(), "gateway.db")
	g := newRemoteGateway(t, c, database, []*Host{h}, "--credit", "6s", "--record-every", "1s")
	g.Ready()
	w := &world{T: t, chain: c, fleet: &fleet{gateways: []*Process{g}}}
	w.open(ctx, 1)
	r := w.renters[0]
	pay := func(amount uint64) {
		t.Helper()
		if err := r.Pay(ctx, amount); err != nil {
			t.Fatal(err)
		}
	}
	here, there := openBooks(t, database), openBooks(t, h.Spool)
	some := func(n int) func(string, []metering.SignedRecord) bool {
		return func(_ string, records []metering.SignedRecord) bool { return len(records) > n }
	}

	const ahead = 8000
	pay(ahead)
	there.hears(r, ahead)
	before := here.until(r, "records reach the gateway", some(0))
	g.Kill()
	alone := there.until(r, "the node suspends without a gateway", in("suspended"))
	if len(alone) <= len(before) || owed(alone) > ahead+credit+late {
		t.Fatalf("without a gateway the node went from record %d to %d and to %d base units; %d was paid, the credit is %d", len(before), len(alone), owed(alone), ahead, credit)
	}
	g.Start()
	g.Ready()
	caught := same(r, here, there)
	pay(owed(caught) + 2000)
	there.until(r, "a payment reaches the node", in("active"))

	billed := there.until(r, "the node goes on", some(len(caught)))
	h.Kill()
	pause(ctx, 3*time.Second)
	pay(owed(billed) + 4000) // nobody is there to hear it
	h.Start()
	after := there.until(r, "the node goes on from its spool", func(state string, records []metering.SignedRecord) bool {
		return len(records) > 0 && records[len(records)-1].Nanos > billed[len(billed)-1].Nanos
	})
	var gap time.Duration
	for _, rec := range after {
		gap += time.Duration(rec.Evidence.Devices[0].Nanos.Gap)
	}
	if gap < 3*time.Second {
		t.Errorf("the node was gone for 3 s at least, its records have gaps of %s", gap)
	}

	same(r, here, there)
	h.Wire.Cut(true)
	pay(r.Amount + 1500) // the gateway takes it; the node cannot hear of it
	cut := there.until(r, "the node suspends when it is cut off", in("suspended"))
	if owed(cut) > r.Amount-1500+credit+late {
		t.Errorf("cut off with %d vouchered, the node went to %d base units; the credit is %d", r.Amount-1500, owed(cut), credit)
	}
	h.Wire.Cut(false)
	same(r, here, there)
	pay(owed(cut) + 1000)
	there.until(r, "a payment reaches the node again", in("active"))

	w.each(func(r *Renter) error { return r.Finish(ctx) })
	final := same(r, here, there)
	if last := final[len(final)-1]; !last.Final || last.Record != r.Final.Record {
		t.Errorf("the renter's final record is %+v, the books say %+v", r.Final.Record, last.Record)
	}
	db, err := store.Open(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	w.settled(ctx, db)
	s, err := db.Payee().Load(ctx, r.Terms.ID())
	if err != nil || s.Spent != r.Final.Owed || s.Settled.Uint64() != r.Amount {
		t.Errorf("charged %s, settled %s; the final record says %s, vouchered is %d (%v)", s.Spent.Dec(), s.Settled.Dec(), r.Final.Owed.Dec(), r.Amount, err)
	}
	w.checkRecords(ctx, db, r)
	fmt.Printf("nodes: %d records, %d of them while the gateway was dead; %s unbilled while the node was; %d base units settled = vouchered\n",
		len(final), len(alone)-len(before), gap.Round(time.Second), r.Amount)
}

// TestNodesAndGatewaysAreKilled: two gateways over one PostgreSQL and two nodes,
// all of them killed in turn while renters pay. Any gateway goes on with any
// node's leases.
func TestNodesAndGatewaysAreKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for a minute")
	}
	t.Parallel() // it waits more than it works
	renters, kills := number(t, "GPUPAY_NODES_RENTERS", 24), number(t, "GPUPAY_NODES_KILLS", 12)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	c := chaintest.Anvil(t)
	server := pgtest.OwnServer(t)
	database, err := server.Schema()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, chain: c, server: server, database: database, fleet: &fleet{}}
	hosts := []*Host{NewHost(t, c, "north", renters), NewHost(t, c, "south", renters)}
	for _, h := range hosts {
		g := newRemoteGateway(t, c, database, hosts, "--credit", "60s", "--record-every", "3s")
		w.fleet.gateways = append(w.fleet.gateways, g)
		w.victims = append(w.victims, g, h.Process)
	}
	for _, g := range w.fleet.gateways {
		g.Ready()
	}
	w.open(ctx, renters)
	w.payAndKill(ctx, kills)
	w.each(func(r *Renter) error { return r.Finish(ctx) })
	db, err := store.Open(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	w.settled(ctx, db)
	w.check(ctx, db)
	spread := w.spools(db, hosts)
	fmt.Printf("nodes: %v leases at %d nodes, every record of their spools at the gateways\n", spread, len(hosts))
}

// spools holds every record that the nodes have against the gateways' database. It
// returns how many leases each node had.
func (w *world) spools(db *store.DB, hosts []*Host) (spread []int) {
	w.Helper()
	for _, h := range hosts {
		there, n := openBooks(w.T, h.Spool), 0
		for _, r := range w.renters {
			var known int
			if err := there.db.Get(&known, `SELECT count(*) FROM leases WHERE channel = ?`, r.Terms.ID().Hex()); err != nil {
				w.Fatal(err)
			}
			if known == 0 {
				continue
			}
			n++
			_, records := there.lease(r)
			var state string
			kept := readLease(w.T, db.View(), r, &state)
			if !slices.EqualFunc(records, kept, func(a, b metering.SignedRecord) bool { return a.Record == b.Record }) {
				w.Errorf("channel %s: %d records at node %s, %d at the gateways", r.Terms.ID(), len(records), h.Name, len(kept))
			}
		}
		spread = append(spread, n)
	}
	if slices.Contains(spread, 0) {
		w.Errorf("the nodes had %v leases: one had none", spread)
	}
	return spread
}

// newRemoteGateway starts a gateway whose GPUs are metered by the hosts.
func newRemoteGateway(t *testing.T, c *chaintest.Chain, database string, hosts []*Host, more ...string) *Process {
	t.Helper()
	more = slices.Concat(Links(t, c, hosts), marks(t), more)
	return Supervise(t, func(address string) *exec.Cmd { return Provider(c, address, database, more...) })
}

// TestGatewayDiesOnceItBoundAMeter: a gateway that is killed when it has signed whose key meters a lease, and has not written that
// down, has bound nobody: another one ends the lease, its node too, and the renter has the next one of the same GPUs, with a
// meter of its own.
func TestGatewayDiesOnceItBoundAMeter(t *testing.T) {
	t.Parallel() // it waits more than it works
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := chaintest.Anvil(t)
	database := pgtest.URL(t)
	const renters = 4
	h := NewHost(t, c, "north", renters)
	lives, more := 0, slices.Concat(Links(t, c, []*Host{h}), marks(t), []string{"--credit", "60s"})
	mortal := Supervise(t, func(address string) *exec.Cmd {
		cmd := Provider(c, address, database, more...)
		if lives++; lives == 1 {
			cmd.Env = append(cmd.Env, fault.Env+"="+string(fault.MeterBound))
		}
		return cmd
	})
	w := &world{T: t, chain: c, database: database, fleet: &fleet{gateways: []*Process{mortal, newRemoteGateway(t, c, database, []*Host{h}, "--credit", "60s")}}}
	for _, g := range w.fleet.gateways {
		g.Ready()
	}
	w.open(ctx, renters)
	w.each(func(r *Renter) error { return r.Finish(ctx) })
	db, err := store.Open(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	w.settled(ctx, db)
	for _, r := range w.renters {
		w.checkRecords(ctx, db, r)
	}
	w.bound(ctx, db, openBooks(t, h.Spool))
}

// bound makes sure that every lease which was served has one meter, that of its node, and that one which its node had begun ended
// without: its gateway had died.
func (w *world) bound(ctx context.Context, db *store.DB, node *books) {
	w.Helper()
	type lease struct {
		ID, State, Binding string
		Key                string `db:"meter_key"`
	}
	var here, there []lease
	const all = `SELECT id, state, binding, meter_key FROM leases`
	if err := errors.Join(db.View().SelectContext(ctx, &here, all), node.db.SelectContext(ctx, &there, all)); err != nil {
		w.Fatal(err)
	}
	orphans := 0
	for _, l := range here {
		begun := slices.IndexFunc(there, func(n lease) bool { return n.ID == l.ID })
		if l.State != "ended" || begun >= 0 && there[begun].State != "ended" {
			w.Errorf("lease %s has not ended: %s here, at its node %+v", l.ID, l.State, there)
		}
		if l.Binding == "" {
			if begun >= 0 {
				orphans++
			}
			continue
		}
		var b wire.MeterBinding
		if err := json.Unmarshal([]byte(l.Binding), &b); err != nil {
			w.Error(err)
		}
		if begun < 0 || b.Meter.String() != there[begun].Key || l.Key != there[begun].Key || !b.SignedBy(w.payee(), w.renters[0].Terms.ChainID, w.chain.Escrow) {
			w.Errorf("lease %s is bound to %s, its node has %+v", l.ID, l.Binding, there)
		}
	}
	if orphans == 0 || len(there) != len(w.renters)+orphans {
		w.Errorf("%d of %d leases at the node have no meter: the gateway that died was to leave one", orphans, len(there))
	}
}
