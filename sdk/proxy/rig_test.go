package proxy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/route"
)

// engine is an inference server that does what its script says.
type engine struct {
	*httptest.Server
	script  atomic.Pointer[func(http.ResponseWriter, *http.Request)]
	asked   atomic.Int64
	running atomic.Int64
	mu      sync.Mutex
	body    string
	header  http.Header
}

func newEngine(t *testing.T, script func(http.ResponseWriter, *http.Request)) *engine {
	e := &engine{}
	e.script.Store(&script)
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"m","object":"model"}]}`)
			return
		}
		e.asked.Add(1)
		e.running.Add(1)
		defer e.running.Add(-1)
		body, _ := io.ReadAll(r.Body)
		e.mu.Lock()
		e.body, e.header = string(body), r.Header.Clone()
		e.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
		(*e.script.Load())(w, r)
	}))
	t.Cleanup(func() { e.CloseClientConnections(); e.Close() })
	return e
}

func (e *engine) is(script func(http.ResponseWriter, *http.Request)) { e.script.Store(&script) }

func (e *engine) got() (string, http.Header) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.body, e.header
}

const document = `{"id":"1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello there"},"finish_reason":"stop"}],"usage":{"completion_tokens":2}}`

// streams says whether a request wants a stream.
func streams(r *http.Request) bool {
	var q struct {
		Stream bool `json:"stream"`
	}
	_ = json.NewDecoder(r.Body).Decode(&q)
	return q.Stream
}

func chunk(content string) string {
	text, _ := json.Marshal(content)
	return `data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":` + string(text) + `},"finish_reason":null}]}` + "\n\n"
}

const last = `data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n" + "data: [DONE]\n\n"

// well answers whole, as a stream where that is wanted.
func well(w http.ResponseWriter, r *http.Request) {
	if !streams(r) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, document)
		return
	}
	say(w, "Hello", " there")
	_, _ = io.WriteString(w, last)
}

// say begins a stream.
func say(w http.ResponseWriter, words ...string) {
	w.Header().Set("Content-Type", "text/event-stream")
	for _, word := range words {
		_, _ = io.WriteString(w, chunk(word))
		_ = http.NewResponseController(w).Flush()
	}
}

// broken begins a stream and dies.
func broken(w http.ResponseWriter, r *http.Request) {
	say(w, "Hel")
	_, _ = io.WriteString(w, `data: {"id":"1","choices":[{"ind`)
	_ = http.NewResponseController(w).Flush()
	time.Sleep(20 * time.Millisecond)
	panic(http.ErrAbortHandler)
}

func status(code int, header ...string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, `{"error":{"message":"no"}}`)
	}
}

// purse is a Pool whose money is figures: for what is not about money.
type purse struct {
	mu        sync.Mutex
	endpoints []route.Endpoint
	left      uint64 // base units
	spent     route.Nano
	done      int
	failed    int
	refuse    map[string]error
	aside     uint64 // what Room keeps back
	asked     func() // after Left has looked
	before    func() // before Reserve looks
	missing   []pool.Missing
	money     pool.Money
	moneyErr  error
	pays      time.Duration // after which a request is ended, whatever was asked for: as the pool's holds at a raised price; 0: never
}

func (p *purse) Endpoints() []route.Endpoint { return p.endpoints }

func (p *purse) Money(context.Context) (pool.Money, error) { return p.money, p.moneyErr }

func (p *purse) Missing(context.Context, []string) []pool.Missing { return p.missing }

func (p *purse) Left(string) (route.Nano, error) {
	p.mu.Lock()
	left, asked := p.left, p.asked
	p.mu.Unlock()
	if asked != nil {
		asked()
	}
	return route.Base(left), nil
}

func (p *purse) Room(_, _ string, left route.Nano) route.Nano { return left.Sub(route.Base(p.aside)) }

func (p *purse) Reserve(_ context.Context, _ string, at route.Endpoint, most route.Nano) (proxy.Hold, error) {
	endpoint := at.ID
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.before != nil {
		p.before()
	}
	if err := p.refuse[endpoint]; err != nil {
		return nil, err
	}
	up := most.RoundUp()
	if up.GtUint64(p.left - p.aside) {
		return nil, fmt.Errorf("%w: %d are left", proxy.ErrBudget, p.left)
	}
	p.left -= up.Uint64()
	return &note{p, endpoint, up}, nil
}

type note struct {
	*purse
	endpoint string
	most     uint256.Int
}

func (n *note) RoundTrip(r *http.Request) (*http.Response, error) {
	to, err := url.Parse(n.endpoint)
	if err != nil {
		return nil, err
	}
	r.URL.Scheme, r.URL.Host = to.Scheme, to.Host
	if n.pays == 0 {
		return http.DefaultTransport.RoundTrip(r)
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), n.pays, pool.ErrLimit)
	res, err := http.DefaultTransport.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, context.Cause(ctx)
	}
	res.Body = &bounded{res.Body, ctx, cancel}
	return res, nil
}

// bounded is the body of a request that its hold ends.
type bounded struct {
	io.ReadCloser
	ctx    context.Context
	cancel func()
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if cause := context.Cause(b.ctx); cause != nil && err != nil {
		err = cause
	}
	return n, err
}

func (b *bounded) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

func (n *note) Fail(ctx context.Context) error {
	n.mu.Lock()
	n.failed++
	n.mu.Unlock()
	return n.Done(ctx, route.Nano{})
}

func (n *note) Done(_ context.Context, cost route.Nano) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.done++
	if most := route.Base(n.most.Uint64()); cost.Cmp(most) > 0 { // as the pool does
		cost = most
	}
	n.spent = n.spent.Add(cost)
	up := cost.RoundUp()
	n.left += n.most.Uint64() - up.Uint64()
	return nil
}

// desk is a proxy before engines, each at a price in base units a slot-second, and a caller of it.
type desk struct {
	*testing.T
	purse   *purse
	server  *proxy.Server
	site    *httptest.Server
	engines []*engine
}

type locked struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

// seeded draws the same providers each time.
func seeded() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func newDesk(t *testing.T, engines []*engine, change ...func(*proxy.Config, *purse)) *desk {
	t.Helper()
	d := &desk{T: t, purse: &purse{left: 1_000_000_000, refuse: make(map[string]error)}, engines: engines}
	for i, e := range engines {
		d.purse.endpoints = append(d.purse.endpoints, route.Endpoint{ID: e.URL, Model: "m", Region: "eu", Quantization: "fp8", Price: route.Price{PerSlotSecond: route.Base(uint64(1000 + 100_000*i))}})
	}
	config := proxy.Config{Pool: d.purse, Rand: seeded(), Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&config, d.purse)
	}
	server, err := proxy.New(config)
	if err != nil {
		t.Fatal(err)
	}
	d.server, d.site = server, httptest.NewServer(server)
	t.Cleanup(func() { d.site.CloseClientConnections(); d.site.Close() })
	return d
}

// answer is what a caller got.
type answer struct {
	*http.Response
	text string
	err  error // of the body
}

func (d *desk) post(path, body string, header ...string) answer {
	d.Helper()
	r, err := http.NewRequestWithContext(d.Context(), http.MethodPost, d.site.URL+path, strings.NewReader(body))
	if err != nil {
		d.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		d.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return answer{res, string(text), err}
}

func (d *desk) chat(members string) answer {
	d.Helper()
	return d.post("/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"Hi"}]`+members+`}`)
}

// code is the code of an error, of a body or of the last event.
func (a answer) code() string {
	text := a.text
	if i := strings.LastIndex(text, `data: {"error"`); i >= 0 {
		text, _, _ = strings.Cut(text[i+len("data: "):], "\n")
	}
	var e struct {
		Error struct{ Code, Message string } `json:"error"`
	}
	_ = json.Unmarshal([]byte(text), &e)
	return e.Error.Code
}
