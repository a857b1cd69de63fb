package upstream

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorder is an upstream that keeps what comes over its connections, byte by byte, and answers each request.
type recorder struct {
	mu  sync.Mutex
	got bytes.Buffer
	n   int
}

// newRecorder listens and reads requests as they are framed, so that a second one in a body would be seen.
func newRecorder(t *testing.T) (*recorder, string) {
	rec := new(recorder)
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
			go rec.serve(conn)
		}
	}()
	return rec, "http://" + at.Addr().String()
}

func (rec *recorder) serve(conn net.Conn) {
	defer conn.Close()
	from := newReader(io.TeeReader(conn, rec))
	for {
		r, err := http.ReadRequest(from)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		rec.mu.Lock()
		rec.n++
		rec.mu.Unlock()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

func (rec *recorder) Write(p []byte) (int, error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.got.Write(p)
}

func (rec *recorder) take() (string, int) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	got, n := rec.got.String(), rec.n
	rec.got.Reset()
	rec.n = 0
	return got, n
}

func TestHeadersOfTheCallerStayHere(t *testing.T) {
	rec, at := newRecorder(t)
	g := rigAt(t, at, nil)
	var headers strings.Builder
	for _, name := range []string{
		"Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "X-Auth-Token", "X-Amz-Security-Token",
		"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "X-Forwarded-User", "Forwarded", "X-Real-Ip", "Via",
		"X-Original-Url", "X-Rewrite-Url", "X-Http-Method-Override", "X-Method-Override", "Idempotency-Key", "X-Data-Parallel-Rank",
		"Keep-Alive", "Proxy-Connection", "Te", "Trailer", "X-Hop", "X-Payment", "Payment-Signature", "Range", "If-None-Match",
		"Expect-Ct", "Upgrade", "Http2-Settings", "Origin", "Referer", "User-Agent", "X-Stainless-Os", "Traceparent", "X_Forwarded_For",
	} {
		fmt.Fprintf(&headers, "%s: canary-%s\r\n", name, name)
	}
	answer := send(t, g.server.URL, "POST "+chat+" HTTP/1.1\r\nHost: canary-host\r\n"+headers.String()+
		"Connection: Upgrade, X-Hop, Authorization, Accept, Host\r\nAccept: canary-accept\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n"+
		"Anthropic-Version: 2023-06-01\r\nContent-Length: 2\r\n\r\n{}")
	if !strings.HasPrefix(answer, "HTTP/1.1 200") {
		t.Fatalf("the answer is %q", answer)
	}
	got, n := rec.take()
	if strings.Contains(strings.ToLower(got), "canary") || n != 1 {
		t.Errorf("%d requests got to the upstream:\n%s", n, got)
	}
	for _, want := range []string{
		"POST " + chat + " HTTP/1.1\r\n", "Host: " + strings.TrimPrefix(at, "http://") + "\r\n", "Authorization: Bearer " + ownKey + "\r\n",
		"Content-Type: application/json\r\n", "Accept-Encoding: identity\r\n", "Anthropic-Version: 2023-06-01\r\n", "Content-Length: 2\r\n", "Connection: close\r\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the upstream did not get %q:\n%s", want, got)
		}
	}
	if lines := strings.Count(got, "\r\n"); lines != 9 {
		t.Errorf("the upstream got more than that:\n%s", got)
	}
}

// TestRequestsAreFramedAnew: whatever a request is framed by, the upstream gets one request or none, and the length of its body.
func TestRequestsAreFramedAnew(t *testing.T) {
	rec, at := newRecorder(t)
	g := rigAt(t, at, nil)
	second := "POST /api/pull HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
	head := "POST " + chat + " HTTP/1.1\r\nHost: x\r\n"
	chunked := "5\r\nhello\r\n0\r\n\r\n"
	for name, c := range map[string]struct {
		request string
		body    string // that the upstream must have; "-": nothing may reach it
	}{
		"both lengths":             {head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked + second, "hello"},
		"both, length second":      {head + "Transfer-Encoding: chunked\r\nContent-Length: 70\r\n\r\n" + chunked + second, "hello"},
		"two lengths":              {head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello" + second, "-"},
		"one length twice":         {head + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello" + second, "hello"},
		"a list of lengths":        {head + "Content-Length: 5, 5\r\n\r\nhello" + second, "-"},
		"a signed length":          {head + "Content-Length: +5\r\n\r\nhello" + second, "-"},
		"an odd coding":            {head + "Transfer-Encoding: xchunked\r\n\r\n" + chunked + second, "-"},
		"two codings":              {head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked + second, "-"},
		"a coding with a tab":      {head + "Transfer-Encoding:\tchunked\r\n\r\n" + chunked + second, "hello"},
		"a coding with a space":    {head + "Transfer-Encoding : chunked\r\n\r\n" + chunked + second, "-"},
		"gzip, chunked":            {head + "Transfer-Encoding: gzip, chunked\r\n\r\n" + chunked + second, "-"},
		"a chunk's extension":      {head + "Transfer-Encoding: chunked\r\n\r\n5;x=\"y\"\r\nhello\r\n0\r\n\r\n", "hello"},
		"an extension with a line": {head + "Transfer-Encoding: chunked\r\n\r\n5;x\nhello\r\n0\r\n\r\n" + second, "*"},
		"a bad chunk":              {head + "Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n" + second, "-"},
		"a chunk that is 2^64":     {head + "Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n" + second, "-"},
		"trailers":                 {head + "Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n5\r\nhello\r\n0\r\nAuthorization: canary\r\nHost: canary\r\n\r\n", "hello"},
		"lines of one byte":        {"POST " + chat + " HTTP/1.1\nHost: x\nContent-Length: 5\n\nhello", "hello"},
		"a folded header":          {head + "Content-Type: a\r\n X-Api-Key: canary\r\nContent-Length: 5\r\n\r\nhello", "*"},
		"a header with a return":   {head + "Content-Type: a\rX-Api-Key: canary\r\nContent-Length: 5\r\n\r\nhello", "-"},
		"a header with a zero":     {head + "Content-Type: a\x00b\r\nContent-Length: 5\r\n\r\nhello", "-"},
		"two hosts":                {head + "Host: y\r\nContent-Length: 5\r\n\r\nhello", "-"},
		"HTTP/1.0, chunked":        {"POST " + chat + " HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked + second, "*"},
		"a request in the body":    {head + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(second)) + second, second},
	} {
		_ = send(t, g.server.URL, strings.Replace(c.request, "Host: x\r\n", "Host: x\r\nConnection: close\r\n", 1))
		got, n := rec.take()
		_, body, _ := strings.Cut(got, "\r\n\r\n")
		headers := strings.TrimSuffix(got, body)
		switch {
		case c.body == "-" && got != "":
			t.Errorf("%s: the upstream got %q", name, got)
		case c.body != "-" && c.body != "*" && (n != 1 || body != c.body):
			t.Errorf("%s: the upstream got %d requests: %q", name, n, got)
		case n > 1 || strings.Contains(headers, "canary") && c.body != "*" || strings.Contains(headers, "Transfer-Encoding"):
			t.Errorf("%s: the upstream got %d requests: %q", name, n, got)
		case got != "" && !strings.Contains(headers, fmt.Sprintf("Content-Length: %d\r\n", len(body))):
			t.Errorf("%s: the upstream got a length that is not the body's: %q", name, got)
		}
		for _, line := range strings.Split(headers, "\r\n") {
			if strings.HasPrefix(line, "X-Api-Key") {
				t.Errorf("%s: a header was put in: %q", name, got)
			}
		}
	}
}

func TestHeadersOfTheUpstreamStayThere(t *testing.T) {
	url := raw(t, func(conn net.Conn) {
		_, _ = io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nSet-Cookie: canary\r\nLink: canary\r\n\r\n"+
			"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: canary\r\nServer: canary\r\nX-Payment-Response: canary\r\n"+
			"Www-Authenticate: canary\r\nConnection: X-Hop\r\nX-Hop: canary\r\nAccess-Control-Allow-Origin: canary\r\nTrailer: X-Late\r\n"+
			"Transfer-Encoding: chunked\r\nX-Request-Id: kept\r\n\r\n2\r\n{}\r\n0\r\nX-Late: canary\r\nX-Unannounced: canary\r\n\r\n")
	})
	g := rigAt(t, url, nil)
	g.server.Config.Handler = before(g.server.Config.Handler, func(w http.ResponseWriter) { w.Header().Set("X-Of-The-Gateway", "kept") })
	got := send(t, g.server.URL, "POST "+chat+" HTTP/1.1\r\nHost: x\r\nTe: trailers\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
	if strings.Contains(strings.ToLower(got), "canary") || strings.Count(got, "HTTP/1.1") != 1 {
		t.Errorf("the client got %q", got)
	}
	if !strings.Contains(got, "X-Request-Id: kept") || !strings.Contains(got, "X-Of-The-Gateway: kept") || !strings.Contains(got, "X-Content-Type-Options: nosniff") {
		t.Errorf("the client got %q", got)
	}
	g.want(t, Completed, "")
}

func before(h http.Handler, do func(http.ResponseWriter)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		do(w)
		h.ServeHTTP(w, r)
	})
}

func TestBodiesAreBounded(t *testing.T) {
	rec, at := newRecorder(t)
	g := rigAt(t, at, func(c *Config) { c.MaxBody, c.BodyMemory, c.BodyTimeout = 100<<10, 150<<10, 300*time.Millisecond })
	post := func(headers, body string) string {
		return send(t, g.server.URL, "POST "+chat+" HTTP/1.1\r\nHost: x\r\n"+headers+"\r\n\r\n"+body)
	}
	big := strings.Repeat("x", 101<<10)
	for _, c := range []struct {
		headers, body, status string
		reason                Reason
	}{
		{"Content-Length: 200000", "", "413", TooLarge},
		{"Transfer-Encoding: chunked", fmt.Sprintf("%x\r\n%s\r\n", len(big), big), "413", TooLarge},
		{"Content-Length: 20", "slow", "408", SlowBody},
		{"Content-Length: 2\r\nContent-Encoding: gzip", "{}", "415", BadBody},
		{"Transfer-Encoding: chunked", "zz\r\n", "400", BadBody},
	} {
		if got := post(c.headers, c.body); !strings.HasPrefix(got, "HTTP/1.1 "+c.status) || !strings.Contains(got, "Connection: close") {
			t.Errorf("%s is answered with %q", c.headers, got)
		}
		g.want(t, Rejected, c.reason)
	}
	if got := send(t, g.server.URL, "GET /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"); !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("a body where there is none is answered with %q", got)
	}
	g.want(t, Rejected, BadBody)

	hold, err := net.Dial("tcp", g.server.Listener.Addr().String()) // half of a body holds memory
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	_, _ = io.WriteString(hold, "POST "+chat+" HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("x", 90<<10))
	for g.proxy.bodies.Load() < 64<<10 {
		time.Sleep(time.Millisecond)
	}
	if got := post("Content-Length: 100000", big[:100000]); !strings.HasPrefix(got, "HTTP/1.1 503") || !strings.Contains(got, "Retry-After: 1") {
		t.Errorf("a body for which there is no memory is answered with %q", got)
	}
	for range 2 {
		if r := g.result(t); r.Outcome != Rejected {
			t.Errorf("the requests ended as %v", r)
		}
	}
	if held := g.proxy.bodies.Load(); held != 0 {
		t.Errorf("%d bytes are held", held)
	}
	for _, c := range []string{"POST /nowhere", "POST " + chat + " HTTP/1.1\r\nContent-Encoding: gzip\r\nX: x"} { // nor does one hold a connection
		conn, err := net.Dial("tcp", g.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		request := strings.Replace(c, "nowhere", "nowhere HTTP/1.1\r\nX: x", 1) + "\r\nHost: x\r\nContent-Length: 1000\r\n\r\nslow"
		_, _ = io.WriteString(conn, request)
		_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
		if got, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 4") {
			t.Errorf("%s: the connection is open: %q, %v", c, got, err)
		}
		_ = conn.Close()
		_ = g.result(t)
	}
	if got, _ := rec.take(); got != "" {
		t.Errorf("the upstream got %q", got)
	}
}

func TestWorkInTheBackgroundIsRefused(t *testing.T) {
	rec, at := newRecorder(t)
	g := rigAt(t, at, nil)
	for body, want := range map[string]Reason{
		`{"input":"x","background":true}`:                   Background,
		`{"b\u0061ckground":true}`:                          Background,
		`{"background":1}`:                                  Background,
		`{"background":false,"background":true}`:            Background,
		`{"background":false}`:                              "",
		`{"background":null,"input":"\"background\":true"}`: "",
		`{"input":[{"background":true}]}`:                   "",
		`{"background":true`:                                BadBody,
		`{"background":true,"top_p":NaN}`:                   BadBody,
		"\xff\xfe{\x00}\x00":                                BadBody,
	} {
		res, _, err := g.post(t, "/v1/responses", body)
		if err != nil {
			t.Fatal(err)
		}
		r := g.result(t)
		if _, n := rec.take(); r.Reason != want || (want == "") != (n == 1) || (want == "") != (res.StatusCode == 200) {
			t.Errorf("%q is answered with %d, and ended as %v", body, res.StatusCode, r)
		}
	}
	if held := g.proxy.bodies.Load(); held != 0 {
		t.Errorf("%d bytes are held", held)
	}
}
