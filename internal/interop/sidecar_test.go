package interop

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// engine is an inference server that answers for as long as it is asked to, and breaks off where it is asked for that.
func engine(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/models" {
			_, _ = io.WriteString(w, `{"data":[{"id":"test"}]}`)
			return
		}
		var a struct {
			Millis int
			Stream bool
			Fail   bool
		}
		_ = json.NewDecoder(r.Body).Decode(&a)
		if a.Stream {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, `data: {"choices":[{"delta":{"content":"x"}}]}`+"\n\n")
			_ = http.NewResponseController(w).Flush()
		}
		time.Sleep(time.Duration(a.Millis) * time.Millisecond)
		switch {
		case a.Fail && a.Stream:
			panic(http.ErrAbortHandler)
		case a.Fail:
			http.Error(w, "out of memory", http.StatusInternalServerError)
		case a.Stream:
			_, _ = io.WriteString(w, `data: {"choices":[{"delta":{},"finish_reason":"stop"}]}`+"\n\ndata: [DONE]\n\n")
		default:
			_, _ = io.WriteString(w, `{"choices":[]}`)
		}
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return server.URL
}

// sidecarCounter is a counter whose provider is a sidecar's, of three slots on one GPU.
func sidecarCounter(t *testing.T, s *stock) *counter {
	return newCounter(t, s, 1, func(c *counter) {
		c.config.Share, c.config.Source = provider.Share{Slots: 3, MaxTime: 10 * time.Second}, sim.New(1, sim.Options{})
		c.config.Metering.Clock, c.config.Metering.Tick, c.config.Metering.MaxGap = nil, 50*time.Millisecond, 2*time.Second
		c.config.Terms.Credit = 20 * time.Second
		c.sidecar = engine(t)
	})
}

// leases has a renter pay for requests of so many milliseconds on a lease, and returns what it paid and how long they took.
func (c *counter) leases(key *ecdsa.PrivateKey, millis ...int) (paid uint64, took time.Duration) {
	client, err := renter.New(c.Context(), renter.Config{
		RPC: c.chain.URL, Token: c.chain.Token, Key: channel.NewKey(key), Database: filepath.Join(c.TempDir(), "renter.db"), Log: slog.New(slog.DiscardHandler),
		Caps:  wallet.Caps{PricePerGPUHour: "4.00", PerLease: "10", PerDay: "20", PerPayee: wallet.Unlimited},
		Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour},
	})
	if err != nil {
		c.Error(err)
		return 0, 0
	}
	defer client.Close()
	rental, err := client.Rent(c.Context(), c.server.URL, renter.Options{Share: true, Deposit: "0.05", Gasless: true, PayEvery: 200 * time.Millisecond})
	if err != nil {
		c.Error(err)
		return 0, 0
	}
	go func() { _ = rental.Run(c.Context()) }()
	web := &http.Client{Transport: rental.Transport(nil)}
	for _, n := range millis {
		began := time.Now()
		res, err := web.Post(c.server.URL+"/v1/chat/completions", "application/json", strings.NewReader(fmt.Sprintf(`{"millis":%d}`, n)))
		if err != nil {
			c.Error(err)
			return 0, 0
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		took += time.Since(began)
	}
	closing, err := rental.Close(c.Context())
	if err != nil || closing.Settled != closing.Owed {
		c.Errorf("closed with %+v: %v", closing, err)
	}
	return closing.Settled.Uint64(), took
}

// TestStockX402SharesAGPU: two renters and a stock x402 client, in Node.js or in a browser's page, share one GPU by slots. Each bill is within its client's own clock, all of
// them within the GPU's, a request that fails costs nothing, whether it was streamed or not, and what is claimed on the chain is what
// was billed, to the base unit.
func TestStockX402SharesAGPU(t *testing.T) {
	t.Run("Node.js", func(t *testing.T) { shareAGPU(t, newStock(t)) })
	t.Run("Chromium", func(t *testing.T) { shareAGPU(t, inBrowser(t)) })
}

func shareAGPU(t *testing.T, s *stock) {
	c := sidecarCounter(t, s)
	all := time.Now()
	var wait sync.WaitGroup
	var paid, most [2]uint64
	for i := range paid {
		key := c.payer()
		wait.Add(1)
		go func() {
			defer wait.Done()
			var took time.Duration
			paid[i], took = c.leases(key, 400, 700)
			most[i] = uint64(took.Milliseconds())/3 + 1
		}()
	}
	key := c.payer()
	receive(t, c.stock.tell(t, "client", map[string]any{"name": "shared", "rpc": c.chain.URL, "key": hexutil.Encode(crypto.FromECDSA(key)), "spend": false}))
	ask := func(body string) <-chan json.RawMessage {
		return c.stock.tell(t, "pay", map[string]any{"name": "shared", "url": c.server.URL + "/v1/chat/completions", "method": "POST", "body": body})
	}
	for _, body := range []string{`{"millis":600}`, `{"millis":300,"fail":true}`, `{"millis":400,"stream":true}`, `{"millis":300,"stream":true,"fail":true}`, `{"millis":200}`} {
		fails, stream := strings.Contains(body, "fail"), strings.Contains(body, "stream")
		if fails && stream {
			if text := string(<-ask(body)); !strings.Contains(text, `"broken":"TypeError: `) { // fetch's own, in whichever words
				t.Errorf("%s: a stream that broke off looks whole: %s", body, text)
			}
			continue
		}
		began := time.Now()
		d := receive(t, ask(body))
		took := time.Since(began)
		switch {
		case fails && (d.Status != http.StatusInternalServerError || number(t, d.Settled.Extra.ChargedAmount) != 0):
			t.Errorf("%s: %s", body, d)
		case !fails && d.Status != http.StatusOK:
			t.Fatalf("%s: %s", body, d)
		}
		if charged := number(t, d.Settled.Extra.ChargedAmount); !stream && charged > uint64(took.Milliseconds())/3+1 {
			t.Errorf("%s: %d are charged for %s", body, charged, took)
		}
	}
	d := receive(t, c.stock.tell(t, "refund", map[string]any{"name": "shared", "url": c.server.URL + "/v1/models"}))
	if d.Error != "" || d.Settled == nil || !d.Settled.Success {
		t.Fatalf("refund: %s", d)
	}
	wait.Wait()
	id := common.HexToHash(d.Settled.Extra.ChannelState.ChannelID)
	bundle, err := c.provider.Export(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.Failures(audit.Verify(context.Background(), bundle, c.chain.Backend)); err != nil {
		t.Error(err)
	}
	var nanos uint64
	for _, l := range bundle.Leases {
		for _, rec := range l.Records {
			nanos += rec.Nanos
		}
	}
	on, err := c.contract.State(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	owed := on.View.Settled.Uint64()
	if owed != nanos/1e6 { // what each lease leaves of a base unit is carried to the next
		t.Errorf("%d are claimed for %d ns in slots", owed, nanos)
	}
	if owed < (600+400+200)/3 {
		t.Errorf("%d are billed for 1200 ms in slots", owed)
	}
	sum := owed
	for i := range paid {
		if sum += paid[i]; paid[i] == 0 || paid[i] > most[i] {
			t.Errorf("renter %d paid %d of %d", i, paid[i], most[i])
		}
	}
	if ran := uint64(time.Since(all).Milliseconds()); sum > ran {
		t.Errorf("all paid %d for a GPU that costs %d", sum, ran)
	}
}
