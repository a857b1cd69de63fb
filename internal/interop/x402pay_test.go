package interop

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
)

// TestStockX402: the official client of x402 pays our provider, and at the end of each story every token is where the
// receipts say.
func TestStockX402(t *testing.T) {
	needNode(t)
	t.Parallel()
	s := newStock(t)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *stock)
	}{
		{"two hundred channels at once", twoHundredChannels},
		{"one channel, many ticks at once", manyTicksAtOnce},
		{"deposit and vouchers", depositAndVouchers},
		{"lost state", lostState},
		{"fresh processes", freshProcesses},
		{"lost answer", lostAnswer},
		{"refund and reopen", refundAndReopen},
		{"stream", streamed},
		{"metered handler", meteredHandler},
		{"metered stream", meteredStream},
		{"withdrawal", withdrawal},
		{"spend controls", spendControls},
		{"restart", restart},
		{"late readings", lateReadings},
		{"stranger with a voucher", strangerWithVoucher},
	} {
		t.Run(story.name, func(t *testing.T) { story.tell(t, s) })
	}
}

// depositAndVouchers: one deposit pays for many ticks, each charged what was metered.
func depositAndVouchers(t *testing.T, s *stock) {
	c := newCounter(t, s, 1)
	b := c.shopper(c.payer(), nil)
	first := b.tick()
	if deposit := number(t, first.Settled.Amount); deposit == 0 || b.holds() != deposit {
		t.Fatalf("deposited %d, the contract holds %d", deposit, b.holds())
	}
	for range 11 {
		next := b.tick()
		if next.Settled.Transaction != "" {
			t.Errorf("a second deposit: %+v", next.did)
		}
		if next.charged == 0 || next.charged >= payCeiling {
			t.Errorf("a tick of %s cost %d", payWindow, next.charged)
		}
		if owed := next.body.Record.Owed.Uint64(); owed < b.spent+b.gaps || owed > b.spent+b.gaps && next.charged < payCeiling-1 {
			t.Errorf("the record is %+v, the client was charged %d and %d", next.body.Record, b.spent, b.gaps)
		}
	}
	c.audit(b)
}

// twoHundredChannels: one payer's two hundred channels are opened and used at the same time.
func twoHundredChannels(t *testing.T, s *stock) {
	const channels = 200
	c := newCounter(t, s, channels, func(c *counter) {
		c.config.Deposits.Min, c.config.Metering.Tick = "0.004", 50*time.Millisecond
	})
	payer := c.payer()
	all, answers := make([]*shopper, channels), make([]<-chan json.RawMessage, channels)
	for i := range all {
		all[i] = c.shopper(payer, map[string]any{"salt": fmt.Sprintf("0x%064x", i+1)})
	}
	for i, b := range all {
		answers[i] = b.asks(nil)
	}
	leases := make(map[common.Hash]bool)
	for i, b := range all {
		d, tries := receive(t, answers[i]), 0
		for ; d.Status == http.StatusServiceUnavailable && tries < 5; tries++ { // it took too long for so many; its deposit came later
			d = b.asked(nil)
		}
		leases[b.took(d).body.LeaseID] = true
		if b.holds() != 4000 && tries == 0 {
			t.Errorf("channel %d holds %d", i, b.holds())
		}
	}
	if len(leases) != channels {
		t.Errorf("%d channels have %d leases", channels, len(leases))
	}
	c.audit(all...)
}

// manyTicksAtOnce: a client that knows of no order sends many requests for one channel at once, and each is served.
func manyTicksAtOnce(t *testing.T, s *stock) {
	c := newCounter(t, s, 1)
	b := c.shopper(c.payer(), nil)
	const requests = 20
	answers := b.asks(map[string]any{"times": requests})
	corrections := 0
	for range requests {
		d := b.insisted(receive(t, answers), nil)
		b.paid(d)
		corrections += d.corrections()
	}
	if b.holds() != 10_000 {
		t.Errorf("%d requests deposited %d", requests, b.holds())
	}
	b.gaps = uint64(corrections) * payCeiling // at most; which answer told of which gap cannot be said
	b.credit = b.gaps
	b.refunds("")
	c.audit(b)
}

// lostState: a client that forgot everything is told where it stands, and proves to itself that it is so.
func lostState(t *testing.T, s *stock) {
	c := newCounter(t, s, 1)
	b := c.shopper(c.payer(), nil)
	first := b.tick()
	b = b.forgetful() // the voucher of its next request is the one that was answered
	if d := b.tick(); d.corrections() == 0 || d.Body == first.Body {
		t.Errorf("without state, soon after: %+v", d.did)
	}
	for range 5 {
		b.tick()
	}
	again := b.forgetful()
	if d := again.tick(); d.corrections() == 0 || d.Settled.Transaction != "" {
		t.Errorf("without state: %+v", d.did)
	}
	if err := c.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	claimed := c.on(again.id).View.Settled
	last := again.forgetful()
	last.gaps = max(last.gaps, claimed.Uint64()-last.spent) // it reads that on the chain
	last.tick()
	last.tick()
	blind := c.shopper(b.key, map[string]any{"rpc": nil}) // it cannot read the chain, so it believes nobody
	if d := blind.asked(nil); d.Status != http.StatusPaymentRequired || d.corrections() != 1 {
		t.Errorf("a client that knows nothing and reads nothing: %+v", d)
	}
	if last.holds() != 10_000 {
		t.Errorf("the channel holds %d: a deposit was taken though its voucher was not", last.holds())
	}
	last.refunds("")
	c.audit(last)
}

// freshProcesses: a client that is a new process for each call, as scripts and functions are, keeps nothing. Each call is
// served, on a GPU that runs, and each runs a handler of its own.
func freshProcesses(t *testing.T, _ *stock) {
	var runs atomic.Int64
	c := newCounter(t, newStock(t), 2, func(c *counter) {
		c.routes = func(p *provider.Server) http.Handler {
			infer, err := p.Metered(provider.Route{Devices: []string{sim.UUID(1)}, MaxTime: time.Second}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				testclock.Sleep(50 * time.Millisecond)
				fmt.Fprint(w, runs.Add(1))
			}))
			if err != nil {
				t.Fatal(err)
			}
			mux := http.NewServeMux()
			mux.Handle("/infer", infer)
			mux.Handle("/", p)
			return mux
		}
	})
	key, other := c.payer(), c.payer()
	for n := range 3 {
		c.stock = newStock(t)
		b := c.shopper(key, nil)
		d := b.insisted(b.asked(nil), nil)
		var tick struct {
			State  string
			Access json.RawMessage
		}
		if err := json.Unmarshal([]byte(d.Body), &tick); err != nil || d.Status != http.StatusOK || tick.State == "ended" || string(tick.Access) == "null" || min(d.corrections(), 1) != min(n, 1) {
			t.Errorf("process %d got %+v %v", n+1, d, err)
		}
		d = c.shopper(other, nil).asked(map[string]any{"url": c.server.URL + "/infer"})
		if d.Status != http.StatusOK || d.Body != strconv.Itoa(n+1) || number(t, d.Settled.Extra.ChargedAmount) < 50 {
			t.Errorf("process %d got %+v", n+1, d)
		}
	}
}

// breaker is a proxy that can break the connection of a paid request.
type breaker struct {
	*httptest.Server
	early, late atomic.Int32 // how many of the next ones to break: on their way, or with the answer there
	broken      chan struct{}
}

func newBreaker(c *counter) *breaker {
	target, err := url.Parse(c.server.URL)
	if err != nil {
		c.Fatal(err)
	}
	b := &breaker{broken: make(chan struct{}, 10)}
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.FlushInterval = -1
	forward.ModifyResponse = func(resp *http.Response) error {
		if resp.Request.Header.Get("PAYMENT-SIGNATURE") != "" && b.late.Add(-1) >= 0 {
			b.broken <- struct{}{}
			panic(http.ErrAbortHandler)
		}
		return nil
	}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("PAYMENT-SIGNATURE") != "" && b.early.Add(-1) >= 0 {
			ctx, cancel := context.WithCancel(r.Context())
			time.AfterFunc(payWindow/2, cancel) // the provider has it by now, or not: either is fine
			r = r.WithContext(ctx)
		}
		forward.ServeHTTP(w, r)
	}))
	forward.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {
		b.broken <- struct{}{}
		panic(http.ErrAbortHandler)
	}
	c.Cleanup(b.Close)
	return b
}

// lostAnswer: a client whose connection broke asks again and gets what it has paid for, once.
func lostAnswer(t *testing.T, s *stock) {
	c := newCounter(t, s, 1)
	proxy := newBreaker(c)
	b := c.shopper(c.payer(), nil)
	through := map[string]any{"url": proxy.URL + "/tick", "key": "first"} // the server sees its answer go out to the proxy
	lose := func(next *atomic.Int32) {
		t.Helper()
		next.Store(2) // the first may only be corrected
		if d := b.asked(through); d.Error == "" {
			t.Fatalf("nothing was lost: %+v", d)
		}
		<-proxy.broken
		next.Store(0)
	}
	lose(&proxy.late)
	first := b.took(b.insisted(b.asked(through), through))
	if first.corrections() != 0 || b.holds() != 10_000 || first.body.Record.Sequence != 1 {
		t.Errorf("the first answer was lost, then came %+v; the channel holds %d", first.did, b.holds())
	}
	b.tick()
	through["key"] = "second"
	lose(&proxy.late)
	again := b.took(b.insisted(b.asked(through), through))
	if again.Requests[len(again.Requests)-1].Payment == "" || again.body.Record.Owed.Uint64() < b.spent+b.gaps {
		t.Errorf("the answer was lost, then came %+v", again.did)
	}
	through["key"] = "third"
	lose(&proxy.early)
	b.cut = 1
	b.took(b.insisted(b.asked(through), through))
	b.tick()
	b.refunds("")
	c.audit(b)
}

// refundAndReopen: a payer takes a part back, goes on, takes all back, and comes again.
func refundAndReopen(t *testing.T, s *stock) {
	c := newCounter(t, s, 1)
	b := c.shopper(c.payer(), nil)
	b.tick()
	before := b.holds()
	if moved := b.refunds("1234"); moved != 1234 || b.holds() != before-1234 {
		t.Errorf("asked for 1234 of %d, got %d, the channel holds %d", before, moved, b.holds())
	}
	b.tick()
	b.tick()
	b.refunds("")
	if b.holds() != b.spent+b.gaps || c.chain.Tokens(t, b.address()) != purse-b.spent-b.gaps {
		t.Errorf("after a full refund the channel holds %d of %d used", b.holds(), b.spent+b.gaps)
	}
	id := b.id
	b.exact = false
	again := b.tick()
	if b.id != id || again.Settled.Transaction == "" || b.holds() <= b.spent+b.gaps {
		t.Errorf("reopened channel %s as %+v", id, again.did)
	}
	b.tick()
	b.refunds("")
	c.audit(b)
}

// gate lets usage records be signed, or not.
type gate struct {
	*channel.Key
	open atomic.Pointer[chan struct{}]
}

func (g *gate) close() (open func()) {
	wait := make(chan struct{})
	g.open.Store(&wait)
	return func() { close(wait) }
}

func (g *gate) Sign(ctx context.Context, digest common.Hash) ([]byte, error) {
	if wait := g.open.Load(); wait != nil {
		select {
		case <-*wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return g.Key.Sign(ctx, digest)
}

// streamed: what a stream costs stands before it, its events come one by one, and what was not used of it is credit.
func streamed(t *testing.T, s *stock) {
	g := new(gate)
	c := newCounter(t, s, 1, func(c *counter) {
		g.Key = channel.NewKey(c.chain.Keys[1])
		c.config.Metering.Key = g
	})
	b := c.shopper(c.payer(), nil)
	var used uint64
	for n := range 3 {
		open := g.close()
		answers := b.asks(map[string]any{"url": c.server.URL + "/lease", "stream": true})
		head := receive(t, answers)
		before := b.spent
		charged := b.paid(head)
		b.keeps(head)
		if charged >= payCeiling || b.spent == before {
			t.Errorf("stream %d cost %d", n, charged)
		}
		first := receive(t, answers) // no record can be signed yet
		if !first.More || !strings.HasPrefix(first.Body, "event: lease\n") {
			t.Fatalf("the stream begins with %+v", first)
		}
		open()
		text := first.Body
		for d := first; d.More; text += d.Body {
			d = receive(t, answers)
		}
		_, data, _ := strings.Cut(text[strings.LastIndex(text, "event: usage"):], "data: ")
		var rec metering.SignedRecord
		if err := json.Unmarshal([]byte(data), &rec); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		domain := metering.Domain(c.contract.ChainID(), c.contract.Address())
		if who, err := eip712.Recover(rec.Digest(domain), rec.Signature); err != nil || who != g.Address() {
			t.Errorf("the record is signed by %s, %v", who, err)
		}
		if used = rec.Owed.Uint64(); used == 0 || used > b.spent+b.gaps+payGap {
			t.Errorf("used %d, told before of %d", used, b.spent+b.gaps)
		}
	}
	b.credit = payCeiling
	b.tick()
	b.refunds("")
	c.audit(b)
}

// inference is a provider with a handler that is paid by the request.
func inference(t *testing.T, s *stock, route provider.Route, handler http.HandlerFunc) *counter {
	return newCounter(t, s, 1, func(c *counter) {
		c.routes = func(p *provider.Server) http.Handler {
			paid, err := p.Metered(route, handler)
			if err != nil {
				t.Fatal(err)
			}
			mux := http.NewServeMux()
			mux.Handle("/infer", paid)
			mux.Handle("/", p)
			return mux
		}
	})
}

// meteredHandler: any handler is sold by the GPU time that it runs, also to a client that asks many things at once.
func meteredHandler(t *testing.T, s *stock) {
	var served atomic.Int32
	c := inference(t, s, provider.Route{Devices: []string{"SIM-GPU-0"}, MaxTime: 5 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		body, _ := io.ReadAll(r.Body)
		testclock.Sleep(100 * time.Millisecond)
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"was":%s,"by":%q}`, body, r.Method)
	})
	b := c.shopper(c.payer(), nil)
	question := map[string]any{"url": c.server.URL + "/infer", "method": "POST", "body": `{"prompt":"<é>"}`}
	for range 2 {
		d := b.asked(question)
		charged := b.paid(d)
		b.keeps(d)
		if d.Body != `{"was":{"prompt":"<é>"},"by":"POST"}` || charged > 5000 {
			t.Errorf("asked and got %+v", d)
		}
	}
	const requests = 20
	many := maps.Clone(question)
	many["times"] = requests
	answers := b.asks(many)
	for range requests {
		b.paid(b.insisted(receive(t, answers), question))
	}
	if n := served.Load(); n != requests+2 {
		t.Errorf("the handler ran %d times", n)
	}
	b.refunds("")
	if b.gaps != 0 || b.spent == 0 {
		t.Errorf("%d was charged, and %d that no receipt says", b.spent, b.gaps)
	}
	c.audit(b)
}

// meteredStream: a handler that is charged first writes to the client as it goes, and what it did not use is credit.
func meteredStream(t *testing.T, s *stock) {
	next := make(chan string)
	c := inference(t, s, provider.Route{Devices: []string{"SIM-GPU-0"}, MaxTime: patience, Streamed: true}, func(w http.ResponseWriter, r *http.Request) {
		for {
			select {
			case text := <-next:
				if text == "" {
					return
				}
				_, _ = io.WriteString(w, text)
			case <-r.Context().Done():
				return
			}
		}
	})
	b := c.shopper(c.payer(), nil)
	for n := range 2 {
		answers := b.asks(map[string]any{"url": c.server.URL + "/infer", "method": "POST", "body": `{}`, "stream": true})
		next <- "one"
		head := receive(t, answers)
		charged := b.paid(head)
		b.keeps(head)
		if n == 0 && charged < 100_000 || n == 1 && charged > 60_000 {
			t.Errorf("request %d was charged %d first", n, charged)
		}
		for _, text := range []string{"one", "two", "three"} {
			if text != "one" {
				next <- text
			}
			if d := receive(t, answers); d.Body != text {
				t.Fatalf("the stream says %q, not %q", d.Body, text)
			}
		}
		next <- ""
		if d := receive(t, answers); d.More {
			t.Fatalf("the stream goes on: %+v", d)
		}
	}
	b.credit = b.spent + b.gaps
	b.refunds("")
	c.audit(b)
}

// restart: a provider that stops and comes again goes on with its channels.
func restart(t *testing.T, s *stock) {
	c := newCounter(t, s, 1)
	b := c.shopper(c.payer(), nil)
	for range 3 {
		b.tick()
		c.halt()
		c.begin()
	}
	b.tick()
	b.refunds("")
	c.audit(b)
}
