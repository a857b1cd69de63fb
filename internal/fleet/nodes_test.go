package fleet

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/metering"
)

// identities makes certificates with the node's program, once for all tests.
func identities(t *testing.T) string {
	t.Helper()
	identitiesOnce.Do(func() {
		identitiesDir = filepath.Join(filepath.Dir(nodeProgram), "ca")
		if out, err := exec.Command(nodeProgram, "--issue", "north,south,east,west", "--ca", identitiesDir).CombinedOutput(); err != nil {
			t.Fatalf("--issue: %v\n%s", err, out)
		}
	})
	return identitiesDir
}

var (
	identitiesOnce sync.Once
	identitiesDir  string
)

// host is a node process with its spool, behind a network that can be cut.
type host struct {
	*gateway
	name  string
	spool string // path
	wire  *cable
}

// newHost starts a node with simulated GPUs. All nodes sign with the chain's key
// number 8.
func newHost(t *testing.T, c *chaintest.Chain, name string, devices int) *host {
	t.Helper()
	dir := identities(t)
	h := &host{name: name, spool: filepath.Join(t.TempDir(), "spool.db")}
	h.gateway = supervise(t, func(address string) *exec.Cmd {
		cmd := exec.Command(nodeProgram, "--listen", address, "--admin", "", "--name", name, "--gpu", fmt.Sprintf("sim:%d", devices),
			"--db", h.spool, "--payee", crypto.PubkeyToAddress(c.Keys[0].PublicKey).Hex(), "--log-level", "warn",
			"--identity", filepath.Join(dir, "nodes", name))
		cmd.Env = append(os.Environ(), "GPUPAY_KEY="+hex.EncodeToString(crypto.FromECDSA(c.Keys[8])))
		return cmd
	})
	h.ready()
	h.wire = newCable(t, strings.TrimPrefix(h.url, "http://"))
	return h
}

// newRemoteGateway starts a gateway whose GPUs are metered by the hosts.
func newRemoteGateway(t *testing.T, c *chaintest.Chain, database string, hosts []*host, more ...string) *gateway {
	t.Helper()
	var links []string
	for _, h := range hosts {
		links = append(links, h.name+"=https://"+h.wire.address)
	}
	more = append([]string{"--nodes", strings.Join(links, ","), "--meter", crypto.PubkeyToAddress(c.Keys[8].PublicKey).Hex(),
		"--node-identity", filepath.Join(identities(t), "gateway")}, more...)
	return supervise(t, func(address string) *exec.Cmd { return provider(c, address, database, more...) })
}

// cable forwards TCP until it is cut.
type cable struct {
	address string

	mu    sync.Mutex
	off   bool
	conns []net.Conn
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{address: listener.Addr().String()}
	t.Cleanup(func() { listener.Close(); c.cut(true) })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil || !c.hold(in, out) {
				in.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
					pair[1].Close()
				}()
			}
		}
	}()
	return c
}

func (c *cable) hold(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off {
		for _, conn := range conns {
			conn.Close()
		}
		return false
	}
	c.conns = append(c.conns, conns...)
	return true
}

func (c *cable) cut(off bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = off
	if off {
		for _, conn := range c.conns {
			conn.Close()
		}
		c.conns = nil
	}
}

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
func (b *books) lease(r *renter) (state string, records []metering.SignedRecord) {
	b.Helper()
	records = readLease(b.T, b.db, r, &state)
	return state, records
}

func readLease(t *testing.T, db *sqlx.DB, r *renter, state *string) []metering.SignedRecord {
	t.Helper()
	var rows []string
	if err := db.Get(state, db.Rebind(`SELECT state FROM leases WHERE channel = ?`), r.terms.ID().Hex()); err != nil {
		t.Fatal(err)
	}
	err := db.Select(&rows, db.Rebind(`SELECT record FROM records JOIN leases ON leases.id = records.lease WHERE leases.channel = ? ORDER BY records.sequence`), r.terms.ID().Hex())
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
func (b *books) until(r *renter, what string, ok func(state string, records []metering.SignedRecord) bool) []metering.SignedRecord {
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
func (b *books) hears(r *renter, amount uint64) {
	b.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var accepted string
		err := b.db.Get(&accepted, `SELECT accepted FROM spool JOIN leases ON leases.id = spool.lease WHERE leases.channel = ?`, r.terms.ID().Hex())
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
func same(r *renter, gateway, node *books) []metering.SignedRecord {
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
	const credit, late = 6000, 3000 // base units: 6 s, and one reading that comes MaxGap late
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	c := chaintest.Anvil(t)
	h := newHost(t, c, "north", 1)
	database := filepath.Join(t.TempDir(), "gateway.db")
	g := newRemoteGateway(t, c, database, []*host{h}, "--credit", "6s", "--record-every", "1s")
	g.ready()
	w := &world{T: t, chain: c, fleet: &fleet{gateways: []*gateway{g}}}
	w.open(ctx, 1)
	r := w.renters[0]
	pay := func(amount uint64) {
		t.Helper()
		if err := r.pay(ctx, amount); err != nil {
			t.Fatal(err)
		}
	}
	here, there := openBooks(t, database), openBooks(t, h.spool)
	some := func(n int) func(string, []metering.SignedRecord) bool {
		return func(_ string, records []metering.SignedRecord) bool { return len(records) > n }
	}

	const ahead = 8000
	pay(ahead)
	there.hears(r, ahead)
	before := here.until(r, "records reach the gateway", some(0))
	g.kill()
	alone := there.until(r, "the node suspends without a gateway", in("suspended"))
	if len(alone) <= len(before) || owed(alone) > ahead+credit+late {
		t.Fatalf("without a gateway the node went from record %d to %d and to %d base units; %d was paid, the credit is %d", len(before), len(alone), owed(alone), ahead, credit)
	}
	g.start()
	g.ready()
	caught := same(r, here, there)
	pay(owed(caught) + 2000)
	there.until(r, "a payment reaches the node", in("active"))

	billed := there.until(r, "the node goes on", some(len(caught)))
	h.kill()
	pause(ctx, 3*time.Second)
	pay(owed(billed) + 4000) // nobody is there to hear it
	h.start()
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
	h.wire.cut(true)
	pay(r.amount + 1500) // the gateway takes it; the node cannot hear of it
	cut := there.until(r, "the node suspends when it is cut off", in("suspended"))
	if owed(cut) > r.amount-1500+credit+late {
		t.Errorf("cut off with %d vouchered, the node went to %d base units; the credit is %d", r.amount-1500, owed(cut), credit)
	}
	h.wire.cut(false)
	same(r, here, there)
	pay(owed(cut) + 1000)
	there.until(r, "a payment reaches the node again", in("active"))

	w.each(func(r *renter) error { return r.finish(ctx) })
	final := same(r, here, there)
	if last := final[len(final)-1]; !last.Final || last.Record != r.final.Record {
		t.Errorf("the renter's final record is %+v, the books say %+v", r.final.Record, last.Record)
	}
	db, err := store.Open(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	w.settled(ctx, db)
	s, err := db.Payee().Load(ctx, r.terms.ID())
	if err != nil || s.Spent != r.final.Owed || s.Settled.Uint64() != r.amount {
		t.Errorf("charged %s, settled %s; the final record says %s, vouchered is %d (%v)", s.Spent.Dec(), s.Settled.Dec(), r.final.Owed.Dec(), r.amount, err)
	}
	w.checkRecords(ctx, db, r)
	fmt.Printf("nodes: %d records, %d of them while the gateway was dead; %s unbilled while the node was; %d base units settled = vouchered\n",
		len(final), len(alone)-len(before), gap.Round(time.Second), r.amount)
}

// TestNodesAndGatewaysAreKilled: two gateways over one PostgreSQL and two nodes,
// all of them killed in turn while renters pay. Any gateway goes on with any
// node's leases.
func TestNodesAndGatewaysAreKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for a minute")
	}
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
	hosts := []*host{newHost(t, c, "north", renters), newHost(t, c, "south", renters)}
	for _, h := range hosts {
		g := newRemoteGateway(t, c, database, hosts, "--credit", "60s", "--record-every", "3s")
		w.fleet.gateways = append(w.fleet.gateways, g)
		w.victims = append(w.victims, g, h.gateway)
	}
	for _, g := range w.fleet.gateways {
		g.ready()
	}
	w.open(ctx, renters)
	w.payAndKill(ctx, kills)
	w.each(func(r *renter) error { return r.finish(ctx) })
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
func (w *world) spools(db *store.DB, hosts []*host) (spread []int) {
	w.Helper()
	for _, h := range hosts {
		there, n := openBooks(w.T, h.spool), 0
		for _, r := range w.renters {
			var known int
			if err := there.db.Get(&known, `SELECT count(*) FROM leases WHERE channel = ?`, r.terms.ID().Hex()); err != nil {
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
				w.Errorf("channel %s: %d records at node %s, %d at the gateways", r.terms.ID(), len(records), h.name, len(kept))
			}
		}
		spread = append(spread, n)
	}
	if slices.Contains(spread, 0) {
		w.Errorf("the nodes had %v leases: one had none", spread)
	}
	return spread
}
