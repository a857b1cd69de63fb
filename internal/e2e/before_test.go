package e2e

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jmoiron/sqlx"
	_ "github.com/mattn/go-sqlite3"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/metering"
)

// makeBefore makes the databases in testdata/before anew. They are what an older version left, so that this is for a set of
// tables that they have nothing of, and not for a version that cannot read them.
var makeBefore = flag.Bool("make-before", false, "make testdata/before anew")

const (
	beforeFolder = "testdata/before"
	beforePurse  = 500_000_000 // base units of each renter
)

// The files that are kept: of the provider, of a gateway over a node, of the node, of the watchtower, and of three renters. A
// program's second file is what it has signed.
var beforeFiles = []string{"p.db", "p.db.signed", "g.db", "g.db.signed", "n.db", "n.db.signed", "t.db", "r1.db", "r2.db", "r3.db", "meter-key.pem", "chain"}

// A world is the programs of the databases: a provider that sessions and x402 pay, told to a watchtower, and a gateway with a
// node. Where they listen is what the renters' databases say.
type before struct {
	*site
	t                                *testing.T
	dir, ca                          string
	provider, gateway, node, tower   *process
	payee, other, keeper             *ecdsa.PrivateKey
	byVoucher, byTick, overTheirNode *ecdsa.PrivateKey
}

func newBefore(t *testing.T, c *chaintest.Chain, dir string) *before {
	k := c.Keys
	b := &before{site: &site{chain: c, payee: k[0]}, t: t, dir: dir, ca: filepath.Join(t.TempDir(), "ca"), payee: k[0], other: k[3], keeper: k[2],
		byVoucher: k[1], byTick: k[4], overTheirNode: k[5]}
	if code := start(t, "node", k[6], "--issue", "north", "--ca", b.ca).exit(); code != 0 {
		t.Fatalf("certificates: exit %d", code)
	}
	return b
}

func (b *before) path(name string) string { return filepath.Join(b.dir, name) }

// run starts the four programs, as their operators would after an upgrade.
func (b *before) run() {
	b.tower = b.watchtower(b.t, b.keeper, "127.83.17.1:8403", b.path("t.db"), "--payees", address(b.payee).Hex())
	b.node = start(b.t, "node", b.keeper, "--name", "north", "--listen", "127.83.17.1:8404", "--admin", "", "--gpu", "sim:1", "--db", b.path("n.db"),
		"--payee", address(b.other).Hex(), "--node-identity", filepath.Join(b.ca, "nodes", "north"), "--meter-key", b.path("meter-key.pem"))
	b.node.saw("127.83.17.1:8404")
	b.provider = b.serve(b.payee, "127.83.17.1:8402", "p.db", "--gpu", "sim:2", "--x402", "--x402-window", "1s",
		"--watchtowers", "http://127.83.17.1:8403", "--watchtower-every", "200ms")
	b.gateway = b.serve(b.other, "127.83.17.2:8402", "g.db", "--nodes", "north=https://127.83.17.1:8404", "--node-identity", filepath.Join(b.ca, "gateway"))
}

func (b *before) serve(key *ecdsa.PrivateKey, listen, db string, more ...string) *process {
	p := start(b.t, "serve", key, append([]string{"--listen", listen, "--admin", "127.0.0.1:0", "--rpc", b.chain.URL, "--escrow", b.chain.Escrow.Hex(),
		"--token", b.chain.Token.Hex(), "--db", b.path(db), "--price", "3600.00", "--min-deposit", "1", "--record-every", "1s", "--credit", "20s",
		"--settle-age", "1h", "--poll", "200ms"}, more...)...)
	p.saw("admin at")
	return p
}

func (b *before) rent(key *ecdsa.PrivateKey, at, db string, more ...string) *process {
	b.url = "http://" + at
	return b.renter(b.t, key, b.path(db), append([]string{"--pay-every", "1s", "--poll", "200ms"}, more...)...)
}

func (b *before) kill(programs ...*process) {
	for _, p := range programs {
		p.signal(syscall.SIGKILL)
		p.exit()
	}
}

// TestDatabasesOfBefore: databases that an older version left, killed with three leases running, are opened by this one: the
// leases go on, each from the record and the sum at which it stood, and are paid and closed to the base unit.
func TestDatabasesOfBefore(t *testing.T) {
	if *makeBefore {
		leaveBefore(t)
		return
	}
	dir := t.TempDir()
	for _, name := range beforeFiles {
		if err := os.WriteFile(filepath.Join(dir, name), kept(t, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	contracts := chaintest.Anvil(t) // where they are is the same on every chain
	chain := chaintest.Load(t, kept(t, "chain"), contracts.Escrow, contracts.Token)
	b := newBefore(t, chain, dir)
	was := map[string][]statement{"p.db": statements(t, b.path("p.db")), "g.db": statements(t, b.path("g.db"))}

	b.run()
	for db, leases := range was {
		for _, old := range leases {
			b.goesOn(db, old)
		}
	}
	b.close()
}

// A statement is the newest record of a lease.
type statement struct {
	Lease string `db:"id"`
	Text  string `db:"record"`
	metering.SignedRecord
}

// statements are those of the leases that run. The columns are those of the first version that has a fixture.
func statements(t *testing.T, path string) (found []statement) {
	t.Helper()
	db, err := sqlx.Open("sqlite3", "file:"+path+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Select(&found, `SELECT l.id, r.record FROM leases l JOIN records r ON r.lease = l.id
		WHERE l.state <> 'ended' AND r.sequence = (SELECT max(sequence) FROM records WHERE lease = l.id)`)
	if err != nil {
		t.Fatal(err)
	}
	for i := range found {
		if err := json.Unmarshal([]byte(found[i].Text), &found[i].SignedRecord); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// goesOn waits for a lease's next record: the one after the newest of before, of a sum that begins at that one's.
func (b *before) goesOn(path string, old statement) {
	b.t.Helper()
	db, err := sqlx.Open("sqlite3", "file:"+b.path(path)+"?mode=ro")
	if err != nil {
		b.t.Fatal(err)
	}
	defer db.Close()
	var next, same string
	b.provider.until(func() bool {
		err := db.Get(&next, `SELECT record FROM records WHERE lease = ? AND sequence = ?`, old.Lease, old.Sequence+1)
		return err == nil
	}, "go on with lease "+old.Lease)
	if err := db.Get(&same, `SELECT record FROM records WHERE lease = ? AND sequence = ?`, old.Lease, old.Sequence); err != nil || same != old.Text {
		b.t.Errorf("lease %s: the record of before is another one now: %v", old.Lease, err)
	}
	var rec metering.SignedRecord
	if err := json.Unmarshal([]byte(next), &rec); err != nil {
		b.t.Fatal(err)
	}
	more := rec.Owed.Uint64() - old.Owed.Uint64()
	if rec.OwedBefore != old.OwedBefore || rec.Owed.Lt(&old.Owed) || more > 10_000_000 {
		b.t.Errorf("lease %s owed %s at record %d and owes %s at the next one: time of before is billed anew, or lost", old.Lease, old.Owed.Dec(), old.Sequence, rec.Owed.Dec())
	}
}

// close has the renters go on, and give back: every base unit is where it should be.
func (b *before) close() {
	t := b.t
	one := b.rent(b.byVoucher, "127.83.17.1:8402", "r1.db", "--resume", "--minutes", "0.05")
	three := b.rent(b.overTheirNode, "127.83.17.2:8402", "r3.db", "--resume", "--minutes", "0.05")
	two := b.rent(b.byTick, "127.83.17.1:8402", "r2.db", "--x402", "--deposit", "100", "--minutes", "0.05")
	for _, p := range []*process{one, two, three} {
		if code := p.exit(); code != 0 {
			t.Fatalf("a renter of before: exit %d, %s", code, p.output())
		}
	}
	paid, refunded := closing(t, one.output())
	overNode, back := closing(t, three.output())
	if paid+refunded != 300_000_000 || overNode+back != 200_000_000 {
		t.Errorf("of deposits of 300000000 and 200000000 were settled %d and %d, refunded %d and %d", paid, overNode, refunded, back)
	}
	if held := b.chain.Tokens(t, b.chain.Escrow); held != 0 {
		t.Errorf("the escrow still holds %d", held)
	}
	unsettled := b.chain.Tokens(t, channel.BatchSettlementEscrow) // of ticks: they wait for more
	ticked := beforePurse - b.chain.Tokens(t, address(b.byTick))
	if got := b.chain.Tokens(t, address(b.payee)); got+unsettled != paid+ticked || ticked == 0 {
		t.Errorf("the provider has %d and %d to settle: of the session %d, of ticks %d", got, unsettled, paid, ticked)
	}
	if got := b.chain.Tokens(t, address(b.other)); got != overNode {
		t.Errorf("the gateway's payee has %d of %d", got, overNode)
	}
	for _, p := range []*process{b.provider, b.gateway, b.node, b.tower} {
		if code := stop(p); code != 0 {
			t.Errorf("exit %d, %s", code, p.output())
		}
	}
}

// leaveBefore makes the databases.
func leaveBefore(t *testing.T) {
	c := chaintest.Anvil(t)
	c.PlaceBatchSettlement(t)
	b := newBefore(t, c, t.TempDir())
	for _, renter := range []*ecdsa.PrivateKey{b.byVoucher, b.byTick, b.overTheirNode} {
		c.Mint(t, address(renter), beforePurse)
	}
	b.run()
	one := b.rent(b.byVoucher, "127.83.17.1:8402", "r1.db", "--deposit", "300")
	two := b.rent(b.byTick, "127.83.17.1:8402", "r2.db", "--x402", "--deposit", "100")
	three := b.rent(b.overTheirNode, "127.83.17.2:8402", "r3.db", "--deposit", "200")
	for _, p := range []*process{one, two, three} {
		p.saw("active  ")
	}
	b.tower.until(func() bool {
		return metric(t, adminOf(b.tower), `gpupay_tower_vouchers_total{outcome="accepted"}`) >= 1
	}, "take a voucher")
	b.kill(one, two, three, b.provider, b.gateway, b.node, b.tower)
	state := b.chain.State(t)
	if err := os.MkdirAll(beforeFolder, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range beforeFiles {
		content := state
		if name != "chain" {
			content = atRest(t, b.path(name))
		}
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, err := w.Write(content)
		if err = errors.Join(err, w.Close(), os.WriteFile(filepath.Join(beforeFolder, name+".gz"), packed.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// atRest is a file as it is once what SQLite wrote beside it is in it.
func atRest(t *testing.T, path string) []byte {
	t.Helper()
	if strings.Contains(filepath.Base(path), ".db") {
		db, err := sqlx.Open("sqlite3", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// kept is a file of the fixture.
func kept(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(beforeFolder, name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
