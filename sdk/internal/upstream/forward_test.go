package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestEveryPieceGoesOutAtOnce(t *testing.T) {
	for name, send := range map[string]func(http.ResponseWriter, ...string){"SSE": events, "NDJSON": lines} {
		next := make(chan string)
		g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			send(w)
			w.(http.Flusher).Flush()
			for text := range next {
				send(w, text)
			}
		}), nil)
		res, err := http.Post(g.server.URL+chat, "application/json", strings.NewReader("{}"))
		if err != nil { // the headers have come before there is a first piece
			t.Fatal(err)
		}
		from := bufio.NewReader(res.Body)
		for range 50 {
			next <- chunkText // the next is written only when this one has come
			for line := ""; !strings.Contains(line, "chat.completion.chunk"); {
				if line, err = from.ReadString('\n'); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
		}
		next <- chunkEnd
		close(next)
		_, _ = io.Copy(io.Discard, from)
		_ = res.Body.Close()
		r := g.want(t, Completed, "")
		if r.Status != 200 || r.Bytes == 0 || r.First.Before(r.Accepted) || r.Last.Before(r.First) || r.Took() <= 0 {
			t.Errorf("%s: the result is %+v", name, r)
		}
	}
}

// ends are the ways in which an upstream can answer.
var ends = map[string]struct {
	upstream http.HandlerFunc
	outcome  Outcome
	reason   Reason
	status   int  // that the client gets
	broken   bool // whether the client must see that its answer is cut
}{
	"an answer":         {func(w http.ResponseWriter, r *http.Request) { write(w, 200, `{"choices":[]}`) }, Completed, "", 200, false},
	"nothing":           {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, Completed, "", 204, false},
	"a stream":          {func(w http.ResponseWriter, r *http.Request) { events(w, chunkText, chunkEnd, done) }, Completed, "", 200, false},
	"a stream, no DONE": {func(w http.ResponseWriter, r *http.Request) { events(w, chunkText, chunkEnd) }, Completed, "", 200, false},
	"cut after DONE":    {func(w http.ResponseWriter, r *http.Request) { breakOff(w, chunkText, done) }, Completed, "", 200, true},
	"400":               {func(w http.ResponseWriter, r *http.Request) { write(w, 400, `{"error":{"message":"x"}}`) }, Refused, "", 400, false},
	"404":               {func(w http.ResponseWriter, r *http.Request) { write(w, 404, `{"error":"no model"}`) }, Refused, "", 404, false},
	"408":               {func(w http.ResponseWriter, r *http.Request) { write(w, 408, ``) }, Failed, ServerError, 408, false},
	"425":               {func(w http.ResponseWriter, r *http.Request) { write(w, 425, ``) }, Failed, ServerError, 425, false},
	"429":               {func(w http.ResponseWriter, r *http.Request) { write(w, 429, ``) }, Failed, ServerError, 429, false},
	"500":               {func(w http.ResponseWriter, r *http.Request) { write(w, 500, `{}`) }, Failed, ServerError, 500, false},
	"503":               {func(w http.ResponseWriter, r *http.Request) { write(w, 503, `{}`) }, Failed, ServerError, 503, false},
	"a redirect": {func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://inside/", http.StatusTemporaryRedirect)
	}, Failed, BadAnswer, 502, false},
	"401": {func(w http.ResponseWriter, r *http.Request) { write(w, 401, ``) }, Failed, BadAnswer, 502, false},
	"402": {func(w http.ResponseWriter, r *http.Request) { write(w, 402, ``) }, Failed, BadAnswer, 502, false},
	"compressed": {func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		write(w, 200, `x`)
	}, Failed, BadAnswer, 502, false},
	"cut before":        {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, Failed, NoAnswer, 502, false},
	"cut in the middle": {func(w http.ResponseWriter, r *http.Request) { breakOff(w, chunkText) }, Failed, Broken, 200, true},
	"reset":             {reset, Failed, Broken, 200, true},
	"an error event": {func(w http.ResponseWriter, r *http.Request) {
		events(w, chunkText, `{"error":{"message":"x","code":500}}`, done)
	}, Failed, ErrorEvent, 200, false},
	"an error line": {func(w http.ResponseWriter, r *http.Request) {
		lines(w, `{"response":"a","done":false}`, `{"error":"x"}`)
	}, Failed, ErrorEvent, 200, false},
	"a stream of nothing": {func(w http.ResponseWriter, r *http.Request) { events(w) }, Failed, Unfinished, 200, false},
	"a comment alone": {func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		write(w, 200, ": wait\n\n")
	}, Failed, Unfinished, 200, false},
	"an end that is none":  {func(w http.ResponseWriter, r *http.Request) { events(w, chunkText, chunkText) }, Failed, Unfinished, 200, false},
	"lines without an end": {func(w http.ResponseWriter, r *http.Request) { lines(w, `{"response":"a","done":false}`) }, Failed, Unfinished, 200, false},
	"no header":            {func(w http.ResponseWriter, r *http.Request) { hang(r) }, Failed, HeaderTimeout, 504, false},
	"a stream that stops":  {func(w http.ResponseWriter, r *http.Request) { events(w, chunkText); hang(r) }, Failed, IdleTimeout, 200, true},
	"stops after DONE":     {func(w http.ResponseWriter, r *http.Request) { events(w, chunkText, done); hang(r) }, Completed, "", 200, true},
	"a stream without end": {func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			events(w, chunkText)
			time.Sleep(20 * time.Millisecond)
		}
	}, Failed, TotalTimeout, 200, true},
}

func write(w http.ResponseWriter, status int, body string) {
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func breakOff(w http.ResponseWriter, all ...string) { events(w, all...); panic(http.ErrAbortHandler) }

func reset(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	_, _ = io.WriteString(w, "some")
	w.(http.Flusher).Flush()
	conn, _, _ := w.(http.Hijacker).Hijack()
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// TestHowItEnded has an upstream answer in each way over a real connection.
func TestHowItEnded(t *testing.T) {
	t.Parallel()
	for name, c := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t, c.upstream, func(c *Config) {
				c.HeaderTimeout, c.IdleTimeout, c.TotalTimeout = 400*time.Millisecond, 400*time.Millisecond, 1500*time.Millisecond
			})
			began := time.Now()
			res, _, err := g.post(t, chat, "{}")
			if res == nil {
				t.Fatal(err)
			}
			if res.StatusCode != c.status || (err != nil) != c.broken {
				t.Errorf("the client got %d and the error %v", res.StatusCode, err)
			}
			if r := g.want(t, c.outcome, c.reason); r.Took() < 0 || r.Took() > time.Since(began) {
				t.Errorf("it took %v of %v", r.Took(), time.Since(began))
			}
		})
	}
}

func TestUpstreamsThatAreNotThere(t *testing.T) {
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = at.Close()
	tls := httptest.NewUnstartedServer(http.NotFoundHandler())
	tls.Config.ErrorLog = log.New(io.Discard, "", 0)
	tls.StartTLS()
	defer tls.Close()
	for name, url := range map[string]string{"refused": "http://" + at.Addr().String(), "no name": "http://upstream.invalid:1", "bad certificate": tls.URL} {
		g := rigAt(t, url, nil)
		if res, body, err := g.post(t, "/api/chat", "{}"); err != nil || res.StatusCode != 502 || !strings.Contains(body, `{"error":"`+string(Unreachable)) {
			t.Errorf("%s: the client got %v %q: %v", name, res, body, err)
		}
		g.want(t, Failed, Unreachable)
	}
	g := rigAt(t, raw(t, func(conn net.Conn) { _, _ = io.WriteString(conn, "HTTP/1.1 2xx canary\r\n\r\n") }), nil)
	if res, body, err := g.post(t, chat, "{}"); err != nil || res.StatusCode != 502 || strings.Contains(body, "canary") {
		t.Errorf("no HTTP: the client got %v %q: %v", res, body, err)
	}
	g.want(t, Failed, NoAnswer)
	g = rigAt(t, raw(t, func(conn net.Conn) {
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	}), nil)
	if res, _, err := g.post(t, chat, "{}"); err != nil || res.StatusCode != 502 {
		t.Errorf("another protocol: the client got %v: %v", res, err)
	}
	g.want(t, Failed, BadAnswer)
}

// TestClientsThatLeave: the upstream's request ends with the client's, and the moment is known.
func TestClientsThatLeave(t *testing.T) {
	for name, upstream := range map[string]http.HandlerFunc{
		"before the header": func(w http.ResponseWriter, r *http.Request) { hang(r) },
		"in the stream":     func(w http.ResponseWriter, r *http.Request) { events(w, chunkText); hang(r) },
	} {
		t.Run(name, func(t *testing.T) {
			var left atomic.Bool
			g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { upstream(w, r); left.Store(true) }), nil)
			ctx, cancel := context.WithCancel(t.Context())
			r, _ := http.NewRequestWithContext(ctx, "POST", g.server.URL+chat, strings.NewReader("{}"))
			time.AfterFunc(300*time.Millisecond, cancel)
			if res, err := http.DefaultClient.Do(r); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
			result := g.want(t, Aborted, ClientGone)
			if took := result.Took(); took < 200*time.Millisecond || took > 2*time.Second {
				t.Errorf("the client left after %v", took)
			}
			for began := time.Now(); !left.Load(); time.Sleep(time.Millisecond) {
				if time.Since(began) > 2*time.Second {
					t.Fatal("the upstream works on")
				}
			}
		})
	}
}

// TestWhoHasReadItAllHasNotAborted: a client that closes its connection at the end of a stream, as OpenAI's do, has its answer.
func TestWhoHasReadItAllHasNotAborted(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { events(w, chunkText, chunkEnd, done); hang(r) }), nil)
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "POST", g.server.URL+chat, strings.NewReader("{}"))
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	from := bufio.NewReader(res.Body)
	for line := ""; !strings.Contains(line, done); {
		if line, err = from.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	cancel()
	if r := g.want(t, Completed, ""); r.Took() > 150*time.Millisecond {
		t.Errorf("its end is %v after its acceptance: it is the client's leaving", r.Took())
	}
}

// TestAnErrorBeforeTheClientLeft: who leaves because of an error has aborted nothing.
func TestAnErrorBeforeTheClientLeft(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		events(w, chunkText, `{"error":{"message":"out of memory"}}`)
		hang(r)
	}), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	r, _ := http.NewRequestWithContext(ctx, "POST", g.server.URL+chat, strings.NewReader("{}"))
	if res, err := http.DefaultClient.Do(r); err == nil {
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	g.want(t, Failed, ErrorEvent)
}

// TestServerTimeoutsAreNoAborts: net/http ends a request's context when a deadline for reading is over.
func TestServerTimeoutsAreNoAborts(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 10 {
			events(w, chunkText)
			time.Sleep(50 * time.Millisecond)
		}
		events(w, chunkEnd, done)
	}), func(c *Config) { c.BodyTimeout = 150 * time.Millisecond })
	slow := httptest.NewUnstartedServer(g.server.Config.Handler)
	slow.Config.ReadTimeout, slow.Config.WriteTimeout = 150*time.Millisecond, 150*time.Millisecond
	slow.Start()
	defer slow.Close()
	for _, body := range []string{"", "{}"} {
		res, err := http.Post(slow.URL+chat, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if all, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(all), done) {
			t.Errorf("the client got %q: %v", all, err)
		}
		_ = res.Body.Close()
		g.want(t, Completed, "")
	}
}

func TestWhoStopsARequestHereIsNoClient(t *testing.T) {
	unpaid := errors.New("unpaid")
	for name, stop := range map[string]func(*Proxy, context.CancelCauseFunc){
		"by a cause": func(_ *Proxy, cancel context.CancelCauseFunc) { cancel(unpaid) },
		"by Close":   func(p *Proxy, _ context.CancelCauseFunc) { p.Close() },
	} {
		g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { events(w, chunkText); hang(r) }), nil)
		inner := g.server.Config.Handler
		g.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithCancelCause(r.Context())
			time.AfterFunc(200*time.Millisecond, func() { stop(g.proxy, cancel) })
			inner.ServeHTTP(w, r.WithContext(ctx))
		})
		if _, _, err := g.post(t, chat, "{}"); err == nil {
			t.Errorf("%s: the client does not see that its answer is cut", name)
		}
		g.want(t, Failed, Stopped)
	}
}

func TestACallThatIsNotForwarded(t *testing.T) {
	p, err := New(Config{URL: "http://127.0.0.1:1", APIs: []API{OpenAI}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	call, _ := p.Accept(httptest.NewRecorder(), httptest.NewRequest("POST", chat, strings.NewReader("{}")), "lease")
	if call == nil || p.bodies.Load() != 2 {
		t.Fatal("it was not taken in")
	}
	call.Release()
	call.Release()
	if held := p.bodies.Load(); held != 0 {
		t.Errorf("%d bytes are held", held)
	}
}

// TestHTTP2 has clients that come over HTTP/2: what is cut is a stream there, and no connection.
func TestHTTP2(t *testing.T) {
	answers := make(chan func(http.ResponseWriter, *http.Request), 1)
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (<-answers)(w, r) }), func(c *Config) { c.WriteTimeout = 500 * time.Millisecond })
	front := httptest.NewUnstartedServer(g.server.Config.Handler)
	front.EnableHTTP2 = true
	front.StartTLS()
	defer front.Close()
	post := func(ctx context.Context) (string, error) {
		r, _ := http.NewRequestWithContext(ctx, "POST", front.URL+chat, strings.NewReader("{}"))
		res, err := front.Client().Do(r)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		if res.ProtoMajor != 2 {
			t.Errorf("the client came over %s", res.Proto)
		}
		if ctx.Value(callKey{}) != nil { // one that does not read
			<-ctx.Done()
		}
		all, err := io.ReadAll(res.Body)
		return string(all), err
	}
	answers <- func(w http.ResponseWriter, r *http.Request) { events(w, chunkText, chunkEnd, done) }
	if got, err := post(t.Context()); err != nil || !strings.Contains(got, done) {
		t.Errorf("the client got %q: %v", got, err)
	}
	g.want(t, Completed, "")

	answers <- func(w http.ResponseWriter, r *http.Request) { events(w, chunkText); panic(http.ErrAbortHandler) }
	if got, err := post(t.Context()); err == nil {
		t.Errorf("the client got %q, and does not see that it is cut", got)
	}
	g.want(t, Failed, Broken)

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	answers <- func(w http.ResponseWriter, r *http.Request) { events(w, chunkText); hang(r) }
	_, _ = post(ctx)
	g.want(t, Aborted, ClientGone)

	ctx, cancel = context.WithTimeout(context.WithValue(t.Context(), callKey{}, true), 5*time.Second)
	defer cancel()
	answers <- func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			events(w, strings.Repeat(chunkText, 100))
		}
	}
	go func() { _, _ = post(ctx) }()
	g.want(t, Aborted, ClientSlow)
	cancel()
}

// small has the buffers of a connection be small.
type small struct{ net.Listener }

func (l small) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		shrink(conn)
	}
	return conn, err
}

const kernel = 16 << 10

func shrink(conn net.Conn) {
	_ = conn.(*net.TCPConn).SetReadBuffer(kernel)
	_ = conn.(*net.TCPConn).SetWriteBuffer(kernel)
}

func serveSmall(t *testing.T, h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Listener = small{s.Listener}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// TestSlowClientsHoldLittle: an upstream that writes without end is held up by a client that does not read, and it is the client's fault.
func TestSlowClientsHoldLittle(t *testing.T) {
	var wrote atomic.Int64
	text := []byte(strings.Repeat("data: "+chunkText+"\n\n", 10))
	upstream := serveSmall(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			n, err := w.Write(text)
			if wrote.Add(int64(n)); err != nil {
				return
			}
		}
	}))
	g := rigAt(t, upstream.URL, func(c *Config) { c.WriteTimeout = time.Second })
	dial := g.proxy.transport.DialContext
	g.proxy.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err == nil {
			shrink(conn)
		}
		return conn, err
	}
	front := serveSmall(t, g.server.Config.Handler)
	conn, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	shrink(conn)
	_, _ = io.WriteString(conn, "POST "+chat+" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	g.want(t, Aborted, ClientSlow)
	const buffers = 4 * 2 * kernel // Linux doubles what it is asked for
	t.Logf("the upstream wrote %d bytes for a client that read none; the kernel's buffers are %d, StreamBound is %d", wrote.Load(), buffers, StreamBound)
	if wrote.Load() > StreamBound+buffers {
		t.Errorf("the upstream wrote %d bytes", wrote.Load())
	}
}

// TestSlowClientsPayForTheirTime: a client cannot have an answer for nothing by reading it so slowly that its time is over.
func TestSlowClientsPayForTheirTime(t *testing.T) {
	upstream := serveSmall(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			events(w, chunkText)
		}
	}))
	g := rigAt(t, upstream.URL, func(c *Config) { c.WriteTimeout, c.TotalTimeout = 5*time.Second, time.Second })
	front := serveSmall(t, g.server.Config.Handler)
	conn, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	shrink(conn)
	_, _ = io.WriteString(conn, "POST "+chat+" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	go func() {
		for some := make([]byte, 2048); ; time.Sleep(50 * time.Millisecond) {
			if _, err := conn.Read(some); err != nil {
				return
			}
		}
	}()
	g.want(t, Aborted, ClientSlow)
}

// BenchmarkStream is of a stream of 2,000 events, each flushed, from the upstream itself and through a Proxy.
func BenchmarkStream(b *testing.B) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range 2000 {
			stream(w, "data: ", "\n\n", chunkText)
		}
		stream(w, "data: ", "\n\n", chunkEnd, done)
	}))
	defer upstream.Close()
	g := rigAt(b, upstream.URL, nil)
	for name, at := range map[string]string{"direct": upstream.URL, "proxied": g.server.URL} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				res, err := http.Post(at+chat, "application/json", strings.NewReader("{}"))
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				if name == "proxied" {
					g.want(b, Completed, "")
				}
			}
		})
	}
}
