package provider

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/spool"
	"github.com/gpupay/gpupay/sdk/node"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
	"github.com/gpupay/gpupay/sdk/wire"
)

// nodeCredit is the most that a lease of the tests may owe beyond what is
// vouchered: the credit, and one reading of each device that came late.
func nodeCredit(gpus uint64) uint64 { return 2000 + gpus*500 }

// testCA is the authority of the tests' nodes and gateways.
var testCA = sync.OnceValue(testrig.NewAuthority)

func testGateway() nodekeys.Identity {
	identity, err := testCA().Gateway()
	if err != nil {
		panic(err)
	}
	return identity
}

func testNode(name string) nodekeys.Identity {
	identity, err := testCA().Node(name)
	if err != nil {
		panic(err)
	}
	return identity
}

// outpost is a node behind a network that can be cut, and that can be told to lie.
type outpost struct {
	*testing.T
	config node.Config
	node   *node.Agent
	server *httptest.Server
	gpus   *gpu.HostAllocator // of the node; nil where config has another Allocator
	disk   spool.Spool        // the node's, opened beside it to read from

	chainID uint64 // of the records that it forges
	escrow  common.Address

	mu  sync.Mutex
	cut bool
	lie func(path string, answer []byte) []byte

	hang   func(path string)               // before it answers
	refuse func(path string) *wire.Problem // what it answers in the place of the node, if it is not nil
}

func newOutpost(t *testing.T) *outpost { return newNamedOutpost(t, "north") }

func newNamedOutpost(t *testing.T, name string) *outpost {
	t.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	o := &outpost{T: t, config: node.Config{
		Name: name, Identity: testNode(name), MeterKey: channel.NewKey(private), Source: testclock.GPUs(2), Clock: testclock.Process(),
		Database: filepath.Join(t.TempDir(), "spool.db"), SuspendTimeout: time.Minute,
		Log: testrig.Warnings(t),
	}}
	o.start()
	o.server = httptest.NewUnstartedServer(o)
	o.server.TLS = o.node.TLS()
	o.server.StartTLS()
	t.Cleanup(func() { o.server.Close(); o.stop() })
	return o
}

func (o *outpost) start() {
	o.Helper()
	config := o.config
	if config.Allocator == nil {
		gpus, err := gpu.NewHostAllocator(o.Context(), config.Source)
		if err != nil {
			o.Fatal(err)
		}
		o.gpus, config.Allocator = gpus, gpus
	}
	n, err := node.New(o.Context(), config)
	if err != nil {
		o.Fatal(err)
	}
	db, err := store.OpenToRead(o.Context(), config.Database)
	if err != nil {
		o.Fatal(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.node, o.disk = n, spool.Spool{Store: leasestore.NewSpooled(db)}
}

// writing opens the spool of a node that runs to write to it.
func (o *outpost) writing() spool.Spool {
	o.Helper()
	db, err := store.OpenBare(o.Context(), o.config.Database)
	if err != nil {
		o.Fatal(err)
	}
	o.Cleanup(func() { db.Close() })
	return spool.Spool{Store: leasestore.NewSpooled(db)}
}

// stop ends the node as a signal would; its leases are kept.
func (o *outpost) stop() {
	o.mu.Lock()
	n, disk := o.node, o.disk
	o.node = nil
	o.mu.Unlock()
	if n == nil {
		return
	}
	if err := errors.Join(disk.DB.Close(), n.Close()); err != nil {
		o.Error(err)
	}
}

func (o *outpost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	n, cut, lie, hang, refuse := o.node, o.cut, o.lie, o.hang, o.refuse
	o.mu.Unlock()
	if hang != nil {
		hang(r.URL.Path)
	}
	if n == nil || cut && r.Header.Get(knocks) == "" {
		panic(http.ErrAbortHandler)
	}
	if refuse != nil {
		if problem := refuse(r.URL.Path); problem != nil {
			problem.Write(w)
			return
		}
	}
	if lie == nil {
		n.ServeHTTP(w, r)
		return
	}
	answer := httptest.NewRecorder()
	n.ServeHTTP(answer, r)
	body := answer.Body.Bytes()
	if answer.Code == http.StatusOK {
		body = lie(r.URL.Path, body)
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(body)
}

func (o *outpost) set(cut bool, lie func(string, []byte) []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cut, o.lie = cut, lie
}

// begins has a node answer who begins a lease as hang and refuse do, which may be nil.
func (o *outpost) begins(hang func(), refuse func() *wire.Problem) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hang = func(path string) {
		if path == "/leases" && hang != nil {
			hang()
		}
	}
	o.refuse = func(path string) *wire.Problem {
		if path == "/leases" && refuse != nil {
			return refuse()
		}
		return nil
	}
}

// link has a provider's devices metered by the node.
func (o *outpost) link(c *Config) {
	c.Source = nil
	c.Nodes.Links, c.Nodes.Identity = []NodeLink{{Name: "north", URL: o.server.URL}}, testGateway()
}

// spooled is a lease as the node's disk has it.
func (o *outpost) spooled(id common.Hash) (leasestore.Row, []metering.SignedRecord) {
	o.Helper()
	row, err := o.disk.Leases.ByID(o.Context(), id.Hex())
	if err != nil {
		o.Fatal(err)
	}
	records, err := o.disk.Records.After(o.Context(), id, 0, 10_000)
	if err != nil {
		o.Fatal(err)
	}
	return row, records
}

// wait is until the node has a lease in a state.
func (o *outpost) wait(id common.Hash, state leasestore.State) (row leasestore.Row) {
	o.Helper()
	eventually(o.T, fmt.Sprintf("lease %s to be %s at its node", id, state), func() bool {
		row, _ = o.spooled(id)
		return row.State == string(state)
	})
	return row
}

// await is until the node has so many records of a lease.
func (o *outpost) await(id common.Hash, n int) (records []metering.SignedRecord) {
	o.Helper()
	eventually(o.T, fmt.Sprintf("%d records of lease %s at its node", n, id), func() bool {
		_, records = o.spooled(id)
		return len(records) >= n
	})
	return records
}

// beingAllocated has a provider's database be from before a lease was allocated.
func beingAllocated(t *testing.T, path string, id common.Hash) {
	t.Helper()
	db, err := database.Open(t.Context(), path, "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`UPDATE leases SET allocation = '{}', meter_key = '', binding = '', meter = '', pending = '', sequence = 0, state = 'allocating' WHERE id = ?`, id.Hex())
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// same makes sure that gateway and node have one chain of records, and that the
// channel is charged what the last one says.
func (o *outpost) same(r *rig, id common.Hash) []metering.SignedRecord {
	o.Helper()
	_, there := o.spooled(id)
	here, err := r.provider.store.Records.After(o.Context(), id, 0, 10_000)
	if err != nil || len(here) == 0 || len(here) != len(there) {
		o.Fatalf("the gateway has %d records, the node %d (%v)", len(here), len(there), err)
	}
	for i := range here {
		if here[i].Record != there[i].Record || here[i].Sequence != uint64(i+1) {
			o.Fatalf("record %d: %+v at the gateway, %+v at the node", i+1, here[i].Record, there[i].Record)
		}
	}
	last := here[len(here)-1]
	s, err := r.provider.payee.State(o.Context(), last.ChannelID)
	if err != nil || s.Spent != last.Owed {
		o.Fatalf("charged %s, the last record says %s (%v)", s.Spent.Dec(), last.Owed.Dec(), err)
	}
	return here
}
