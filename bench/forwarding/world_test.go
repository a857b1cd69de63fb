package forwarding

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

const (
	events = 100
	every  = 10 * time.Millisecond
	stream = `{"model":"m","stream":true,"messages":[]}`
	whole  = `{"model":"m","messages":[]}`
	answer = `{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}]}`
)

// engine streams 100 events over a second, or answers at once.
func engine(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if !strings.Contains(string(body), `"stream":true`) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answer)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	out, ticks := http.NewResponseController(w), time.NewTicker(every)
	defer ticks.Stop()
	for n := range events {
		reason := `null`
		if n == events-1 {
			reason = `"stop"`
		}
		if _, err := fmt.Fprintf(w, `data: {"choices":[{"index":0,"delta":{"content":"token"},"finish_reason":%s}]}`+"\n\n", reason); err != nil || out.Flush() != nil {
			return
		}
		<-ticks.C
	}
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

// way is one that requests take to the inference server.
type way struct {
	name   string
	client *http.Client
	idle   func() // closes the connections that client, and a proxy behind it, keep for the next request
	doors  []door // asked in turn
	asked  *atomic.Uint64
}

// door is where a way begins.
type door struct{ url, token string }

// opened is a way that is asked at some doors.
func opened(tb testing.TB, name string, idle func(), doors ...door) way {
	t := transport(tb)
	return way{name, &http.Client{Transport: t}, func() { t.CloseIdleConnections(); idle() }, doors, new(atomic.Uint64)}
}

func transport(tb testing.TB) *http.Transport {
	t := &http.Transport{MaxIdleConnsPerHost: 2000, DisableCompression: true}
	tb.Cleanup(t.CloseIdleConnections)
	return t
}

// ways are a ReverseProxy, and a sidecar whose renter need not pay while it is measured.
func ways(tb testing.TB) []way {
	tb.Helper()
	server := httptest.NewServer(http.HandlerFunc(engine))
	tb.Cleanup(server.Close)
	to, err := url.Parse(server.URL)
	if err != nil {
		tb.Fatal(err)
	}
	behind := transport(tb)
	plain := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, FlushInterval: -1, Transport: behind})
	tb.Cleanup(plain.Close)
	return []way{opened(tb, "ReverseProxy", behind.CloseIdleConnections, door{plain.URL, "none"}), opened(tb, "sidecar", func() {}, paid(tb, server.URL))}
}

// paid is a sidecar with the token of a lease with a credit of an hour.
func paid(tb testing.TB, upstream string) door {
	tb.Helper()
	local := chain(tb, 1)
	site := httptest.NewServer(sell(tb, local.at(tb, 0), upstream))
	tb.Cleanup(site.Close)
	return local.rent(tb, local.renter(tb), site.URL)
}

// market is a chain with whatever pays on it.
type market struct{ *devchain.Chain }

func chain(tb testing.TB, providers int) market {
	tb.Helper()
	local, err := devchain.Start(context.Background(), devchain.Options{BlockTime: 100 * time.Millisecond, Keys: providers})
	must(tb, err)
	tb.Cleanup(func() { _ = local.Close() })
	return market{local}
}

// stand is what a provider needs to know of a market.
type stand struct {
	RPC           string
	Escrow, Token common.Address
	Key           []byte
	Dir           string
}

func (m market) at(tb testing.TB, provider int) stand {
	return stand{m.URL, m.Escrow, m.Token, crypto.FromECDSA(m.Keys[provider]), tb.TempDir()}
}

// sell runs a sidecar until the test ends.
func sell(tb testing.TB, at stand, upstream string) http.Handler {
	tb.Helper()
	key, err := crypto.ToECDSA(at.Key)
	must(tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	server, err := sidecar.New(ctx, sidecar.Config{Upstream: upstream, Provider: provider.Config{
		RPC: at.RPC, Escrow: at.Escrow, Token: at.Token, Key: channel.NewKey(key), Database: filepath.Join(at.Dir, "provider.db"),
		PricePerGPUHour: "3.60", Share: provider.Share{Slots: 1024, RequestsPerSecond: 1_000_000}, Source: sim.New(1, sim.Options{}), Terms: provider.Terms{Credit: time.Hour},
		Deposits: provider.Deposits{Min: "1"}, Chain: provider.Chain{Poll: time.Second, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
	}})
	must(tb, err)
	ran := make(chan struct{})
	go func() { defer close(ran); _ = server.Run(ctx) }()
	tb.Cleanup(func() { cancel(); <-ran; _ = server.Close() })
	return server
}

// renter is one with a key of its own that has as much as it likes.
func (m market) renter(tb testing.TB) *renter.Client {
	tb.Helper()
	private, err := crypto.GenerateKey()
	must(tb, err)
	must(tb, m.Fund(context.Background(), crypto.PubkeyToAddress(private.PublicKey), big.NewInt(1e18), *uint256.NewInt(1_000_000_000_000)))
	client, err := renter.New(context.Background(), renter.Config{
		RPC: m.URL, Token: m.Token, Key: channel.NewKey(private), Database: filepath.Join(tb.TempDir(), "renter.db"),
		Caps:  wallet.Caps{PricePerGPUHour: "4.00", PerLease: wallet.Unlimited, PerDay: wallet.Unlimited, PerPayee: wallet.Unlimited},
		Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
	})
	must(tb, err)
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

func (m market) rent(tb testing.TB, client *renter.Client, site string) door {
	tb.Helper()
	rental, err := client.Rent(context.Background(), site, renter.Options{Share: true, Deposit: "100"})
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); { // its GPU is not read yet
		time.Sleep(50 * time.Millisecond)
		rental, err = client.Rent(context.Background(), site, renter.Options{Share: true, Deposit: "100"})
	}
	must(tb, err)
	var access wire.SharedAccess
	must(tb, json.Unmarshal(rental.Access(), &access))
	return door{site, access.Token}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// ask sends a request and reads its answer to the end. first is when its first byte was there.
func (w way) ask(body string) (first time.Duration, err error) {
	at := w.doors[w.asked.Add(1)%uint64(len(w.doors))]
	req, err := http.NewRequest(http.MethodPost, at.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+at.token)
	began := time.Now()
	res, err := w.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	var one [1]byte
	if _, err = io.ReadFull(res.Body, one[:]); err != nil {
		return 0, err
	}
	first = time.Since(began)
	rest, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.300s", res.Status, rest)
	}
	return first, err
}
