package sidecar_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
)

// asked is an inference server that keeps what it was asked for.
type asked struct {
	mu  sync.Mutex
	all []string
}

func (a *asked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/models" && r.Header.Get("Accept-Encoding") == "identity" && r.Method == http.MethodGet {
		_, _ = io.WriteString(w, `{"data":[{"id":"test"}]}`)
		return
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 100))
	a.mu.Lock()
	a.all = append(a.all, r.Method+" "+r.RequestURI+" "+string(body)+" "+r.Header.Get("X-Canary"))
	a.mu.Unlock()
	_, _ = io.WriteString(w, `{"choices":[]}`)
}

func (a *asked) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.all
	a.all = nil
	return all
}

// speak sends bytes as they are, and returns the status of each answer until the connection ends or is silent.
func (s *shop) speak(text string) (statuses []int) {
	conn, err := net.Dial("tcp", s.site.Listener.Addr().String())
	if err != nil {
		s.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	go func() { _, _ = io.WriteString(conn, text) }()
	for from := bufio.NewReader(conn); ; {
		res, err := http.ReadResponse(from, nil)
		if err != nil {
			return statuses
		}
		_, _ = io.Copy(io.Discard, res.Body)
		statuses = append(statuses, res.StatusCode)
		_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
	}
}

// TestHostileRenters: who pays reaches the routes that are sold, and by no spelling any other; a request is one request, of the lease whose
// token it has, whatever is around it. How requests are framed anew for the inference server, byte by byte, is in sdk/internal/upstream.
func TestHostileRenters(t *testing.T) {
	engine := new(asked)
	server := httptest.NewServer(engine)
	t.Cleanup(server.Close)
	s := newShop(t, func(c *sidecar.Config) {
		c.Upstream, c.OllamaAPI, c.HealthPath, c.Provider.Terms.Credit = server.URL, true, "/v1/models", 30*time.Second
	})
	g, over := s.guest(renter.Options{}), s.guest(renter.Options{})
	token, old := g.bearer(), over.bearer()
	over.close(s.chain)
	engine.take()
	const chat, body = "/v1/chat/completions", "Content-Length: 2\r\n\r\n{}"
	post := func(path, headers, rest string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\n" + headers + rest
	}
	as := func(header string) string {
		return "POST " + chat + " HTTP/1.1\r\nHost: x\r\n" + header + "\r\n" + body
	}
	second := "POST /api/pull HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\nContent-Length: 0\r\n\r\n"
	for name, c := range map[string]struct {
		send   string
		status int  // of the first answer; 0: any but 200
		served bool // whether the inference server was asked, once, for what is sold
	}{
		"itself":                      {post(chat, "", body), 200, true},
		"a query":                     {post(chat+"?x=/api/pull", "", body), 200, true},
		"an absolute URI":             {post("http://inside.example"+chat, "", body), 200, true},
		"an admin route":              {post("/api/pull", "", body), 404, false},
		"dot segments":                {post("/v1/../api/pull", "", body), 0, false},
		"dots within what is sold":    {post(chat+"/../../../api/delete", "", body), 0, false},
		"a dot":                       {post("/v1/./chat/completions", "", body), 0, false},
		"encoded dots":                {post("/v1/models/%2e%2e/load_lora_adapter", "", body), 0, false},
		"double encoded":              {post("/v1/%252e%252e/api/pull", "", body), 0, false},
		"an encoded letter":           {post("/api/%70ull", "", body), 0, false},
		"an encoded slash":            {post("/api%2fpull", "", body), 0, false},
		"double slashes":              {post("//api/pull", "", body), 0, false},
		"double slashes within":       {post("/api//pull", "", body), 0, false},
		"a backslash":                 {post(`/v1\..\api\pull`, "", body), 0, false},
		"a parameter":                 {post(chat+";/../api/pull", "", body), 0, false},
		"upper case":                  {post("/API/PULL", "", body), 0, false},
		"upper case of what is sold":  {post("/V1/Chat/Completions", "", body), 0, false},
		"an absolute URI of a route":  {post("http://127.0.0.1/api/pull", "", body), 0, false},
		"a lora adapter":              {post("/v1/load_lora_adapter", "", body), 0, false},
		"below what is sold":          {post(chat+"/control", "", body), 0, false},
		"a zero byte":                 {post(chat+"\x00", "", body), 0, false},
		"a space":                     {post(chat+" /api/pull", "", body), 0, false},
		"another method":              {strings.Replace(post(chat, "", body), "POST", "DELETE", 1), 0, false},
		"a tunnel":                    {"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\n\r\n", 0, false},
		"HTTP/2 without TLS":          {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, false},
		"both lengths":                {post(chat, "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", ""), 200, true},
		"two lengths":                 {post(chat, "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", second), 400, false},
		"a length twice":              {post(chat, "Content-Length: 2\r\n", body), 200, true},
		"a chunk's extension":         {post(chat, "Transfer-Encoding: chunked\r\n\r\n2;x=\"\\\"\"\r\n{}\r\n0\r\n\r\n", ""), 200, true},
		"a folded token":              {as("Authorization: Bearer\r\n " + token), 0, true},
		"a request in the body":       {post(chat, fmt.Sprintf("Content-Length: %d\r\n\r\n", len(second)), second), 200, true},
		"a header put in":             {post(chat, "Content-Type: a\rX-Canary: 1\r\n", body), 0, false},
		"hop-by-hop":                  {post(chat, "Connection: close, X-Canary, Content-Length\r\nX-Canary: 1\r\nUpgrade: h2c\r\n", body), 200, true},
		"an expectation":              {post(chat, "Expect: 200-ok\r\n", body), 0, false},
		"no token":                    {as("X: y"), 401, false},
		"a token of a lease before":   {as("Authorization: Bearer " + old), 401, false},
		"a part of a token":           {as("Authorization: Bearer " + token[:len(token)-1]), 401, false},
		"more than a token":           {as("Authorization: Bearer " + token + "0"), 401, false},
		"another token first":         {as("Authorization: Bearer " + old + "\r\nAuthorization: Bearer " + token), 401, false},
		"a token as a password":       {as("Authorization: Basic " + token), 401, false},
		"a token in the URI":          {"POST " + chat + "?token=" + token + " HTTP/1.1\r\nHost: x\r\n" + body, 401, false},
		"no number":                   {post(chat, "Gpupay-Request: 0\r\n", body), 400, false},
		"a negative number":           {post(chat, "Gpupay-Request: -1\r\n", body), 400, false},
		"two numbers":                 {post(chat, "Gpupay-Request: 1, 2\r\n", body), 400, false},
		"a number of 2^64":            {post(chat, "Gpupay-Request: 18446744073709551616\r\n", body), 400, false},
		"100 MB that are said":        {post(chat, "Content-Length: 104857600\r\n\r\n", ""), 413, false},
		"100 MB in pieces":            {post(chat, "Transfer-Encoding: chunked\r\n\r\n", strings.Repeat("100000\r\n"+strings.Repeat(" ", 1<<20)+"\r\n", 100)), 0, false}, // 413, if its client reads that before the reset
		"100 MB from nobody":          {"POST " + chat + " HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n" + strings.Repeat(" ", 1<<20), 401, false},
		"headers of more than 1 MiB":  {post(chat, "X: "+strings.Repeat("x", 2<<20)+"\r\n", body), 431, false},
		"a body where there is none":  {"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\n" + body, 400, false},
		"what is answered to no body": {post(chat, "Content-Encoding: gzip\r\n", body), 415, false},
	} {
		statuses := s.speak(c.send)
		if len(statuses) == 0 {
			statuses = []int{0}
		}
		if first := statuses[0]; c.status != 0 && first != c.status || c.status == 0 && !c.served && first == 200 {
			t.Errorf("%s: answered %d", name, statuses)
		}
		got := engine.take()
		for _, request := range got {
			if !strings.HasPrefix(request, "POST "+chat+" ") || strings.HasSuffix(request, " 1") {
				t.Errorf("%s: the inference server is asked for %.200q", name, request)
			}
		}
		if want := map[bool]int{true: 1}[c.served]; len(got) != want && (c.status != 0 || len(got) > want) {
			t.Errorf("%s: the inference server is asked %d times", name, len(got))
		}
	}
	if status := s.speak(post(chat, "", body)); len(status) == 0 || status[0] != http.StatusOK { // and its lease goes on
		t.Errorf("its lease is answered %d", status)
	}
}

// TestManyConnections: who opens connections and sends nothing whole, in a lease or in none, keeps no one out. GPUPAY_CONNECTIONS says how
// many; there are no more than the machine allows, of whose descriptors each has two here.
func TestManyConnections(t *testing.T) {
	n := 200
	if text := os.Getenv("GPUPAY_CONNECTIONS"); text != "" {
		n, _ = strconv.Atoi(text)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < uint64(2*n+500) {
		n = int(limit.Cur-500) / 2
		t.Logf("%d connections are all that the machine allows", n)
	}
	s := newShop(t)
	bad, good := s.guest(renter.Options{}), s.guest(renter.Options{})
	token := bad.bearer()
	var wait sync.WaitGroup
	turns := make(chan struct{}, 100)
	for i := range n {
		wait.Add(1)
		turns <- struct{}{}
		go func() {
			defer wait.Done()
			defer func() { <-turns }()
			conn, err := net.Dial("tcp", s.site.Listener.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			text := "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\nContent-Length: 100\r\n\r\n{"
			_, _ = io.WriteString(conn, text[:len(text)-i%2*20]) // one waits with its body, the next one with its headers
		}()
	}
	wait.Wait()
	if took := good.must(10); took > 3*time.Second {
		t.Errorf("beside %d connections a request took %s", n, took)
	}
}
