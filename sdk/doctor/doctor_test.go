package doctor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// host is a provider that runs behind TLS, with an inference server behind it.
type host struct {
	*testing.T
	*chaintest.Chain
	provider *provider.Server
	server   *httptest.Server
	upstream http.HandlerFunc
	config   Config
}

func newHost(t *testing.T) *host {
	h := &host{T: t, Chain: chaintest.Anvil(t)}
	h.upstream = func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(`{"data":[{"id":"Qwen/Qwen3-8B"}]}`)) }
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.upstream(w, r) }))
	t.Cleanup(behind.Close)
	key, path := channel.NewKey(h.Keys[0]), filepath.Join(t.TempDir(), "provider.db")
	var err error
	h.provider, err = provider.New(t.Context(), provider.Config{RPC: h.URL, Escrow: h.Escrow, Token: h.Token, Key: key, Database: path, PricePerGPUHour: "2.50", Source: sim.New(2, sim.Options{}), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.provider.Close() })
	h.server = httptest.NewTLSServer(h.provider)
	h.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	t.Cleanup(h.server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(h.server.Certificate())
	h.config = Config{
		RPC: h.URL, ChainID: 31337, Escrow: h.Escrow, Token: h.Token, X402: true, Payee: key.Address(), Payout: common.HexToAddress("0xc01d"), Database: path,
		Open: func() (metering.Source, error) { return sim.New(2, sim.Options{}), nil }, Upstream: behind.URL, PublicURL: h.server.URL, Roots: roots, Prices: map[string]string{"": "2.50"},
	}
	return h
}

// TestWellIsWell: nothing is to be mended of a provider that runs, and each part is looked at.
func TestWellIsWell(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var parts []string
	for _, f := range Check(t.Context(), h.config) {
		if parts = append(parts, f.Part); !f.OK() || f.Seen == "" {
			t.Errorf("%s", f)
		}
	}
	if got := strings.Join(parts, " "); got != "endpoint clock escrow token coin payout database gpus upstream tls offer" {
		t.Errorf("looked at %s", got)
	}
	entries, err := os.ReadDir(filepath.Dir(h.config.Database))
	for _, e := range entries {
		if strings.Contains(e.Name(), "doctor") {
			t.Errorf("left behind: %s, %v", e.Name(), err)
		}
	}
}

// fault breaks one part of a host, and what is to be said of that part then.
type fault struct {
	name, part string
	breaks     func(h *host, c *Config)
	says       []string
}

var faults = []fault{
	{"no endpoint", "endpoint", func(_ *host, c *Config) { c.RPC = "" }, []string{"--rpc"}},
	{"one endpoint of two is down", "endpoint", func(_ *host, c *Config) { c.RPC += ",http://127.0.0.1:1" }, []string{"127.0.0.1:1", "refused"}},
	{"another chain", "endpoint", func(_ *host, c *Config) { c.ChainID = 1 }, []string{"serves chain 31337, not 1"}},
	{"one endpoint of another chain", "endpoint", func(h *host, c *Config) {
		other := badrpc.New(h.T, h.URL)
		other.On("eth_chainId", badrpc.Says("0x1092"))
		c.RPC, c.ChainID = c.RPC+","+other.URL, 0
	}, []string{"serves chain 4242, not 31337"}},
	{"one endpoint that lags", "endpoint", func(h *host, c *Config) {
		late := badrpc.New(h.T, h.URL)
		late.Stick(h.Head(h.T))
		h.Mine(h.T, 40)
		c.RPC += "," + late.URL
	}, []string{"40 behind the others"}},
	{"the clock", "clock", func(h *host, _ *Config) { h.AdvanceTime(h.T, time.Hour) }, []string{"behind that of chain", "set this machine's clock"}},
	{"no escrow", "escrow", func(_ *host, c *Config) { c.Escrow = common.Address{} }, []string{"gpupay deploy"}},
	{"a token for an escrow", "escrow", func(_ *host, c *Config) { c.Escrow = c.Token }, []string{"check the escrow's address"}},
	{"other code", "escrow", func(h *host, c *Config) {
		code, err := h.Backend.CodeAt(h.Context(), h.Escrow, nil)
		if err != nil {
			h.Fatal(err)
		}
		h.RPC(h.T, nil, "anvil_setCode", h.Escrow, hexutil.Bytes(append(code, 0)))
	}, []string{"bytes of code", "--escrow"}},
	{"too short a grace", "escrow", func(_ *host, c *Config) { c.MinGrace = 1000 * time.Hour }, []string{"1000h0m0s is needed"}},
	{"no token", "token", func(_ *host, c *Config) { c.Token = common.Address{} }, []string{"--token"}},
	{"no token there", "token", func(_ *host, c *Config) { c.Token = common.HexToAddress("0x1234") }, []string{"check the token's address"}},
	{"a token without ERC-3009", "token", func(h *host, c *Config) {
		c.Token = common.HexToAddress("0x5151") // answers 6 to everything
		h.RPC(h.T, nil, "anvil_setCode", c.Token, hexutil.Bytes(common.FromHex("600660005260206000f3")))
	}, []string{"ERC-3009", "coin of their own"}},
	{"a token with another domain", "token", func(h *host, c *Config) {
		other := badrpc.New(h.T, h.URL)
		other.On("eth_call", badrpc.About(strings.TrimPrefix(hexutil.Encode(crypto.Keccak256([]byte("version()"))[:4]), "0x"), badrpc.Fail(3, "execution reverted")))
		c.RPC = other.URL
	}, []string{"version"}},
	{"a price that cannot be charged", "price", func(_ *host, c *Config) { c.Prices = map[string]string{"h100": "0.00000001"} }, []string{"class h100", "6 decimals"}},
	{"no coin", "coin", func(_ *host, c *Config) { c.Payee = common.HexToAddress("0x1234") }, []string{"has 0.00 of", "20 settlements take 0.0", "send it"}},
	{"payout to oneself", "payout", func(_ *host, c *Config) { c.Payout = c.Payee }, []string{"of a key of this provider's"}},
	{"payout to the token", "payout", func(_ *host, c *Config) { c.Payout = c.Token }, []string{"is the token", "would be lost"}},
	{"payout to the escrow", "payout", func(_ *host, c *Config) { c.Payout = c.Escrow }, []string{"is the escrow", "would be lost"}},
	{"no folder", "database", func(_ *host, c *Config) { c.Database = "/nonexistent/provider.db" }, []string{"cannot be written and synced", "--db"}},
	{"a renter's database", "database", func(h *host, c *Config) {
		c.Database = filepath.Join(h.TempDir(), "renter.db")
		db, err := database.Open(h.Context(), c.Database, "renter", wallet.Migrations, "migrations/renter")
		if err = errors.Join(err, db.Close()); err != nil {
			h.Fatal(err)
		}
	}, []string{"of a renter"}},
	{"no database", "database", func(h *host, c *Config) {
		c.Database = filepath.Join(h.TempDir(), "notes.db")
		if err := os.WriteFile(c.Database, []byte("these are notes of mine, and no database"), 0o600); err != nil {
			h.Fatal(err)
		}
	}, []string{"database"}},
	{"a database for all", "database", func(h *host, c *Config) {
		if err := os.Chmod(c.Database, 0o644); err != nil {
			h.Fatal(err)
		}
	}, []string{"chmod 600"}},
	{"a server that is down", "database", func(_ *host, c *Config) { c.Database = "postgres://u:canary@127.0.0.1:1/none" }, []string{"does not answer"}},
	{"a server that forgets", "database", func(h *host, c *Config) { c.Database = with(pgtest.URL(h.T), "-c synchronous_commit=off") }, []string{"synchronous_commit is off"}},
	{"a standby", "database", func(h *host, c *Config) { c.Database = with(pgtest.URL(h.T), "-c default_transaction_read_only=on") }, []string{"primary"}},
	{"no driver", "gpus", func(_ *host, c *Config) {
		c.Open = func() (metering.Source, error) { return nil, errors.New("no NVIDIA driver") }
	}, []string{"no NVIDIA driver"}},
	{"a GPU that is lost", "gpus", func(_ *host, c *Config) {
		c.Open = func() (metering.Source, error) {
			s := sim.New(2, sim.Options{})
			s.Inject(sim.Fault{Device: 1, Kind: sim.Lost, For: time.Hour})
			return s, nil
		}
	}, []string{"SIM-GPU-1", "lost", "nvidia-smi"}},
	{"no upstream", "upstream", func(_ *host, c *Config) { c.Upstream = "http://127.0.0.1:1" }, []string{"--upstream"}},
	{"an upstream without a model", "upstream", func(h *host, _ *Config) {
		h.upstream = func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"data":[]}`)) }
	}, []string{"load one"}},
	{"an upstream that fails", "upstream", func(h *host, _ *Config) {
		h.upstream = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }
	}, []string{"status 500"}},
	{"no TLS", "tls", func(h *host, c *Config) { c.PublicURL = "http://127.0.0.1:1" }, []string{"without TLS"}},
	{"nobody's certificate", "tls", func(_ *host, c *Config) { c.Roots = x509.NewCertPool() }, []string{"by nobody that clients know"}},
	{"a certificate that has ended", "tls", func(h *host, c *Config) { h.certified(c, -time.Hour) }, []string{"has ended"}},
	{"a certificate that ends soon", "tls", func(h *host, c *Config) { h.certified(c, 48*time.Hour) }, []string{"renew it"}},
	{"a certificate of another", "tls", func(h *host, c *Config) { c.PublicURL = strings.Replace(c.PublicURL, "127.0.0.1", "localhost", 1) }, []string{"for another name"}},
	{"nothing there", "tls", func(_ *host, c *Config) { c.PublicURL = "https://127.0.0.1:1" }, []string{"refused"}},
	{"another provider", "offer", func(_ *host, c *Config) { c.Payee = common.HexToAddress("0x1234") }, []string{"another provider runs there"}},
	{"another token", "offer", func(_ *host, c *Config) { c.Token = common.HexToAddress("0x1234") }, []string{"others than those given"}},
	{"another price", "offer", func(_ *host, c *Config) { c.Prices = map[string]string{"": "2.60"} }, []string{"asks 2500000 base units", "2.60"}},
	{"another class", "offer", func(_ *host, c *Config) { c.Prices = map[string]string{"h100": "2.50"} }, []string{"class h100"}},
	{"an offer that has ended", "offer", func(h *host, c *Config) {
		o := h.provider.Offer().Offer
		o.Expires = time.Now().Add(-time.Minute).Unix()
		old, err := wire.SignOffer(h.Context(), channel.NewKey(h.Keys[0]), o)
		if err != nil {
			h.Fatal(err)
		}
		h.serves(c, func(w http.ResponseWriter, _ *http.Request) { w.Write(old.Document) })
	}, []string{"ended on"}},
	{"somebody else's site", "offer", func(h *host, c *Config) {
		h.serves(c, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>\x1b[31m")) })
	}, []string{"something else than a provider"}},
}

// with adds options of a session to a PostgreSQL's address.
func with(address, options string) string {
	mark := "?"
	if strings.Contains(address, "?") {
		mark = "&"
	}
	return address + mark + "options=" + strings.NewReplacer(" ", "%20", "=", "%3D").Replace(options)
}

// serves has something else than the provider answer behind the same certificate.
func (h *host) serves(c *Config, handler http.HandlerFunc) {
	server := httptest.NewTLSServer(handler)
	h.Cleanup(server.Close)
	c.PublicURL = server.URL
}

// certified has the public URL be one with a certificate that ends then.
func (h *host) certified(c *Config, ends time.Duration) {
	h.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-72 * time.Hour), NotAfter: time.Now().Add(ends),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		h.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		h.Fatal(err)
	}
	c.Roots = x509.NewCertPool()
	c.Roots.AddCert(certificate)
	server := httptest.NewUnstartedServer(h.provider)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	server.StartTLS()
	h.Cleanup(server.Close)
	c.PublicURL = server.URL
}

// TestEachFaultIsSaid: what is wrong with one part is said of it, with what to do, in one line that steers no terminal and quotes no
// password; parts that do not hang on it stay well.
func TestEachFaultIsSaid(t *testing.T) {
	t.Parallel()
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			c := h.config
			f.breaks(h, &c)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			findings := Check(ctx, c)
			var said string
			for _, found := range findings {
				if line := found.String(); strings.ContainsAny(line, "\n\x1b") || strings.Contains(line, "canary") {
					t.Errorf("%q", line)
				}
				if found.Part == f.part && !found.OK() {
					said += found.String()
				}
				if !found.OK() && (found.Part == "gpus" || found.Part == "database" || found.Part == "upstream") && found.Part != f.part {
					t.Errorf("%s", found)
				}
			}
			for _, want := range f.says {
				if !strings.Contains(said, want) {
					t.Errorf("of %s it says %q, and not %q", f.part, said, want)
				}
			}
			if Well(findings) {
				t.Error("all is well")
			}
		})
	}
}

// TestNewDatabaseIsWell: of a database that is not there yet, and of one of an older version, there is nothing to mend; simulated GPUs are
// said to be.
func TestNewDatabaseIsWell(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	c := Config{Database: filepath.Join(folder, "new.db"), Open: func() (metering.Source, error) { return sim.New(1, sim.Options{}), nil }}
	if f := c.database(t.Context()); !f[0].OK() || !strings.Contains(f[0].Seen, "not there yet") {
		t.Errorf("%s", f[0])
	}
	if _, err := os.Stat(c.Database); err == nil {
		t.Error("it was made")
	}
	if f := c.gpus(t.Context()); !f[0].OK() || !strings.Contains(f[0].Seen, "SIMULATED") {
		t.Errorf("%s", f[0])
	}
	old, err := store.Open(t.Context(), c.Database)
	if err = errors.Join(err, old.Close()); err != nil {
		t.Fatal(err)
	}
	if f := c.database(t.Context()); f[0].OK() || !strings.Contains(f[0].Mend, "not written to it yet") {
		t.Errorf("of a database without a provider's tables: %s", f[0])
	}
}
