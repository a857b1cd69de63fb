package sidecar_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wire"
)

// work is how long an engine of these tests works on each request before anything goes wrong: what it would cost.
const work = 300 * time.Millisecond

const (
	token  = `data: {"choices":[{"delta":{"content":"x"},"finish_reason":null}]}` + "\n\n"
	ending = `data: {"choices":[{"delta":{},"finish_reason":"stop"}]}` + "\n\ndata: [DONE]\n\n"
)

// raw ends an answer by what is written onto its connection, byte by byte. reset has the connection be reset, where it would be closed.
func raw(w http.ResponseWriter, text string, reset bool) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	_, _ = io.WriteString(conn, text)
	if reset {
		time.Sleep(50 * time.Millisecond) // a reset takes with it what was not read yet
		_ = conn.(*net.TCPConn).SetLinger(0)
	}
	_ = conn.Close()
}

func streamed(w http.ResponseWriter, all ...string) {
	w.Header().Set("Content-Type", "text/event-stream")
	for _, text := range all {
		_, _ = io.WriteString(w, text)
		w.(http.Flusher).Flush()
	}
}

const chunkedHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

func chunk(text string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(text), text) }

// failures is the table of docs/sidecar.md as the tests have it: how a request ends at the inference server, what its client sees of that,
// and what it is billed by. Those that end otherwise than done, aborted or at a limit cost nothing.
var failures = map[string]struct {
	engine  func(w http.ResponseWriter, r *http.Request)
	status  int              // that the client sees; 0: any
	broken  bool             // whether the client sees its answer be cut
	says    string           // what is in what it reads
	outcome metering.Outcome // empty: no record names it
}{
	"whole":             {func(w http.ResponseWriter, r *http.Request) { streamed(w, token, ending) }, 200, false, "[DONE]", metering.RequestDone},
	"4xx":               {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no such model", 404) }, 404, false, "no such model", metering.RequestDone},
	"500":               {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "out of memory", 500) }, 500, false, "out of memory", metering.RequestFailed},
	"503":               {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "loading", http.StatusServiceUnavailable) }, 503, false, "loading", metering.RequestFailed},
	"401":               {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "who are you", http.StatusUnauthorized) }, 502, false, "not passed on", metering.RequestFailed},
	"no answer":         {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, 502, false, "before it answered", metering.RequestFailed},
	"a reset before":    {func(w http.ResponseWriter, r *http.Request) { raw(w, "", true) }, 502, false, "before it answered", metering.RequestFailed},
	"a reset":           {func(w http.ResponseWriter, r *http.Request) { raw(w, chunkedHead+chunk(token), true) }, 200, true, "", metering.RequestFailed},
	"a truncated chunk": {func(w http.ResponseWriter, r *http.Request) { raw(w, chunkedHead+chunk(token)+"40\r\ndata: {", false) }, 200, true, `"x"`, metering.RequestFailed},
	"no last chunk":     {func(w http.ResponseWriter, r *http.Request) { raw(w, chunkedHead+chunk(token), false) }, 200, true, `"x"`, metering.RequestFailed},
	"a short length": {func(w http.ResponseWriter, r *http.Request) {
		raw(w, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{", false)
	}, 200, true, "{", metering.RequestFailed},
	"a stream of no end": {func(w http.ResponseWriter, r *http.Request) { streamed(w, token) }, 200, false, `"x"`, metering.RequestFailed},
	"an error event": {func(w http.ResponseWriter, r *http.Request) {
		streamed(w, token, `data: {"error":{"message":"it died"}}`+"\n\n", ending)
	}, 200, false, "it died", metering.RequestFailed},
	"no header":     {func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 504, false, "did not begin", metering.RequestFailed},
	"a still one":   {func(w http.ResponseWriter, r *http.Request) { streamed(w, token); <-r.Context().Done() }, 200, true, `"x"`, metering.RequestFailed},
	"a client gone": {func(w http.ResponseWriter, r *http.Request) { streamed(w, token); <-r.Context().Done() }, 0, true, "", metering.RequestAborted},
	"an XID": {func(w http.ResponseWriter, r *http.Request) {
		streamed(w, token)
		time.Sleep(900 * time.Millisecond)
		streamed(w, ending)
	}, 200, false, "[DONE]", metering.RequestDone},
	"a kill": {func(w http.ResponseWriter, r *http.Request) { streamed(w, token); <-r.Context().Done() }, 0, true, "", ""},
}

// engineOf is an inference server that ends each request as its prompt says.
func engineOf(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var a ask
		if _ = json.NewDecoder(r.Body).Decode(&a); a.Fail == "" {
			_, _ = io.WriteString(w, `{"data":[{"id":"test"}]}`)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body) // so that the server sees its client leave
		time.Sleep(work)
		failures[a.Fail].engine(w, r)
	}))
	server.Config.ErrorLog = nil
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return server.URL
}

// seen is what a client saw of its request.
type seen struct {
	name   string
	id     uint64 // of the request
	status int
	text   string
	err    error
	took   time.Duration
}

// see sends a request that ends as its name says.
func (g *guest) see(ctx context.Context, name string) seen {
	s := seen{name: name}
	client := &http.Client{Transport: g.rental.Transport(tap(func(r *http.Request) { s.id, _ = strconv.ParseUint(r.Header.Get(wire.RequestHeader), 10, 64) }))}
	to, err := g.rental.Endpoint()
	if err != nil {
		s.err = err
		return s
	}
	body, _ := json.Marshal(ask{Fail: name})
	r, _ := http.NewRequestWithContext(ctx, http.MethodPost, to.String()+"/v1/chat/completions", bytes.NewReader(body))
	began := time.Now()
	res, err := client.Do(r)
	if s.err = err; err == nil {
		var text []byte
		text, s.err = io.ReadAll(res.Body)
		s.status, s.text = res.StatusCode, string(text)
		_ = res.Body.Close()
	}
	s.took = time.Since(began)
	return s
}

// TestFailedRequestsCostNothing: whatever the inference server fails at, its answer so far included, whatever its client sees of that. All
// ends happen beside each other, then a GPU reports an error in the middle of a request, and then the provider is killed in one.
func TestFailedRequestsCostNothing(t *testing.T) {
	gpus := sim.New(1, sim.Options{})
	s := newShop(t, func(c *sidecar.Config) {
		c.Upstream, c.HeaderTimeout, c.IdleTimeout = engineOf(t), 2*time.Second, 2*time.Second
		c.Provider.Source, c.Provider.Share.Slots, c.Provider.Terms.Credit = gpus, len(failures), 30*time.Second
	})
	g := s.guest(renter.Options{})
	all, begun := make(chan seen, len(failures)), 0
	for name := range failures {
		if name == "an XID" || name == "a kill" {
			continue
		}
		begun++
		go func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if name == "a client gone" {
				sent := func(httptrace.WroteRequestInfo) { time.AfterFunc(2*work, cancel) }
				ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: sent})
			}
			all <- g.see(ctx, name)
		}()
	}
	var saw []seen
	for range begun {
		saw = append(saw, <-all)
	}
	go func() { all <- g.see(t.Context(), "an XID") }()
	time.Sleep(work + 300*time.Millisecond)
	gpus.Inject(sim.Fault{Kind: sim.XID, Code: 79})
	saw = append(saw, <-all)
	killed := make(chan seen, 1)
	rig.Eventually(t, "a GPU that was read healthy twice", func() bool { return g.see(t.Context(), "whole").status == http.StatusOK })
	go func() { killed <- g.see(t.Context(), "a kill") }()
	time.Sleep(2 * work)
	s.kill()
	saw = append(saw, <-killed)
	rig.Eventually(t, "the provider", func() bool { return g.see(t.Context(), "whole").status == http.StatusOK })
	g.close(s.chain)
	billed := s.requests(g.rental.ID())
	for _, got := range saw {
		got.check(t, billed[got.id])
	}
}

// check holds what a client saw, and what it is billed, to the table.
func (got seen) check(t *testing.T, r metering.Request) {
	t.Helper()
	want := failures[got.name]
	if want.status != 0 && got.status != want.status || (got.err != nil) != want.broken || !strings.Contains(got.text, want.says) {
		t.Errorf("%s: the client sees %d %.200q, %v", got.name, got.status, got.text, got.err)
	}
	if r.Outcome != want.outcome {
		t.Errorf("%s: request %d ended as %q", got.name, got.id, r.Outcome)
	}
	nanos := time.Duration(r.Nanos)
	switch free := want.outcome == metering.RequestFailed || want.outcome == ""; {
	case free && nanos != 0:
		t.Errorf("%s: %s are billed", got.name, nanos)
	case !free && (nanos <= 0 || nanos > got.took):
		t.Errorf("%s: %s are billed of %s", got.name, nanos, got.took)
	case got.name == "an XID" && nanos > got.took-50*time.Millisecond: // of the readings around it at least one is not healthy
		t.Errorf("%s: %s are billed of %s: the time around it too", got.name, nanos, got.took)
	}
}
