package proxying_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
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

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/internal/proxying"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// screen is what a person sees.
type screen struct {
	mu sync.Mutex
	bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Buffer.Write(p)
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.String()
}

// house is a chain, a provider on it, and the directory of a proxy.
type house struct {
	*testing.T
	chain  *devchain.Chain
	dir    string
	list   string // file of providers
	screen screen
	site   *httptest.Server
	hold   chan struct{} // an answer is held between two receives; nil: none is
	gone   atomic.Bool   // nobody answers for the provider
	hangs  atomic.Bool   // it takes what it is asked, and says nothing
}

const canary = "canary-7f3a"

func newHouse(t *testing.T) *house {
	t.Helper()
	local, err := devchain.Start(t.Context(), devchain.Options{BlockTime: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = local.Close() })
	h := &house{T: t, chain: local, dir: filepath.Join(t.TempDir(), "proxy")}
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && h.hold != nil {
			for range 2 {
				select {
				case h.hold <- struct{}{}:
				case <-time.After(time.Minute):
				}
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"choices":[{"message":{"content":"`+canary+`"},"finish_reason":"stop"}]}`)
	}))
	t.Cleanup(engine.Close)
	server, err := sidecar.New(t.Context(), sidecar.Config{Upstream: engine.URL, Provider: provider.Config{
		RPC: local.URL, Escrow: local.Escrow, Token: local.Token, Key: channel.NewKey(local.Keys[0]), Database: filepath.Join(t.TempDir(), "provider.db"),
		PricePerGPUHour: "3.60", Share: provider.Share{Slots: 32}, Source: sim.New(1, sim.Options{}), Deposits: provider.Deposits{Min: "0.01"},
		Metering: provider.Metering{Tick: 100 * time.Millisecond, MaxGap: 5 * time.Second, RecordEvery: 200 * time.Millisecond},
		Chain:    provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour}, Log: slog.New(slog.DiscardHandler),
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- server.Run(ctx) }()
	h.site = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.gone.Load() {
			panic(http.ErrAbortHandler)
		}
		if h.hangs.Load() {
			<-r.Context().Done()
		}
		server.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { stop(); <-ran; _ = server.Close(); h.site.CloseClientConnections(); h.site.Close() })
	h.list = filepath.Join(t.TempDir(), "providers.json")
	if err := os.WriteFile(h.list, fmt.Appendf(nil, `[{"url":%q,"model":"m","region":"eu"}]`, h.site.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *house) proxying() *proxying.Proxying {
	return &proxying.Proxying{
		Dir: h.dir, Budget: "1/day", Providers: h.list, Out: &h.screen, Log: slog.New(slog.NewTextHandler(&h.screen, nil)),
		Client: renter.Config{RPC: h.chain.URL, Token: h.chain.Token, Caps: wallet.Caps{PricePerGPUHour: "5"}, Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour}},
	}
}

// serve runs a proxy, and returns where it answers.
func (h *house) serve(p *proxying.Proxying) (url, admin string, stop func() error) {
	h.Helper()
	var listeners [2]net.Listener
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			h.Fatal(err)
		}
		listeners[i] = l
	}
	ctx, cancel := context.WithCancel(h.Context())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx, listeners[0], listeners[1]) }()
	return "http://" + listeners[0].Addr().String(), listeners[1].Addr().String(), func() error { cancel(); return within(h.T, ran) }
}

// within is what comes out of a channel, which is not waited for forever.
func within[T any](t *testing.T, from <-chan T) (got T) {
	t.Helper()
	select {
	case got = <-from:
	case <-time.After(2 * time.Minute):
		t.Error("what was waited for does not come")
	}
	return got
}

// chat asks until a provider is known.
func (h *house) chat(url, key string) (int, string) {
	h.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		r, _ := http.NewRequest(http.MethodPost, url+"/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"`+canary+`"}],"max_tokens":10}`))
		r.Header.Set("Authorization", "Bearer "+key)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			h.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusServiceUnavailable || time.Now().After(end) {
			return res.StatusCode, string(text)
		}
	}
}

// TestFirstRun: with a list of providers and nothing else a first request is answered: a wallet is made, and on a chain for tests filled.
// A second start pays from the same. Nothing that a person sees has a word of chains in it; no prompt, answer or key is in any file.
func TestFirstRun(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	url, admin, stop := h.serve(h.proxying())
	if status, text := h.chat(url, "sk-of-elsewhere"); status != http.StatusOK || !strings.Contains(text, canary) {
		t.Fatalf("%d %s; %s", status, text, h.screen.text())
	}
	for _, want := range []string{"A wallet was made: 0x", "In the wallet: $20.00", "export OPENAI_BASE_URL=" + url + "/v1", "At most $1 is spent"} {
		if !strings.Contains(h.screen.text(), want) {
			t.Errorf("%q is not said: %s", want, h.screen.text())
		}
	}
	keys, err := proxying.Keys(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	var ci, poor bytes.Buffer
	if err := proxying.AddKey(&ci, io.Discard, keys, "ci", "0.50/day", nil); err != nil {
		t.Fatal(err)
	}
	if err := proxying.AddKey(&poor, io.Discard, keys, "poor", "0.000001/day", nil); err != nil {
		t.Fatal(err)
	}
	if err := proxying.AddKey(&poor, io.Discard, keys, "wrong", "a lot", nil); err == nil {
		t.Error("a budget of a lot was taken")
	}
	var errors strings.Builder
	for secret, want := range map[string]int{strings.TrimSpace(ci.String()): 200, strings.TrimSpace(poor.String()): 402, "sk-of-elsewhere": 401} {
		status, text := h.chat(url, secret)
		if status != want {
			t.Errorf("%d %s, want %d", status, text, want)
		}
		if status >= 400 {
			errors.WriteString(text)
		}
	}
	if err := proxying.Budget(t.Context(), &h.screen, admin); err != nil {
		t.Error(err)
	}
	if err := proxying.Top(t.Context(), &h.screen, admin, true); err != nil {
		t.Error(err)
	}
	if err := proxying.List(&h.screen, keys); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"poor  $0.000001  $0.00", "3.60", h.site.URL, "In  the  wallet:  $19."} {
		if !strings.Contains(strings.Join(strings.Fields(h.screen.text()), "  "), want) {
			t.Errorf("%q is not shown: %s", want, h.screen.text())
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	url, _, stop = h.serve(h.proxying())
	if status, text := h.chat(url, strings.TrimSpace(ci.String())); status != http.StatusOK {
		t.Errorf("after a restart: %d %s", status, text)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(h.screen.text(), "A wallet was made"); n != 1 {
		t.Errorf("%d wallets were made", n)
	}
	if found := proxying.Hidden.FindAllString(h.screen.text()+errors.String(), -1); len(found) > 0 {
		t.Errorf("%q is said: %s %s", found, h.screen.text(), errors.String())
	}
	h.nothingKept(strings.TrimSpace(ci.String()))
}

// nothingKept looks for prompts, answers and keys in whatever the proxy wrote.
func (h *house) nothingKept(secret string) {
	h.Helper()
	files := 0
	_ = filepath.WalkDir(h.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files++
		text, err := os.ReadFile(path)
		if err != nil || bytes.Contains(text, []byte(canary)) || bytes.Contains(text, []byte(secret[3:])) || bytes.Contains(text, []byte("sk-of-elsewhere")) {
			h.Errorf("%s has a prompt, an answer or a key: %v", path, err)
		}
		if info, err := entry.Info(); err == nil && info.Mode().Perm()&0o077 != 0 && !strings.HasSuffix(path, ".lock") {
			h.Logf("%s can be read by others: %s", path, info.Mode())
		}
		return nil
	})
	if info, err := os.Stat(h.dir); err != nil || info.Mode().Perm() != 0o700 || files < 6 {
		h.Errorf("%d files; %v %v", files, info.Mode(), err)
	}
}

// TestWhatCannotBeginIsSaid: in words without chains, and without a wallet that nobody asked for.
func TestWhatCannotBeginIsSaid(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "proxy")
	closed := httptest.NewServer(nil)
	closed.Close()
	p := &proxying.Proxying{Dir: dir, Budget: "1/day", Providers: filepath.Join(dir, "none.json"), Out: io.Discard,
		Client: renter.Config{RPC: closed.URL, Token: common.Address{1}, Caps: wallet.Caps{PricePerGPUHour: "5"}}}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context(), l, nil); err == nil || !strings.Contains(err.Error(), "key add") {
		t.Errorf("open to the network without a key: %v", err)
	}
	_ = l.Close()
	for _, budget := range []string{"1/day", "much"} {
		p.Budget = budget
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		err := p.Run(t.Context(), l, nil)
		if err == nil || proxying.Hidden.MatchString(err.Error()) {
			t.Errorf("%s: %v", budget, err)
		}
	}
	p.Budget, p.Client.Token, p.Providers = "1/day", common.Address{}, ""
	if err := p.Return(t.Context()); err == nil || !strings.Contains(err.Error(), "--token is empty") {
		t.Errorf("without a token: %v", err)
	}
	if made, _ := filepath.Glob(filepath.Join(dir, "wallet*")); len(made) > 0 {
		t.Errorf("made: %q", made)
	}
}

// TestFirstKeyIsAnnounced: that programs without one are refused from then on, and which models nobody serves, is said beside the secret,
// which stands alone where scripts read it.
func TestFirstKeyIsAnnounced(t *testing.T) {
	t.Parallel()
	keys, err := proxying.Keys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		var out, notes strings.Builder
		if err := proxying.AddKey(&out, &notes, keys, fmt.Sprint("k", i), "", nil); err != nil || strings.Contains(notes.String(), "every program") != want || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%q, %q: %v", out.String(), notes.String(), err)
		}
	}
	list := filepath.Join(t.TempDir(), "providers.json")
	if err := os.WriteFile(list, []byte(`[{"url":"http://127.0.0.1:1","model":"m"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	var notes strings.Builder
	if proxying.SayUnserved(t.Context(), &notes, list, []string{"m", "typo"}); strings.Count(notes.String(), "\n") != 1 || !strings.Contains(notes.String(), `serves "typo"`) {
		t.Error(notes.String())
	}
}

// TestTopShowsWhatWasMeasured: nothing is made up for a provider that nobody asked.
func TestTopShowsWhatWasMeasured(t *testing.T) {
	t.Parallel()
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"budget_left":"1","providers":[
			{"provider":"http://new","model":"m","price_per_hour":1,"price_per_slot_hour":1,"success":0.9,"state":"asked","spent":"0"},
			{"provider":"http://full","model":"m","price_per_hour":1,"price_per_slot_hour":1,"success":0.9,"state":"resting","requests":2,"full":2,"spent":"0"},
			{"provider":"http://old","model":"m","price_per_hour":1,"price_per_slot_hour":1,"success":0.98,"first_token_seconds":0.2,"tokens_per_second":40,"state":"asked","requests":9,"spent":"0.1"}]}`)
	}))
	t.Cleanup(admin.Close)
	var out strings.Builder
	if err := proxying.Top(t.Context(), &out, strings.TrimPrefix(admin.URL, "http://"), true); err != nil {
		t.Fatal(err)
	}
	shown := strings.Join(strings.Fields(out.String()), " ")
	for _, row := range []string{"http://new m - 1.00 1.0000 - - - - 0 0 0 $0 -", "http://full m - 1.00 1.0000 - - - - 2 0 2 $0 resting", "http://old m - 1.00 1.0000 - 0.20 s 40 98 % 9 0 0 $0.1 asked"} {
		if !strings.Contains(shown, row) {
			t.Errorf("%q is not shown: %s", row, out.String())
		}
	}
}

// TestReturnSaysWhatItWaitsFor: of a provider that is gone it says how much comes back, from whom and until when, and an interrupt says that
// nothing is lost.
func TestReturnSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	url, _, stop := h.serve(h.proxying())
	if status, text := h.chat(url, "none"); status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	h.gone.Store(true)
	h.site.CloseClientConnections()
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.proxying().Return(ctx) }()
	for end := time.Now().Add(time.Minute); !strings.Contains(h.screen.text(), "Keep this running") && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	interrupt()
	if err := within(t, ended); err == nil || !strings.Contains(err.Error(), "goes on when gpupay proxy is started again") || proxying.Hidden.MatchString(err.Error()) {
		t.Errorf("interrupted: %v", err)
	}
	if text := h.screen.text(); !strings.Contains(text, " comes back from "+h.site.URL+": in moments with its help, and without it until about 2") {
		t.Error(text)
	}
}

// TestStoppingSaysWhatItWaitsFor: who interrupts a proxy that still sends an answer is told so at once.
func TestStoppingSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.hold = make(chan struct{})
	url, _, stop := h.serve(h.proxying())
	answered := make(chan int, 1)
	go func() { status, _ := h.chat(url, "none"); answered <- status }()
	within(t, h.hold) // it is being answered
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(h.screen.text(), "stopping: 1 answer(s) are still being sent") && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	if !strings.Contains(h.screen.text(), "stopping: 1 answer(s) are still being sent, for 1m0s at most; interrupt again") {
		t.Error(h.screen.text())
	}
	within(t, h.hold)
	if status := within(t, answered); status != http.StatusOK {
		t.Errorf("the answer is %d", status)
	}
	if err := within(t, ended); err != nil {
		t.Error(err)
	}
}

// TestWhereToSend: who has to fill the wallet is told which token and which chain: what is sent on another one is lost. A phone reads it from a
// QR code, and the wallet of a browser is asked by a page of this machine, which answers under no name that somebody else's page has led here.
func TestWhereToSend(t *testing.T) {
	t.Parallel()
	anvil := chaintest.Anvil(t)
	list := filepath.Join(t.TempDir(), "providers.json")
	if err := os.WriteFile(list, []byte(`[{"url":"http://127.0.0.1:1","model":"m"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	h := &house{T: t, chain: &devchain.Chain{URL: anvil.URL, Token: anvil.Token}, dir: filepath.Join(t.TempDir(), "proxy"), list: list}
	_, admin, stop := h.serve(h.proxying())
	for end := time.Now().Add(time.Minute); !strings.Contains(h.screen.text(), "OPENAI_BASE_URL") && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	page := func(path, host string) (int, string) {
		r, _ := http.NewRequest(http.MethodGet, "http://"+admin+path, nil)
		r.Host = host
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(text)
	}
	for path, want := range map[string]string{"/wallet/": anvil.Token.Hex(), "/wallet/page.js": "eip6963", "/wallet/state": `"balance":"0.00"`} {
		status, text := page(path, admin)
		if found := proxying.Hidden.FindAllString(text, -1); status != http.StatusOK || !strings.Contains(text, want) || len(found) > 0 {
			t.Errorf("%s: %d, %q is said: %s", path, status, found, text)
		}
		if status, _ := page(path, "rebound.example.org"); status != http.StatusForbidden {
			t.Errorf("%s under another name: %d", path, status)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if said := h.screen.text(); !strings.Contains(said, "the token "+anvil.Token.Hex()+" on chain 31337") || !strings.Contains(said, "http://"+admin+"/wallet/") || !strings.Contains(said, "▀") {
		t.Errorf("it says %s", said)
	}
}
