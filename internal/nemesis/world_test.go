package nemesis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/fleet"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/chain"
)

const (
	clients = 5
	credit  = 6 * time.Second
	term    = 3 * time.Second  // for which a gateway owns its leases, or leads, without a word
	promise = 90 * time.Second // for what must come about, however slow the machine is
)

// gateway is a gateway's process and the links that it hangs on.
type gateway struct {
	*fleet.Process
	name                string
	renters, books, rpc *fleet.Cable
}

// world is a fleet, its renters, and what was done to it.
type world struct {
	*testing.T
	ctx      context.Context
	stop     context.CancelFunc
	seed     uint64
	chain    *chaintest.Chain
	token    *chain.Token
	server   *pgtest.Server
	standby  *pgtest.Server // nil where it has taken over
	books    *fleet.Cable   // the harness's own, which nothing is done to
	direct   string         // the database over it
	db       *store.DB
	folder   string // of the devices' events
	gateways []*gateway
	hosts    []*fleet.Host

	mint    sync.Mutex
	mu      sync.Mutex
	rentals []*rental
	users   []*user
	story   []string
	broken  []string // promises
	deposed []deposed
	strike  bool // nobody pays
	began   time.Time
}

// newWorld starts two gateways over one PostgreSQL. They meter one host's GPUs, or
// those of a node.
func newWorld(t *testing.T, seed uint64, nodes bool) *world {
	t.Helper()
	w := &world{T: t, seed: seed, folder: t.TempDir(), began: time.Now()}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	t.Cleanup(cancel)
	w.ctx, w.stop = ctx, cancel
	w.chain = chaintest.Anvil(t)
	w.server = pgtest.OwnServer(t)
	schema, err := w.server.Schema()
	if err != nil {
		t.Fatal(err)
	}
	w.standby = w.server.Standby(t)
	if err := w.server.Synchronous(); err != nil {
		t.Fatal(err)
	}
	w.books = fleet.NewCable(t, "unix", w.server.Socket())
	w.direct = through(t, w.books, schema)
	if w.token, err = chain.NewToken(ctx, w.chain.Backend, w.chain.Token); err != nil {
		t.Fatal(err)
	}
	hooks := w.hooks()
	meter := append([]string{"--gpu", fmt.Sprintf("sim:%d", clients+programs)}, hooks...)
	if nodes {
		w.hosts = []*fleet.Host{fleet.NewHost(t, w.chain, "north", clients+programs, append(hooks, "--suspend-timeout", "1h")...)}
		meter = fleet.Links(t, w.chain, w.hosts)
	}
	for _, name := range []string{"A", "B"} {
		w.gateways = append(w.gateways, w.newGateway(name, meter))
	}
	for _, g := range w.gateways {
		g.Ready()
	}
	if w.db, err = store.Open(ctx, w.direct); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.db.Close() })
	// Blocks come each second, as on a real chain: what is broadcast is not mined yet.
	w.chain.Automine(t, false)
	w.chain.RPC(t, nil, "evm_setIntervalMining", 1)
	return w
}

func (w *world) hooks() (flags []string) {
	for _, verb := range []string{"allocate", "suspend", "resume", "release"} {
		flags = append(flags, "--"+verb, fleet.Program("device")+" "+w.folder+" "+verb)
	}
	return flags
}

func (w *world) newGateway(name string, meter []string) *gateway {
	w.Helper()
	g := &gateway{name: name}
	g.books = fleet.NewCable(w, "unix", w.server.Socket())
	address := through(w, g.books, w.direct)
	endpoint, err := url.Parse(w.chain.URL)
	if err != nil {
		w.Fatal(err)
	}
	g.rpc = fleet.NewCable(w, "tcp", endpoint.Host)
	marks := filepath.Join(w.TempDir(), "signed")
	g.Process = fleet.Supervise(w.T, func(listen string) *exec.Cmd {
		return fleet.Provider(w.chain, listen, address, append([]string{"--rpc", "http://" + g.rpc.Address, "--high-water", marks,
			"--takeover", term.String(), "--credit", credit.String(), "--record-every", "1s", "--suspend-timeout", "1h", "--poll", "1s"}, meter...)...)
	})
	g.renters = fleet.NewCable(w, "tcp", g.Address)
	return g
}

// through is a database's address that goes over a cable.
func through(t testing.TB, c *fleet.Cable, database string) string {
	address, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	query := address.Query()
	query.Del("host")
	query.Set("sslmode", "disable")
	address.Host, address.RawQuery = c.Address, query.Encode()
	return address.String()
}

// next is a gateway for a renter, the one or the other.
func (w *world) next() string { return w.one(rand.IntN).url() }

func (g *gateway) url() string { return "http://" + g.renters.Address }

func (w *world) client() *http.Client {
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	w.Cleanup(c.CloseIdleConnections)
	return c
}

func (w *world) payee() common.Address { return crypto.PubkeyToAddress(w.chain.Keys[0].PublicKey) }

// tell notes what is done, for who has to find out why.
func (w *world) tell(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.story = append(w.story, fmt.Sprintf("%6.1f s  ", time.Since(w.began).Seconds())+fmt.Sprintf(format, args...))
}

// breaks notes a promise that was not kept.
func (w *world) breaks(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.tell("BROKEN: %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, text)
}

// kept reports whether no promise was broken yet.
func (w *world) kept() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.broken) == 0
}

// comes waits for what was promised. It is false, and the promise broken, where it
// does not come about.
func (w *world) comes(what string, ok func() (bool, string)) bool {
	for deadline := time.Now().Add(promise); ; time.Sleep(100 * time.Millisecond) {
		done, left := ok()
		if done {
			return true
		}
		if w.ctx.Err() != nil || time.Now().After(deadline) {
			w.breaks("%s: not within %s: %s", what, promise, left)
			return false
		}
	}
}

// steady waits until everybody is up and every lease has a gateway that lives.
func (w *world) steady() {
	w.Helper()
	for _, g := range w.gateways {
		g.Ready()
	}
	w.comes("every lease is run by a gateway that lives", w.living)
	w.checkPaid()
}

func (w *world) allRentals() []*rental {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.rentals)
}

// pause waits, or less where the run ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
