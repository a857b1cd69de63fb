package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// town is a chain, real sidecars on it, and a proxy that pays them.
type town struct {
	*desk
	chain *devchain.Chain
	shops []*shop
	pool  *pool.Pool
	key   *ecdsa.PrivateKey
	dir   string // of the payer's databases
}

const funds = 1_000_000_000 // base units: 1,000 dollars

// shop is a sidecar before an engine.
type shop struct {
	*httptest.Server
	server *sidecar.Server
	dead   atomic.Bool
}

// vanish has nobody be there, from one moment to the next.
func (s *shop) vanish() {
	s.dead.Store(true)
	rig.HangUp(s.Server)
}

// newTown opens a sidecar for each engine, each at a price of a GPU-hour that 32 requests share.
func newTown(t *testing.T, price, budget string, engines []*engine, change ...func(*proxy.Config)) *town {
	t.Helper()
	local, err := devchain.Start(t.Context(), devchain.Options{BlockTime: 100 * time.Millisecond, Keys: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = local.Close() })
	w := &town{chain: local}
	if w.key, err = crypto.GenerateKey(); err == nil {
		err = local.Fund(t.Context(), crypto.PubkeyToAddress(w.key.PublicKey), big.NewInt(1e18), *uint256.NewInt(funds))
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	w.dir = dir
	client, err := renter.New(t.Context(), renter.Config{
		RPC: local.URL, Token: local.Token, Key: channel.NewKey(w.key), Database: filepath.Join(dir, "renter.db"), Patience: 3 * time.Second,
		Caps:  wallet.Caps{PricePerGPUHour: "10000", PerLease: wallet.Unlimited, PerDay: wallet.Unlimited, PerPayee: wallet.Unlimited},
		Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	w.pool, err = pool.Open(t.Context(), pool.Config{Client: client, File: filepath.Join(dir, "pool.db"), Budget: budget, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.pool.Stop() })
	var candidates []pool.Candidate
	for i, e := range engines {
		s := newShop(t, local, i, e, price)
		w.shops = append(w.shops, s)
		candidates = append(candidates, pool.Candidate{URL: s.URL, Model: "m", Region: "eu"})
	}
	if err := w.pool.Set(candidates); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the offers", func() bool { return len(w.pool.Endpoints()) == len(engines) })
	config := proxy.Config{Pool: proxy.FromPool(w.pool), Rand: seeded(), Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&config)
	}
	server, err := proxy.New(config)
	if err != nil {
		t.Fatal(err)
	}
	w.desk = &desk{T: t, engines: engines, server: server, site: httptest.NewServer(server)}
	t.Cleanup(func() { w.site.CloseClientConnections(); w.site.Close() })
	return w
}

func newShop(t *testing.T, local *devchain.Chain, i int, e *engine, price string) *shop {
	t.Helper()
	server, err := sidecar.New(t.Context(), sidecar.Config{Upstream: e.URL, Provider: provider.Config{
		RPC: local.URL, Escrow: local.Escrow, Token: local.Token, Key: channel.NewKey(local.Keys[i]), Database: filepath.Join(t.TempDir(), "provider.db"),
		PricePerGPUHour: price, Share: provider.Share{Slots: 32}, Source: sim.New(1, sim.Options{}),
		Deposits: provider.Deposits{Min: "0.01"}, Terms: provider.Terms{Credit: 5 * time.Second},
		Metering:   provider.Metering{Tick: 50 * time.Millisecond, MaxGap: 5 * time.Second, RecordEvery: 200 * time.Millisecond},
		Chain:      provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour},
		Settlement: settle.Policy{Interval: time.Hour, LeastRow: *uint256.NewInt(1)},
		Log:        slog.New(slog.DiscardHandler),
	}})
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{server: server}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- server.Run(ctx) }()
	s.Server = rig.Serve(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if s.dead.Load() {
			panic(http.ErrAbortHandler)
		}
		server.ServeHTTP(out, r)
	}))
	t.Cleanup(func() {
		stop()
		<-ran
		_ = server.Close()
		s.CloseClientConnections()
		s.Server.Close()
	})
	return s
}

// at is the index of the engine whose sidecar gave an answer.
func (w *town) at(a answer) int {
	for i, s := range w.shops {
		if s.URL == a.Header.Get("X-Gpupay-Provider") {
			return i
		}
	}
	w.Errorf("%d %s is of no provider", a.StatusCode, a.text)
	return 0
}

// TestThreeSidecars: chats go on, streamed and not, while one of three real sidecars is slow, one vanishes between two requests, and
// one in the middle of a stream, which the caller is told.
func TestThreeSidecars(t *testing.T) {
	t.Parallel()
	slow := func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Second); well(w, r) }
	w := newTown(t, "36", "20", []*engine{newEngine(t, well), newEngine(t, well), newEngine(t, slow)})
	for i := range 12 {
		if a := w.chat([]string{"", `,"stream":true`}[i%2]); a.StatusCode != http.StatusOK || a.err != nil || !strings.Contains(a.text, "there") {
			t.Fatalf("%d %q %v", a.StatusCode, a.text, a.err)
		}
	}
	if n := w.engines[2].asked.Load(); n > 4 {
		t.Errorf("the slow one was asked %d times of 12", n)
	}
	a := w.chat("")
	dead := w.at(a)
	w.shops[dead].vanish()
	for range 6 {
		if a := w.chat(""); a.StatusCode != http.StatusOK || w.at(a) == dead {
			t.Errorf("%d %q by %d, and %d is dead", a.StatusCode, a.text, w.at(a), dead)
		}
	}
	next := 1 - dead
	if dead == 2 {
		next = 0
	}
	w.engines[next].is(func(out http.ResponseWriter, r *http.Request) {
		say(out, "Hel")
		<-r.Context().Done()
	})
	res, err := http.Post(w.site.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"m","stream":true,"messages":[],"max_tokens":100000,"provider":{"order":["`+w.shops[next].URL+`"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	began := make([]byte, len(chunk("Hel")))
	if _, err := io.ReadFull(res.Body, began); err != nil {
		t.Fatal(err)
	}
	w.shops[next].vanish()
	text, err := io.ReadAll(res.Body)
	if a = (answer{res, string(text), err}); a.err != nil || a.code() != "answer_broken" || string(began) != chunk("Hel") || a.Trailer.Get("X-Gpupay-Cost") != "0.00" {
		t.Errorf("%q %v %v", a.text, a.err, a.Trailer)
	}
	if a = w.chat(""); a.StatusCode != http.StatusOK || w.at(a) == dead || w.at(a) == next {
		t.Errorf("%d %q", a.StatusCode, a.text)
	}
}

// TestBudgetIsNeverPassed: 500 requests at once over half a dollar are answered, or told in the end that it is used; what is paid in the end, on the
// chain, is within it, and so is what the books count at any moment.
func TestBudgetIsNeverPassed(t *testing.T) {
	t.Parallel()
	takes := func(w http.ResponseWriter, r *http.Request) { time.Sleep(100 * time.Millisecond); well(w, r) }
	w := newTown(t, "3600", "0.50", []*engine{newEngine(t, takes), newEngine(t, takes), newEngine(t, takes)})
	var mu sync.Mutex
	codes := make(map[string]int)
	var all sync.WaitGroup
	for range 500 {
		all.Go(func() {
			a := w.chat(`,"max_tokens":1`)
			for end := time.Now().Add(2 * time.Minute); (a.StatusCode == 429 || a.StatusCode == 503) && time.Now().Before(end); a = w.chat(`,"max_tokens":1`) { // as clients do
				time.Sleep(time.Second)
			}
			mu.Lock()
			defer mu.Unlock()
			codes[fmt.Sprint(a.StatusCode, " ", a.code())]++
		})
	}
	over := make(chan struct{})
	go func() { all.Wait(); close(over) }()
	for done := false; !done; {
		select {
		case <-over:
			done = true
		case <-time.After(100 * time.Millisecond):
		}
		if m, err := w.pool.Money(t.Context()); err == nil && m.Today.BaseUnits() > 500_000 { // it is not known while a deposit is on its way
			t.Errorf("%s count, of 500,000", m.Today)
		}
	}
	for code := range codes {
		if code != "200 " && code != "402 budget_used" && code != "429 budget_reserved" && code != "429 providers_full" && code != "503 providers_failed" && code != "504 time_used" {
			t.Errorf("%d requests are answered %s", codes[code], code)
		}
	}
	if codes["200 "] == 0 || codes["402 budget_used"] == 0 {
		t.Errorf("%v: the budget was not what held them", codes)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.pool.Close(ctx); err != nil {
		t.Fatal(err)
	}
	has := w.has()
	if spent := funds - has; spent == 0 || spent > 500_000 {
		t.Errorf("%d base units were paid, of 500,000; %v", spent, codes)
	}
	t.Log(codes, "paid", funds-has)
}

// TestCallerLeavesASidecar: a caller that leaves ends the work behind a real sidecar, and pays its time until then.
func TestCallerLeavesASidecar(t *testing.T) {
	t.Parallel()
	w := newTown(t, "3600", "100", []*engine{newEngine(t, func(out http.ResponseWriter, r *http.Request) {
		say(out, "one")
		<-r.Context().Done()
	})})
	ctx, leave := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, http.MethodPost, w.site.URL+"/v1/chat/completions", strings.NewReader(`{"model":"m","stream":true,"messages":[]}`))
	began := time.Now()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	_, _ = io.ReadFull(res.Body, make([]byte, 10))
	time.Sleep(time.Second) // some readings of the GPU: what lies between none is not billed
	leave()
	rig.Eventually(t, "the engine's end", func() bool { return w.engines[0].running.Load() == 0 })
	most := uint64(time.Since(began)+time.Second) * 31_250 / uint64(time.Second) // a second of a slot costs 31,250
	closing, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.pool.Close(closing); err != nil {
		t.Fatal(err)
	}
	if spent := funds - w.has(); spent < 5_000 || spent > most {
		t.Errorf("%d base units were paid, at most %d are due", spent, most)
	}
}

// TestGoesOnAtASidecar: an answer that breaks off at a real sidecar is gone on with at another, which alone is paid, once, and no text of it is in
// a database.
func TestGoesOnAtASidecar(t *testing.T) {
	t.Parallel()
	text := strings.Repeat(canary+" ", 20)
	takes := func(s scribe) *engine {
		return newEngine(t, func(w http.ResponseWriter, r *http.Request) { time.Sleep(300 * time.Millisecond); s.serve(w, r) })
	}
	w := newTown(t, "3600", "100", []*engine{takes(scribe{id: "x", text: text, piece: 30, dies: 3, how: reset}), takes(scribe{id: "y", text: text, piece: 8, dies: -1})})
	var candidates []pool.Candidate
	for _, s := range w.shops {
		candidates = append(candidates, pool.Candidate{URL: s.URL, Model: "m", Prefill: true})
	}
	if err := w.pool.Set(candidates); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the list", func() bool { return w.pool.Endpoints()[0].Prefill })
	time.Sleep(time.Second) // for as long as the proxy takes the list for the same
	a := w.chat(`,"stream":true,"max_tokens":200,"provider":{"order":["` + w.shops[0].URL + `"]}`)
	if h := a.heard(t); h.text != text || h.finish != "stop" || h.ends != 1 || h.id != "x" || a.Trailer.Get("X-Gpupay-Attempts") != "2" || a.err != nil {
		t.Errorf("%+v %v", h, a.err)
	}
	closing, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.pool.Close(closing); err != nil {
		t.Fatal(err)
	}
	paid := funds - w.has()
	first, second := w.balance(crypto.PubkeyToAddress(w.chain.Keys[0].PublicKey)), w.balance(crypto.PubkeyToAddress(w.chain.Keys[1].PublicKey))
	if first != 0 || second != paid || paid < 31_250*3/10 || paid > 31_250*5 { // 0.3 s at least
		t.Errorf("%d base units were paid: %d to who broke off, %d to who went on", paid, first, second)
	}
	files, err := filepath.Glob(filepath.Join(w.dir, "*"))
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		if kept, err := os.ReadFile(name); err != nil || strings.Contains(string(kept), canary) {
			t.Errorf("%s has text of the answer: %v", name, err)
		}
	}
}

// has is what the payer has on the chain, in base units.
func (w *town) has() uint64 { return w.balance(crypto.PubkeyToAddress(w.key.PublicKey)) }

func (w *town) balance(of common.Address) uint64 {
	w.Helper()
	token, err := chain.NewToken(w.Context(), w.chain.Backend, w.chain.Token)
	if err != nil {
		w.Fatal(err)
	}
	balance, err := token.Balance(w.Context(), of)
	if err != nil {
		w.Fatal(err)
	}
	return balance.Uint64()
}
