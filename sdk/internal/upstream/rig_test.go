package upstream

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// rig is a proxy before an upstream, both over TCP.
type rig struct {
	proxy   *Proxy
	server  *httptest.Server
	results chan Result
}

// newRig has a proxy to an upstream. change is of its Config.
func newRig(t testing.TB, upstream http.Handler, change func(*Config)) *rig {
	t.Helper()
	behind := httptest.NewServer(upstream)
	t.Cleanup(behind.Close)
	return rigAt(t, behind.URL, change)
}

func rigAt(t testing.TB, url string, change func(*Config)) *rig {
	t.Helper()
	config := Config{URL: url, APIs: []API{OpenAI, Ollama}, Credential: http.Header{"Authorization": {"Bearer " + ownKey}}}
	if change != nil {
		change(&config)
	}
	proxy, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	g := &rig{proxy: proxy, results: make(chan Result, 2000)}
	g.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call, rejected := proxy.Accept(w, r, r.RemoteAddr)
		if call == nil {
			g.results <- rejected
			return
		}
		call.Forward(func(r Result) { g.results <- r })
	}))
	t.Cleanup(g.server.Close)
	return g
}

// Load is how many bytes of bodies are kept.
func (b *bodies) Load() int64 {
	all, _ := b.add("", 0)
	return all
}

const ownKey = "own-credential"

// result is how the next request ended.
func (g *rig) result(t testing.TB) Result {
	t.Helper()
	select {
	case r := <-g.results:
		return r
	case <-time.After(20 * time.Second):
		t.Fatal("no result after 20 s")
		return Result{}
	}
}

func (g *rig) want(t testing.TB, outcome Outcome, reason Reason) Result {
	t.Helper()
	r := g.result(t)
	if r.Outcome != outcome || r.Reason != reason {
		t.Fatalf("the request ended as %v, not %v: %s", r, outcome, reason)
	}
	return r
}

// post sends a prompt, and returns the answer and what was read of it.
func (g *rig) post(t testing.TB, path, body string) (*http.Response, string, error) {
	t.Helper()
	res, err := http.Post(g.server.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	all, err := io.ReadAll(res.Body)
	return res, string(all), err
}

const chat = "/v1/chat/completions"

// events answers with a stream of events, each sent by itself.
func events(w http.ResponseWriter, all ...string) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	stream(w, "data: ", "\n\n", all...)
}

// lines answers with a stream of ollama's.
func lines(w http.ResponseWriter, all ...string) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	stream(w, "", "\n", all...)
}

func stream(w http.ResponseWriter, before, after string, all ...string) {
	for _, one := range all {
		_, _ = io.WriteString(w, before+one+after)
		w.(http.Flusher).Flush()
	}
}

// hang waits until the proxy has left.
func hang(r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// raw answers each connection with bytes as they are, and closes it.
func raw(t testing.TB, answer func(net.Conn)) string {
	t.Helper()
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = at.Close() })
	go func() {
		for {
			conn, err := at.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := http.ReadRequest(newReader(conn)); err == nil {
					answer(conn)
				}
			}()
		}
	}()
	return "http://" + at.Addr().String()
}

const (
	chunkText = `{"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}`
	chunkEnd  = `{"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`
	done      = "[DONE]"
)
