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
	"testing"
	"time"

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
	name, url, token string
	client           *http.Client
	idle             func() // closes the connections that client, and a proxy behind it, keep for the next request
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
	transport := func() *http.Transport {
		t := &http.Transport{MaxIdleConnsPerHost: 2000, DisableCompression: true}
		tb.Cleanup(t.CloseIdleConnections)
		return t
	}
	behind, toPlain, toPaid := transport(), transport(), transport()
	plain := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, FlushInterval: -1, Transport: behind})
	tb.Cleanup(plain.Close)
	site, token := paid(tb, server.URL)
	return []way{
		{"ReverseProxy", plain.URL, "none", &http.Client{Transport: toPlain}, func() { toPlain.CloseIdleConnections(); behind.CloseIdleConnections() }},
		{"sidecar", site, token, &http.Client{Transport: toPaid}, toPaid.CloseIdleConnections},
	}
}

// paid is a sidecar, and the token of a lease with a credit of an hour.
func paid(tb testing.TB, upstream string) (site, token string) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(cancel)
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	local, err := devchain.Start(ctx, devchain.Options{BlockTime: 100 * time.Millisecond})
	must(err)
	tb.Cleanup(func() { _ = local.Close() })
	server, err := sidecar.New(ctx, sidecar.Config{Upstream: upstream, Provider: provider.Config{
		RPC: local.URL, Escrow: local.Escrow, Token: local.Token, Key: channel.NewKey(local.Keys[0]), Database: filepath.Join(tb.TempDir(), "provider.db"),
		PricePerGPUHour: "3.60", Share: provider.Share{Slots: 1024, RequestsPerSecond: 1_000_000}, Source: sim.New(1, sim.Options{}), Terms: provider.Terms{Credit: time.Hour},
		Chain: provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
	}})
	must(err)
	ran := make(chan struct{})
	go func() { defer close(ran); _ = server.Run(ctx) }()
	tb.Cleanup(func() { cancel(); <-ran; _ = server.Close() })
	front := httptest.NewServer(server)
	tb.Cleanup(front.Close)
	private, err := crypto.GenerateKey()
	must(err)
	must(local.Fund(ctx, crypto.PubkeyToAddress(private.PublicKey), big.NewInt(1e18), *uint256.NewInt(1_000_000_000)))
	client, err := renter.New(ctx, renter.Config{
		RPC: local.URL, Token: local.Token, Key: channel.NewKey(private), Database: filepath.Join(tb.TempDir(), "renter.db"),
		Caps:  wallet.Caps{PricePerGPUHour: "4.00", PerLease: "200", PerDay: "200", PerPayee: "200"},
		Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: time.Hour}, Log: slog.New(slog.DiscardHandler),
	})
	must(err)
	tb.Cleanup(func() { _ = client.Close() })
	rental, err := client.Rent(ctx, front.URL, renter.Options{Share: true, Deposit: "100"})
	must(err)
	var access wire.SharedAccess
	must(json.Unmarshal(rental.Access(), &access))
	return front.URL, access.Token
}

// ask sends a request and reads its answer to the end. first is when its first byte was there.
func (w way) ask(body string) (first time.Duration, err error) {
	req, err := http.NewRequest(http.MethodPost, w.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+w.token)
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
