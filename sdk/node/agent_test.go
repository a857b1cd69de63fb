package node

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
	"github.com/gpupay/gpupay/sdk/wire"
)

// testCA is the authority of the tests' nodes.
var testCA = sync.OnceValue(testrig.NewAuthority)

// testKey is the same in every process of a fuzzer.
func testKey(t testing.TB) *channel.Key {
	t.Helper()
	private, err := crypto.ToECDSA(crypto.Keccak256([]byte("node")))
	if err != nil {
		t.Fatal(err)
	}
	return channel.NewKey(private)
}

func newConfig(t testing.TB, key metering.Signer) Config {
	t.Helper()
	identity, err := testCA().Node("n")
	if err != nil {
		t.Fatal(err)
	}
	return Config{Name: "n", Identity: identity, MeterKey: key, Database: filepath.Join(t.TempDir(), "spool.db"), Source: testclock.GPUs(1),
		Clock: testclock.Process(), Log: testrig.Warnings(t)}
}

// newAgent runs until its test ends, or it is closed before.
func newAgent(t testing.TB, config Config) *Agent {
	t.Helper()
	n, err := New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// begins is what a gateway says for a lease to begin, and the offer of it.
func begins(t testing.TB, key *channel.Key, id common.Hash, credit uint64) (wire.SignedOffer, []byte) {
	t.Helper()
	offer, err := wire.SignOffer(t.Context(), key, wire.Offer{Version: 1, ChainID: 1, Payee: wire.Address(key.Address()), Meter: wire.Address(key.Address()),
		Amount: wire.NewAmount(*uint256.NewInt(1)), Unit: "gpu_second", Expires: time.Now().Add(time.Hour).Unix(), Credit: credit, Tick: 1000, MaxGap: 3000, RecordEvery: 5000})
	if err != nil {
		t.Fatal(err)
	}
	start, err := json.Marshal(nodelink.Start{LeaseID: id, Offer: offer.Document, GPUs: 1, OwedBefore: wire.NewAmount(uint256.Int{}), Money: nodelink.MoneyOf(uint256.Int{}, uint256.Int{}),
		Terms: channel.Terms{ChainID: 1, Escrow: common.Address{1}, Payer: common.Address{2}, Payee: key.Address(), Token: common.Address{3}}})
	if err != nil {
		t.Fatal(err)
	}
	return offer, start
}

// says is what a gateway that was let in hears when it says something.
func (n *Agent) says(path string, body []byte) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	n.mux.ServeHTTP(w, httptest.NewRequest("POST", path, bytes.NewReader(body)))
	return w
}

// TestConfig: what cannot work is refused at the start, with a line that says why.
func TestConfig(t *testing.T) {
	good := newConfig(t, testKey(t))
	for want, change := range map[string]func(*Config){
		"no name":     func(c *Config) { c.Name = "" },
		"a-z":         func(c *Config) { c.Name = "North" },
		"no identity": func(c *Config) { c.Identity = nodekeys.Identity{} },
		"not m.node":  func(c *Config) { c.Name = "m" },
		"key usage": func(c *Config) {
			c.Identity, _ = testCA().Issue("n.node.gpupay.internal", x509.ExtKeyUsageClientAuth)
		},
		"authority":            func(c *Config) { c.Identity.CA = testrig.NewAuthority().Pair.Leaf },
		"MeterKey":             func(c *Config) { c.MeterKey = nil },
		"Database":             func(c *Config) { c.Database = "" },
		"SuspendTimeout, Comm": func(c *Config) { c.SuspendTimeout = -1 },
		"CommandTimeout and":   func(c *Config) { c.CommandTimeout = -1 },
		"Source is nil":        func(c *Config) { c.Source = nil },
	} {
		config := good
		change(&config)
		if n, err := New(t.Context(), config); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, %v", want, n, err)
		}
	}
}

// TestVoucheredNeverFalls: a gateway that is behind takes nothing back of what
// another one said is vouchered, and a restart of the node neither.
func TestVoucheredNeverFalls(t *testing.T) {
	key, id := testKey(t), common.Hash{1}
	config := newConfig(t, key)
	n := newAgent(t, config)
	_, start := begins(t, key, id, 600)
	if w := n.says("/leases", start); w.Code != http.StatusOK {
		t.Fatal(w.Code, w.Body)
	}
	holds := func(when string) {
		t.Helper()
		row, err := n.store.Leases.ByID(t.Context(), id.Hex())
		if err != nil {
			t.Fatal(err)
		}
		spooled, err := n.spool.Channel(t.Context(), row)
		if err != nil {
			t.Fatal(err)
		}
		if v, _ := n.leases.Runs(row).Status.Snapshot(); spooled.Accepted.Uint64() != 700 || v.Accepted.Uint64() != 700 {
			t.Errorf("%s the spool says %s, the lease %s; want 700", when, spooled.Accepted.Dec(), v.Accepted.Dec())
		}
	}
	for _, accepted := range []string{"700", "300"} {
		if w := n.says("/leases/"+id.Hex()+"/sync", []byte(`{"accepted":"`+accepted+`","deposit":"500000","after":0}`)); w.Code != http.StatusOK {
			t.Fatal(w.Code, w.Body)
		}
	}
	holds("at once")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = newAgent(t, config)
	holds("after a restart")
}

// TestOldShareIsNotServed: a lease serves up to the newest share that its node was told of, also after a restart; and up to one without a
// version, as gateways from before tell.
func TestOldShareIsNotServed(t *testing.T) {
	key, id := testKey(t), common.Hash{1}
	config := newConfig(t, key)
	n := newAgent(t, config)
	_, start := begins(t, key, id, 6000)
	if w := n.says("/leases", start); w.Code != http.StatusOK {
		t.Fatal(w.Code, w.Body)
	}
	serves := func() uint64 {
		t.Helper()
		row, err := n.store.Leases.ByID(t.Context(), id.Hex())
		if err != nil {
			t.Fatal(err)
		}
		return n.leases.Runs(row).Balance.Share.Load().Uint64()
	}
	for _, step := range []struct {
		what    string
		share   uint64
		version int64
		want    uint64
	}{
		{"a share", 700, 20, 700},
		{"an older, larger one", 1900, 19, 700},
		{"the same one again", 700, 20, 700},
		{"one without a version", 800, -1, 800},
		{"an old one after it", 1900, 0, 800},
	} {
		money := nodelink.MoneyOf(uint256.Int{}, *uint256.NewInt(100_000)).WithCredit(*uint256.NewInt(step.share), step.version)
		if step.version < 0 {
			money.CreditVersion = nil
		}
		body, err := json.Marshal(nodelink.Sync{Money: money})
		if err != nil {
			t.Fatal(err)
		}
		var answer nodelink.Lease
		if err := json.Unmarshal(n.says("/leases/"+id.Hex()+"/sync", body).Body.Bytes(), &answer); err != nil || answer.Credit == nil {
			t.Fatalf("%s: %+v, %v", step.what, answer, err)
		}
		if got := fmt.Sprintf("%d, %s of version %d", serves(), answer.Credit.Dec(), answer.CreditVersion); got != fmt.Sprintf("%d, %d of version 20", step.want, step.want) {
			t.Errorf("%s: the lease serves, and the node answers, %s", step.what, got)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = newAgent(t, config)
	if got := serves(); got != 800 {
		t.Errorf("after a restart the lease serves %d", got)
	}
}

// FuzzNode gives a node whatever a gateway could send that it let in. It
// never fails by an error of its own.
func FuzzNode(f *testing.F) {
	key := testKey(f)
	config := newConfig(f, key)
	config.Log = slog.New(slog.DiscardHandler)
	n := newAgent(f, config)
	offer, start := begins(f, key, common.Hash{1}, 1)
	id := common.Hash{1}.Hex()
	bound := offer.Offer // of a lease that a gateway binds the node's key to
	bound.Version, bound.Meter = 2, wire.Address{}
	unnamed, err := wire.SignOffer(f.Context(), key, bound)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("/leases", start)
	f.Add("/leases", bytes.Replace(start, offer.Document, unnamed.Document, 1))
	f.Add("/leases/"+id+"/sync", []byte(`{"accepted":"1","deposit":"2","after":0}`))
	f.Add("/leases/"+id+"/sync", []byte(`{"accepted":"1","deposit":"2","after":18446744073709551615}`))
	f.Add("/leases/"+id+"/end", []byte(`{"reason":"x","closed":true}`))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		req, err := http.NewRequest("POST", "http://n"+path, bytes.NewReader(body))
		if err != nil || !strings.HasPrefix(path, "/") || req.URL.Host != "n" {
			return
		}
		w := httptest.NewRecorder()
		n.mux.ServeHTTP(w, req)
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%s %q: %s", path, body, w.Body)
		}
		var l nodelink.Lease
		if w.Code == http.StatusOK && nodelink.Parse(w.Body.Bytes(), &l) != nil {
			t.Fatalf("its answer does not parse: %s", w.Body)
		}
	})
}
