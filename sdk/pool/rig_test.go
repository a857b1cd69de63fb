package pool_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// town is a chain, sidecars on it, and a renter's key.
type town struct {
	*testing.T
	chain *devchain.Chain
	key   *ecdsa.PrivateKey
	dir   string
	caps  wallet.Caps
	keys  int
}

func newTown(t *testing.T) *town {
	t.Helper()
	local, err := devchain.Start(t.Context(), devchain.Options{BlockTime: 100 * time.Millisecond, Keys: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = local.Close() })
	key, err := crypto.GenerateKey()
	if err == nil {
		err = local.Fund(t.Context(), crypto.PubkeyToAddress(key.PublicKey), big.NewInt(1e18), *uint256.NewInt(funds))
	}
	if err != nil {
		t.Fatal(err)
	}
	return &town{T: t, chain: local, key: key, dir: t.TempDir(),
		caps: caps}
}

var caps = wallet.Caps{PricePerGPUHour: "400", PerLease: "5", PerDay: "9", PerPayee: wallet.Unlimited}

const funds = 10_000_000 // base units: 10 tokens

// shop is a sidecar before an inference server that takes as many milliseconds as it is asked to.
type shop struct {
	*httptest.Server
	config sidecar.Config
	server atomic.Pointer[sidecar.Server]
	stop   context.CancelFunc
	ran    chan error
	dead   atomic.Bool
	drops  atomic.Int64 // openings whose answer gets lost
	asked  atomic.Int64
	quoted atomic.Pointer[func()] // is done before the next request after one for its price
	priced atomic.Bool
}

// shop opens one: a GPU's hour at a price in tokens, shared by slots.
func (w *town) shop(price string, slots int) *shop {
	w.Helper()
	s := &shop{ran: make(chan error, 1)}
	engine := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			_, _ = io.WriteString(out, `{"data":[{"id":"test"}]}`)
			return
		}
		s.asked.Add(1)
		var a ask
		_ = json.NewDecoder(r.Body).Decode(&a)
		select {
		case <-r.Context().Done():
		case <-time.After(time.Duration(a.Millis) * time.Millisecond):
		}
		if a.Fail {
			out.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(out, `{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}]}`)
	}))
	w.Cleanup(engine.Close)
	s.config = sidecar.Config{Upstream: engine.URL, Provider: provider.Config{
		RPC: w.chain.URL, Escrow: w.chain.Escrow, Token: w.chain.Token, Key: channel.NewKey(w.chain.Keys[w.keys]), Database: filepath.Join(w.TempDir(), "provider.db"),
		PricePerGPUHour: price, Share: provider.Share{Slots: slots}, Source: sim.New(1, sim.Options{}),
		Deposits: provider.Deposits{Min: "0.01"}, Terms: provider.Terms{Credit: 5 * time.Second},
		Metering:   provider.Metering{Tick: 50 * time.Millisecond, MaxGap: 5 * time.Second, RecordEvery: 200 * time.Millisecond},
		Chain:      provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour},
		Settlement: settle.Policy{Interval: time.Hour, LeastRow: *uint256.NewInt(1)},
		Log:        slog.New(slog.DiscardHandler),
	}}
	w.keys++
	s.start(w.T)
	s.Server = rig.Serve(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if s.dead.Load() {
			panic(http.ErrAbortHandler)
		}
		if s.priced.Swap(r.URL.Path == "/lease" && r.Header.Get("Authorization") == "") {
			if do := s.quoted.Swap(nil); do != nil {
				(*do)()
			}
		}
		if strings.HasPrefix(r.URL.Path, "/lease") && r.Header.Get("Authorization") != "" && s.drops.Add(-1) >= 0 {
			panic(http.ErrAbortHandler)
		}
		s.server.Load().ServeHTTP(out, r)
	}))
	w.Cleanup(func() {
		s.shut()
		s.CloseClientConnections()
		s.Server.Close()
	})
	return s
}

func (s *shop) start(t *testing.T) {
	t.Helper()
	server, err := sidecar.New(t.Context(), s.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.server.Store(server)
	go func() { s.ran <- server.Run(ctx) }()
}

func (s *shop) shut() {
	s.stop()
	<-s.ran
	_ = s.server.Load().Close()
}

// reprice starts it again at another price.
func (s *shop) reprice(t *testing.T, price string) {
	t.Helper()
	s.dead.Store(true)
	rig.HangUp(s.Server)
	s.charge(t, price)
	s.dead.Store(false)
}

// charge is reprice without that a connection ends.
func (s *shop) charge(t *testing.T, price string) {
	t.Helper()
	s.shut()
	s.config.Provider.PricePerGPUHour = price
	s.start(t)
}

// vanish has nobody be there.
func (s *shop) vanish() {
	s.dead.Store(true)
	rig.HangUp(s.Server)
}

// client opens the renter.
func (w *town) client() *renter.Client {
	w.Helper()
	client, err := renter.New(w.Context(), renter.Config{
		RPC: w.chain.URL, Token: w.chain.Token, Key: channel.NewKey(w.key), Database: filepath.Join(w.dir, "renter.db"), Caps: w.caps, Patience: 3 * time.Second,
		Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = client.Close() })
	return client
}

// pool opens a pool of a client.
func (w *town) pool(client *renter.Client, change func(*pool.Config)) *pool.Pool {
	w.Helper()
	c := pool.Config{Client: client, File: filepath.Join(w.dir, "pool.db"), Budget: "0.50", Log: rig.Warnings(w.T)}
	if change != nil {
		change(&c)
	}
	p, err := pool.Open(w.Context(), c)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = p.Stop() })
	return p
}

// offer has the pool ask shops, and waits until all their offers stand.
func offer(t *testing.T, p *pool.Pool, shops ...*shop) {
	t.Helper()
	var all []pool.Candidate
	for _, s := range shops {
		all = append(all, pool.Candidate{URL: s.URL, Model: "test"})
	}
	if err := p.Set(all); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the offers", func() bool { return len(p.Endpoints()) == len(shops) })
}

type ask struct {
	Millis int  `json:"millis"`
	Fail   bool `json:"fail"`
}

// send sends one request for a reservation, and reads the answer.
func send(ctx context.Context, h *pool.Hold, a ask) (int, error) {
	text, _ := json.Marshal(a)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api/v1/chat/completions", bytes.NewReader(text))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := h.RoundTrip(r)
	if err != nil {
		return 0, err
	}
	_, err = io.ReadAll(res.Body)
	return res.StatusCode, errors.Join(err, res.Body.Close())
}

// anyPrice is an endpoint for those to whom its price is no matter.
func anyPrice(id string) route.Endpoint {
	return route.Endpoint{ID: id, Price: route.Price{PerSlotSecond: route.Base(1 << 40)}}
}

// must reserves, sends and is done.
func must(t *testing.T, p *pool.Pool, key string, s *shop, most route.Nano, a ask) {
	t.Helper()
	h, err := p.Reserve(t.Context(), key, anyPrice(s.URL), most)
	if err != nil {
		t.Fatal(err)
	}
	status, err := send(t.Context(), h, a)
	if want := map[bool]int{true: 500, false: 200}[a.Fail]; err != nil || status != want {
		t.Errorf("%d, %v", status, err)
	}
	if err := h.Done(t.Context(), route.Nano{}); err != nil {
		t.Error(err)
	}
}

// counted is what counts against a pool's budget today.
func counted(t *testing.T, p *pool.Pool) route.Nano {
	t.Helper()
	m, err := p.Money(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m.Today
}
