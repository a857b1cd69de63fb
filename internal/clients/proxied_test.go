package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/internal/proxying"
	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// town is a local proxy before three sidecars, one slot each, on one chain.
type town struct {
	*testing.T
	chain    *devchain.Chain
	engines  [3]*engine
	servers  [3]*sidecar.Server
	sites    [3]*httptest.Server
	proxying proxying.Proxying
}

// perSecond is what a slot costs there, in base units.
const perSecond = 1000

const daily = 20_000_000 // base units: 20 dollars

func newTown(t *testing.T) *town {
	t.Helper()
	w := new(town)
	var upstreams [3]string
	for i := range upstreams {
		w.engines[i] = new(engine)
		upstreams[i] = w.engines[i].serve(t)
	}
	w.open(t, upstreams, false, "test", "slow", "quiet", "cut", "busy", "broken")
	return w
}

// open rents out three inference servers, each of some models, which may go on with what another one began.
func (w *town) open(t *testing.T, upstreams [3]string, prefill bool, models ...string) {
	t.Helper()
	w.T = t
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(stop)
	var err error
	w.chain, err = devchain.Start(ctx, devchain.Options{BlockTime: 100 * time.Millisecond, Keys: len(w.servers)})
	must(t, err)
	t.Cleanup(func() { _ = w.chain.Close() })
	var list []map[string]any
	for i, upstream := range upstreams {
		w.sites[i], w.servers[i] = sell(ctx, t, stop, w.chain, i, 1, upstream, w.engines[i] != nil)
		for _, model := range models {
			list = append(list, map[string]any{"url": w.sites[i].URL, "model": model, "prefill": prefill})
		}
	}
	private, err := crypto.GenerateKey()
	must(t, err)
	must(t, w.chain.Fund(ctx, crypto.PubkeyToAddress(private.PublicKey), big.NewInt(0), *uint256.NewInt(100_000_000)))
	providers := filepath.Join(t.TempDir(), "providers.json")
	text, err := json.Marshal(list)
	must(t, err)
	must(t, os.WriteFile(providers, text, 0o600))
	w.proxying = proxying.Proxying{
		Dir: filepath.Join(t.TempDir(), "proxy"), Key: channel.NewKey(private), Budget: "20/day", Providers: providers, Out: io.Discard,
		Client: renter.Config{RPC: w.chain.URL, Token: w.chain.Token, Caps: wallet.Caps{PricePerGPUHour: "5"}, Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour}},
	}
}

// serve runs the proxy, and returns where it answers callers and its owner.
func (w *town) serve() (url, admin string, stop func()) {
	w.Helper()
	var at [2]net.Listener
	for i := range at {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(w.T, err)
		at[i] = l
	}
	ctx, cancel := context.WithCancel(w.Context())
	ran := make(chan error, 1)
	p := w.proxying
	go func() { ran <- p.Run(ctx, at[0], at[1]) }()
	return "http://" + at[0].Addr().String(), "http://" + at[1].Addr().String(), func() { cancel(); must(w.T, <-ran) }
}

// key makes a local key.
func (w *town) key(name, budget string) string {
	w.Helper()
	keys, err := proxying.Keys(w.proxying.Dir)
	must(w.T, err)
	var secret bytes.Buffer
	must(w.T, proxying.AddKey(&secret, io.Discard, keys, name, budget, nil))
	return strings.TrimSpace(secret.String())
}

// idle waits until nothing runs at any provider.
func (w *town) idle() {
	w.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var n int64
		for _, e := range w.engines {
			if e != nil {
				n += e.running.Load()
			}
		}
		if n == 0 {
			return
		}
		if time.Now().After(end) {
			w.Fatalf("%d requests run on after their clients have left", n)
		}
	}
}

// status is what the proxy says to its owner.
func (w *town) status(admin string) (s proxy.Status) {
	w.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) { // it listens before it has opened what pays
		res, err := http.Get(admin + "/healthz")
		if err == nil {
			err = json.NewDecoder(res.Body).Decode(&s)
			_ = res.Body.Close()
		}
		if err == nil || time.Now().After(end) {
			must(w.T, err)
			return s
		}
	}
}

// billed is what the providers' own records bill on the payer's channels, and how many channels there are. Of each, what the chain moved is
// what its records come to in whole base units.
func (w *town) billed() (all route.Nano, channels int) {
	w.Helper()
	c := w.proxying.Client
	c.Key, c.Database, c.Log = w.proxying.Key, filepath.Join(w.proxying.Dir, "payments.db"), slog.New(slog.DiscardHandler)
	c.Caps = wallet.Caps{PricePerGPUHour: "5", PerLease: wallet.Unlimited, PerDay: wallet.Unlimited, PerPayee: wallet.Unlimited}
	payer, err := renter.New(w.Context(), c)
	must(w.T, err)
	defer payer.Close()
	rentals, err := payer.History(w.Context())
	must(w.T, err)
	for _, r := range rentals {
		if r.Closed == nil {
			w.Errorf("channel %s is %s, and not closed", r.Channel, r.Phase)
			continue
		}
		var nanos uint64
		for i, site := range w.sites {
			if site.URL != r.URL {
				continue
			}
			bundle, err := w.servers[i].Export(w.Context(), r.Channel)
			must(w.T, err)
			for _, l := range bundle.Leases {
				if n := len(l.Records); n > 0 {
					nanos += l.Records[n-1].Nanos // which is of the whole lease
				}
			}
		}
		exact := route.Price{PerSlotSecond: route.Base(perSecond)}.Pay(time.Duration(nanos), 0, 0)
		all = all.Add(exact)
		if paid := r.Closed.Settled.Uint64(); paid != nanos*perSecond/uint64(time.Second) {
			w.Errorf("channel %s paid %d base units, and its records bill %s", r.Channel, paid, exact)
		}
	}
	return all, len(rentals)
}

// sdkNode is the oldest Node.js on which the AI SDK was seen to run; it asks for 22.
const sdkNode = 20

// nodeVersion is the installed Node.js's.
func nodeVersion(t *testing.T) (major int) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "node", "--version").Output()
	must(t, err)
	_, err = fmt.Sscanf(string(out), "v%d.", &major)
	must(t, err)
	return major
}

// node runs a script of this directory against the proxy, with what else it finds in the environment, and returns what it printed.
func (w *town) node(script, url, key string, env ...string) []byte {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), "node", script)
	cmd.Env = append(os.Environ(), "OPENAI_BASE_URL="+url+"/v1", "OPENAI_API_KEY="+key, fmt.Sprintf("PROVIDERS=%s,%s,%s", w.sites[0].URL, w.sites[1].URL, w.sites[2].URL))
	cmd.Env = append(cmd.Env, env...)
	var out, failed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failed
	if err := cmd.Run(); err != nil {
		w.Fatalf("%s: %v\n%s%s", script, err, &out, &failed)
	}
	return out.Bytes()
}

// end stops the proxy, gets back what providers hold, and holds what the budget says was spent to what the providers' own records bill. It
// returns that, and what of it a key spent.
func (w *town) end(admin string, stop func(), key string) (spent, own route.Nano) {
	w.Helper()
	w.idle()
	if s := w.status(admin); s.Running != 0 {
		w.Errorf("%d requests run on", s.Running)
	}
	stop()
	closing, cancel := context.WithTimeout(w.Context(), 3*time.Minute)
	defer cancel()
	back := w.proxying
	must(w.T, back.Return(closing))
	books, err := budget.Open(w.Context(), filepath.Join(w.proxying.Dir, "budget.db"))
	must(w.T, err)
	spent, err = books.Counted(w.Context(), time.Now(), "")
	must(w.T, err)
	own, err = books.Counted(w.Context(), time.Now(), key)
	must(w.T, err)
	must(w.T, books.Close())
	bills, channels := w.billed()
	if w.Logf("%s base units on %d channels", spent, channels); spent.Cmp(bills) != 0 || spent.IsZero() || channels < len(w.servers) {
		w.Errorf("%s base units count, and the providers' records of %d channels bill %s", spent, channels, bills)
	}
	_, admin, stop = w.serve()
	defer stop()
	if s, want := w.status(admin), fmt.Sprintf("%.6f", float64(daily-uint64(spent.BaseUnits()))/1e6); strings.TrimRight(s.Left, "0") != strings.TrimRight(want, "0") {
		w.Errorf("$%s are left of 20 after %s base units, and not $%s", s.Left, spent, want)
	}
	return spent, own
}

// TestOpenAIThroughTheProxy: npm's openai, unmodified, is served by three real sidecars through the local proxy as its program assembles it.
// Who leaves an answer pays until then, and its slot is free; what fails costs nothing; and what the budget says was spent is what the providers'
// own records bill, to the base unit and less.
func TestOpenAIThroughTheProxy(t *testing.T) {
	if os.Getenv("GPUPAY_NO_NODE") == "1" {
		t.Skip("GPUPAY_NO_NODE=1")
	}
	t.Parallel()
	w := newTown(t)
	url, admin, stop := w.serve()
	w.status(admin)
	all, leaver := w.key("all", ""), w.key("leaver", "5/day")
	var left struct{ Sent, Streamed float64 } // milliseconds of the answer that was left
	must(t, json.Unmarshal(w.node("proxied.mjs", url, all, "LEAVER="+leaver), &left))
	w.page(url, all)
	_, until := w.end(admin, stop, "leaver")
	if took := until.BaseUnits() / perSecond * 1000; took > left.Sent+500 || took < left.Streamed-500 {
		t.Errorf("%.0f ms are billed of an answer that was left after %.0f ms, of which it was streamed for %.0f", took, left.Sent, left.Streamed)
	}
}

// TestAISDKThroughTheProxy: npm's AI SDK, unmodified, is served as npm's openai is: chats, streams, tools, embeddings and answers that are left, and
// what it spent is what the providers' own records bill.
func TestAISDKThroughTheProxy(t *testing.T) {
	if os.Getenv("GPUPAY_NO_NODE") == "1" || nodeVersion(t) < sdkNode {
		t.Skipf("GPUPAY_NO_NODE=1, or Node.js is older than %d", sdkNode)
	}
	t.Parallel()
	w := newTown(t)
	url, admin, stop := w.serve()
	w.status(admin)
	w.node("aisdk.mjs", url, w.key("all", ""))
	w.end(admin, stop, "all")
}
