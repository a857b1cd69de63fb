package interop

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/browser"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/sidecar"
)

// patience is how long a test waits for what must happen: far longer than it takes, so that it fails for what did not
// happen and never for what was slow.
const patience = 2 * time.Minute

// What a request is asked for on the rig, in base units: 1000 a second and GPU, for a window and the slack, and one more.
const (
	payWindow  = 400 * time.Millisecond
	paySlack   = 350 * time.Millisecond
	payCeiling = 751
	payGap     = 351 // what a lease may use between two requests, unknown to its client; the last of it only by a late reading
)

// stock is a process with stock clients of x402 in it.
type stock struct {
	mu      sync.Mutex
	in      io.Writer
	last    int // command
	named   int // clients
	answers map[int]chan json.RawMessage
}

func newStock(t *testing.T) *stock {
	t.Helper()
	cmd := exec.Command("node", "x402pay.mjs")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &stock{in: in, answers: make(map[int]chan json.RawMessage)}
	read := make(chan error, 1)
	go func() { read <- s.read(out) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has nothing to lose, and connections that are kept alive would keep it
		if err := <-read; err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		if stderr.Len() > 0 {
			t.Errorf("node x402pay.mjs: %s", stderr.String())
		}
	})
	return s
}

// inBrowser is newStock in a page of headless Chromium: a script of another origin than what it pays for.
func inBrowser(t *testing.T) *stock {
	t.Helper()
	browser.Need(t)
	bundle := filepath.Join(t.TempDir(), "x402pay.js")
	if out, err := exec.Command("../../node_modules/.bin/esbuild", "x402pay.mjs", "--bundle", "--format=esm", "--external:node:readline", "--outfile="+bundle).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, in := io.Pipe()
	s := &stock{in: in, answers: make(map[int]chan json.RawMessage)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, "x402page.html") })
	mux.HandleFunc("GET /x402pay.js", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, bundle) })
	mux.HandleFunc("GET /commands", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for lines := bufio.NewScanner(out); lines.Scan(); {
			_, _ = fmt.Fprintf(w, "data: %s\n\n", lines.Text())
			_ = http.NewResponseController(w).Flush()
		}
	})
	mux.HandleFunc("POST /answers", func(_ http.ResponseWriter, r *http.Request) {
		if err := s.read(r.Body); err != nil {
			t.Error(err)
		}
	})
	page := httptest.NewServer(mux)
	t.Cleanup(func() { _ = in.Close(); page.CloseClientConnections(); page.Close() })
	browser.Open(t, page.URL)
	return s
}

// read takes answers, and returns when there are no more.
func (s *stock) read(out io.Reader) error {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return nil // it ended
		}
		var of struct {
			ID int `json:"id"`
		}
		if err := json.Unmarshal(line, &of); err != nil {
			return err
		}
		s.mu.Lock()
		answers := s.answers[of.ID]
		s.mu.Unlock()
		answers <- line
	}
}

// tell sends a command, whose answers come one by one.
func (s *stock) tell(t *testing.T, op string, command map[string]any) <-chan json.RawMessage {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	answers := make(chan json.RawMessage, 1<<12) // more than any test reads: the reader serves all
	s.answers[s.last] = answers
	command["id"], command["op"] = s.last, op
	line, err := json.Marshal(command)
	if err == nil {
		_, err = s.in.Write(append(line, '\n'))
	}
	if err != nil {
		t.Fatal(err)
	}
	return answers
}

// did is what a stock client did, and what it believes afterwards.
type did struct {
	Broken   string   `json:"broken"` // the script's own fault
	Error    string   `json:"error"`  // what the caller was thrown
	Status   int      `json:"status"`
	Body     string   `json:"body"`
	More     bool     `json:"more"`   // the answer goes on
	Signed   int      `json:"signed"` // by this client since it was made
	Settled  *settled `json:"settled"`
	Channel  *kept    `json:"channel"`
	Requests []struct {
		Status  int    `json:"status"`
		Payment string `json:"payment"`
		Reason  string `json:"reason"`
	} `json:"requests"`
}

// String leaves out what fills pages.
func (d did) String() string {
	text := fmt.Sprintf("%d %q %.300q, %d signatures", d.Status, d.Error, d.Body, d.Signed)
	if d.Settled != nil {
		text += fmt.Sprintf(", receipt %+v", *d.Settled)
	}
	if d.Channel != nil {
		text += fmt.Sprintf(", keeps %+v", *d.Channel)
	}
	for _, r := range d.Requests {
		text += fmt.Sprintf(", %d %s", r.Status, r.Reason)
	}
	return text
}

// settled is PAYMENT-RESPONSE as the client decodes it.
type settled struct {
	Success     bool   `json:"success"`
	Transaction string `json:"transaction"`
	Payer       string `json:"payer"`
	Amount      string `json:"amount"`
	Extra       struct {
		ChargedAmount string `json:"chargedAmount"`
		ChannelState  struct {
			ChannelID               string `json:"channelId"`
			Balance                 string `json:"balance"`
			TotalClaimed            string `json:"totalClaimed"`
			RefundNonce             string `json:"refundNonce"`
			ChargedCumulativeAmount string `json:"chargedCumulativeAmount"`
		} `json:"channelState"`
	} `json:"extra"`
}

// kept is a channel in a client's storage.
type kept struct {
	ID      common.Hash `json:"id"`
	Charged string      `json:"chargedCumulativeAmount"`
	Balance string      `json:"balance"`
}

// number is an amount of base units as it goes over the wire.
func number(t *testing.T, text string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%q is no amount", text)
	}
	return n
}

// corrections counts the answers that told the client another base.
func (d did) corrections() (n int) {
	for _, r := range d.Requests {
		if r.Reason == "invalid_batch_settlement_evm_cumulative_amount_mismatch" {
			n++
		}
	}
	return n
}

func receive(t *testing.T, answers <-chan json.RawMessage) did {
	t.Helper()
	select {
	case text := <-answers:
		var d did
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatal(err)
		}
		if d.Broken != "" {
			t.Fatal(d.Broken)
		}
		return d
	case <-time.After(patience):
		t.Fatal("the stock client says nothing")
		return did{}
	}
}

// counter is a provider that takes x402, with simulated GPUs, on a chain of its own with x402's contracts on it.
type counter struct {
	*testing.T
	chain    *chaintest.Chain
	contract *chain.BatchSettlement
	stock    *stock
	config   provider.Config
	provider *provider.Server
	server   *httptest.Server
	routes   func(*provider.Server) http.Handler // what is served; the provider itself if nil
	serves   atomic.Value                        // served: now
	sidecar  string                              // the inference server that the provider is before; none if empty
	shuts    func() error
	stop     context.CancelFunc
	ran      chan error
	minted   uint64
	payers   []*ecdsa.PrivateKey
}

func newCounter(t *testing.T, s *stock, gpus int, change ...func(*counter)) *counter {
	t.Helper()
	t.Parallel()
	net := chaintest.Anvil(t)
	net.PlaceBatchSettlement(t)
	c := &counter{T: t, chain: net, stock: s}
	c.config = provider.Config{
		RPC: net.URL, Escrow: net.Escrow, Token: net.Token, Key: channel.NewKey(net.Keys[0]), X402: &provider.X402{Window: payWindow, Slack: paySlack},
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "3.60", Source: testclock.GPUs(gpus), Metering: provider.Metering{Clock: testclock.Process(),
			Tick: 20 * time.Millisecond, MaxGap: 250 * time.Millisecond, RecordEvery: 100 * time.Millisecond}, Deposits: provider.Deposits{Min: "0.01", Timeout: time.Minute},
		Chain:      provider.Chain{ClockTolerance: 24 * time.Hour, Poll: 50 * time.Millisecond},
		Settlement: settle.Policy{Interval: time.Hour},
		Limits:     provider.Limits{SponsoredGas: big.NewInt(1e18), SponsoredGasPerPayer: big.NewInt(1e18)}, // one payer opens hundreds
		Log:        slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(c)
	}
	var err error
	if c.contract, err = chain.NewBatchSettlement(t.Context(), net.Backend); err != nil {
		t.Fatal(err)
	}
	c.begin()
	t.Cleanup(c.shut)
	return c
}

func (c *counter) begin() {
	c.Helper()
	p, run, err := c.open()
	if err != nil {
		c.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	c.provider, c.stop, c.ran = p, stop, make(chan error, 1)
	go func() { c.ran <- run(ctx) }()
	if c.routes != nil {
		c.serves.Store(served{c.routes(p)})
	}
	if c.server == nil {
		c.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.serves.Load().(served).ServeHTTP(w, r) }))
	}
}

// open starts what the counter serves.
func (c *counter) open() (*provider.Server, func(context.Context) error, error) {
	if c.sidecar != "" {
		s, err := sidecar.New(c.Context(), sidecar.Config{Provider: c.config, Upstream: c.sidecar})
		if err != nil {
			return nil, nil, err
		}
		c.serves.Store(served{s})
		c.shuts = s.Close
		return s.Server, s.Run, nil
	}
	p, err := provider.New(c.Context(), c.config)
	if err != nil {
		return nil, nil, err
	}
	c.serves.Store(served{p})
	c.shuts = p.Close
	return p, p.Run, nil
}

type served struct{ http.Handler }

// halt ends the provider; its address stays.
func (c *counter) halt() {
	if c.stop == nil {
		return
	}
	c.stop()
	if err := <-c.ran; err != nil {
		c.Errorf("Run: %v", err)
	}
	if err := c.shuts(); err != nil {
		c.Errorf("Close: %v", err)
	}
	c.stop = nil
}

func (c *counter) shut() {
	c.halt()
	c.server.CloseClientConnections()
	c.server.Close()
}

// payer is an account with tokens and no native coin.
func (c *counter) payer() *ecdsa.PrivateKey {
	c.Helper()
	key, err := crypto.GenerateKey()
	if err != nil {
		c.Fatal(err)
	}
	c.chain.Mint(c, crypto.PubkeyToAddress(key.PublicKey), purse)
	c.minted += purse
	c.payers = append(c.payers, key)
	return key
}
