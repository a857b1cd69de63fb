package sidecar_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// ask is what a test asks its inference server for.
type ask struct {
	Millis int    `json:"millis"` // how long the answer takes
	Fail   string `json:"fail"`   // how it goes wrong
}

// engine is an inference server that streams for as long as it is asked to.
type engine struct {
	*httptest.Server
	running atomic.Int64
	down    atomic.Bool
}

func newEngine(t *testing.T) *engine {
	e := &engine{}
	e.Server = httptest.NewServer(e)
	t.Cleanup(func() { e.CloseClientConnections(); e.Close() })
	return e
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if e.down.Load() {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	if r.URL.Path == "/v1/models" {
		_, _ = io.WriteString(w, `{"data":[{"id":"test"}]}`)
		return
	}
	e.running.Add(1)
	defer e.running.Add(-1)
	var a ask
	_ = json.NewDecoder(r.Body).Decode(&a)
	if a.Fail == "500" {
		time.Sleep(time.Duration(a.Millis) * time.Millisecond)
		http.Error(w, `{"error":{"message":"out of memory"}}`, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	for began := time.Now(); time.Since(began) < time.Duration(a.Millis)*time.Millisecond; {
		if _, err := io.WriteString(w, `data: {"choices":[{"delta":{"content":"x"},"finish_reason":null}]}`+"\n\n"); err != nil || out.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	switch a.Fail {
	case "reset":
		panic(http.ErrAbortHandler)
	case "event":
		_, _ = io.WriteString(w, `data: {"error":{"message":"it died"}}`+"\n\n")
	}
	_, _ = io.WriteString(w, `data: {"choices":[{"delta":{},"finish_reason":"stop"}]}`+"\n\ndata: [DONE]\n\n")
}

// shop is a sidecar before an engine, on a chain of its own.
type shop struct {
	*testing.T
	chain  *devchain.Chain
	engine *engine
	config sidecar.Config
	server *sidecar.Server
	site   *httptest.Server
	dead   atomic.Bool // nobody is there
	stop   context.CancelFunc
	ran    chan error
}

const price = 1000 // base units a GPU-second

func newShop(t *testing.T, change ...func(*sidecar.Config)) *shop {
	t.Helper()
	t.Parallel()
	local, err := devchain.Start(t.Context(), devchain.Options{BlockTime: 100 * time.Millisecond, Genesis: devchain.X402()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = local.Close() })
	s := &shop{T: t, chain: local, engine: newEngine(t)}
	s.config = sidecar.Config{Upstream: s.engine.URL, Provider: provider.Config{
		RPC: local.URL, Escrow: local.Escrow, Token: local.Token, Key: channel.NewKey(local.Keys[0]),
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "3.60", Share: provider.Share{Slots: 3},
		Source:   sim.New(1, sim.Options{}),
		Deposits: provider.Deposits{Min: "0.01"}, Terms: provider.Terms{Credit: 2 * time.Second},
		Metering:   provider.Metering{Tick: 50 * time.Millisecond, MaxGap: 2 * time.Second, RecordEvery: 200 * time.Millisecond},
		Chain:      provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour},
		Settlement: settle.Policy{Interval: time.Hour, LeastRow: *uint256.NewInt(1)},
		Log:        rig.Warnings(t),
	}}
	for _, c := range change {
		c(&s.config)
	}
	s.start()
	t.Cleanup(s.shut)
	return s
}

func (s *shop) start() {
	s.Helper()
	server, err := sidecar.New(s.Context(), s.config)
	if err != nil {
		s.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.server, s.stop, s.ran = server, stop, make(chan error, 1)
	go func() { s.ran <- server.Run(ctx) }()
	if s.site == nil {
		s.site = rig.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.dead.Load() {
				panic(http.ErrAbortHandler)
			}
			s.server.ServeHTTP(w, r)
		}))
		s.Cleanup(s.site.Close)
	}
}

func (s *shop) shut() {
	s.stop()
	if err := <-s.ran; err != nil {
		s.Errorf("Run: %v", err)
	}
	if err := s.server.Close(); err != nil {
		s.Errorf("Close: %v", err)
	}
	s.site.CloseClientConnections()
}

// guest is a renter with a share.
type guest struct {
	*testing.T
	config renter.Config
	client *renter.Client
	rental *renter.Rental
	http   *http.Client
	ran    <-chan error
	stop   context.CancelFunc
}

func (s *shop) key() *ecdsa.PrivateKey {
	private, err := crypto.GenerateKey()
	if err != nil {
		s.Fatal(err)
	}
	if err := s.chain.Fund(s.Context(), crypto.PubkeyToAddress(private.PublicKey), big.NewInt(1e18), *uint256.NewInt(10_000_000)); err != nil {
		s.Fatal(err)
	}
	return private
}

func (s *shop) guest(options renter.Options, change ...func(*renter.Config)) *guest {
	s.Helper()
	config := renter.Config{
		RPC: s.chain.URL, Token: s.chain.Token, Key: channel.NewKey(s.key()), Database: filepath.Join(s.TempDir(), "renter.db"),
		Caps:  wallet.Caps{PricePerGPUHour: "4.00", PerLease: "10", PerDay: "20", PerPayee: wallet.Unlimited},
		Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour}, Tolerance: time.Second, Log: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&config)
	}
	client, err := renter.New(s.Context(), config)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = client.Close() })
	options.Share = true
	if options.Deposit == "" {
		options.Deposit = "1.00"
	}
	if options.PayEvery == 0 {
		options.PayEvery = 200 * time.Millisecond
	}
	rental, err := client.Rent(s.Context(), s.site.URL, options)
	if err != nil {
		s.Fatal(err)
	}
	g := &guest{T: s.T, config: config, client: client, rental: rental}
	g.http = &http.Client{Transport: rental.Transport(nil)}
	g.run()
	return g
}

func (g *guest) run() {
	ctx, stop := context.WithCancel(g.Context())
	done := make(chan error, 1)
	go func() { done <- g.rental.Run(ctx) }()
	g.ran, g.stop = done, stop
}

// post asks for an answer and reads it. It returns how long that took.
func (g *guest) post(ctx context.Context, a ask) (status int, text string, took time.Duration, err error) {
	to, err := g.rental.Endpoint()
	if err != nil {
		return 0, "", 0, err
	}
	body, _ := json.Marshal(a)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String()+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return 0, "", 0, err
	}
	r.Header.Set("Content-Type", "application/json")
	began := time.Now()
	res, err := g.http.Do(r)
	if err != nil {
		return 0, "", time.Since(began), err
	}
	defer res.Body.Close()
	all, err := io.ReadAll(res.Body)
	return res.StatusCode, string(all), time.Since(began), err
}

// must is post of what is answered well.
func (g *guest) must(millis int) time.Duration {
	status, text, took, err := g.post(g.Context(), ask{Millis: millis})
	if err != nil || status != http.StatusOK {
		g.Errorf("%d %.200s: %v", status, text, err)
	}
	return took
}

// close closes the rental, and returns what its escrow's channel paid, in base units.
func (g *guest) close(local *devchain.Chain) uint64 {
	g.Helper()
	closing, err := g.rental.Close(g.Context())
	if err != nil {
		g.Fatal(err)
	}
	escrow, err := chain.NewEscrow(g.Context(), local.Backend, local.Escrow)
	if err != nil {
		g.Fatal(err)
	}
	view, err := escrow.View(g.Context(), g.rental.ID(), nil)
	if err != nil || !view.Finalized || view.Settled != closing.Owed {
		g.Errorf("on the chain %s are settled, finalized: %v; %s are owed: %v", view.Settled.Dec(), view.Finalized, closing.Owed.Dec(), err)
	}
	return view.Settled.Uint64()
}

// requests are those that the records of a channel bill or name, by their id.
func (s *shop) requests(id common.Hash) map[uint64]metering.Request {
	s.Helper()
	bundle, err := s.server.Export(s.Context(), id)
	if err != nil {
		s.Fatal(err)
	}
	all := make(map[uint64]metering.Request)
	for _, l := range bundle.Leases {
		for _, rec := range l.Records {
			for _, r := range rec.Evidence.Slots.Requests {
				if _, twice := all[r.ID]; twice {
					s.Errorf("request %d stands in two records", r.ID)
				}
				all[r.ID] = r
			}
		}
	}
	return all
}

// balance is what an account has, in base units.
func (s *shop) balance(of common.Address) uint256.Int {
	s.Helper()
	token, err := chain.NewToken(s.Context(), s.chain.Backend, s.chain.Token)
	if err != nil {
		s.Fatal(err)
	}
	balance, err := token.Balance(s.Context(), of)
	if err != nil {
		s.Fatal(err)
	}
	return balance
}

// cheat has requests be answered otherwise.
func (s *shop) cheat(answer func(http.ResponseWriter, *provider.Request)) {
	s.site.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v1/") {
			s.server.ServeHTTP(w, r)
			return
		}
		id, _ := strconv.ParseUint(r.Header.Get(wire.RequestHeader), 10, 64)
		request, err := s.server.Slots().Take(context.WithoutCancel(r.Context()), strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), id)
		if err != nil {
			s.server.Slots().Refuse(w, err)
			return
		}
		answer(w, request)
	})
}

// stated is what the newest record on the provider's disk bills, nanoseconds of one GPU.
func (g *guest) stated(s *shop) uint64 {
	g.Helper()
	bundle, err := s.server.Export(g.Context(), g.rental.ID())
	if err != nil {
		g.Fatal(err)
	}
	records := bundle.Leases[0].Records
	if len(records) == 0 {
		return 0
	}
	return records[len(records)-1].Nanos
}

// reopen has a renter go on from its database.
func (g *guest) reopen(s *shop) {
	g.Helper()
	if err := g.client.Close(); err != nil {
		g.Fatal(err)
	}
	client, err := renter.New(g.Context(), g.config)
	if err != nil {
		g.Fatal(err)
	}
	s.Cleanup(func() { _ = client.Close() })
	rental, err := client.Resume(g.Context(), g.rental.ID())
	if err != nil {
		g.Fatal(err)
	}
	g.client, g.rental = client, rental
	g.http = &http.Client{Transport: rental.Transport(nil)}
	g.run()
	rig.Eventually(g.T, "its lease", func() bool { _, err := rental.Endpoint(); return err == nil })
}

// kill has a provider go on as if its process had been killed: from what is on disk at this moment, which nobody closed.
func (s *shop) kill() {
	s.Helper()
	old, stop, ran := s.server, s.stop, s.ran
	s.dead.Store(true)
	rig.HangUp(s.site)
	time.Sleep(50 * time.Millisecond)
	from, to := s.config.Provider.Database, filepath.Join(s.TempDir(), "provider.db")
	for _, file := range []string{"", "-wal", ".signed", ".signed-wal"} {
		text, err := os.ReadFile(from + file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.Fatal(err)
		}
		if err == nil {
			if err := os.WriteFile(to+file, text, 0o600); err != nil {
				s.Fatal(err)
			}
		}
	}
	s.config.Provider.Database = to
	stop()
	<-ran
	_ = old.Close()
	s.start()
	s.dead.Store(false)
}
