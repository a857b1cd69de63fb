package upstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// sink is a log that many write.
type sink struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.Write(p)
}

// ways are what an upstream can send, good and bad, with X for its words.
var ways = map[string]string{
	"whole":         "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nX",
	"short":         "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nX",
	"bad chunk":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nX\r\n",
	"bad chunk 2":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nX",
	"bad status":    "HTTP/1.1 X\r\n\r\n",
	"bad version":   "X 200 OK\r\n\r\n",
	"bad header":    "HTTP/1.1 200 OK\r\nX\r\n\r\n",
	"bad header 2":  "HTTP/1.1 200 OK\r\nA B: X\r\n\r\n",
	"bad length":    "HTTP/1.1 200 OK\r\nContent-Length: X\r\n\r\n",
	"bad coding":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: X\r\n\r\n",
	"bad encoding":  "HTTP/1.1 200 OK\r\nContent-Encoding: X\r\n\r\n",
	"redirect":      "HTTP/1.1 302 X\r\nLocation: http://X/\r\nContent-Length: 0\r\n\r\n",
	"unauthorized":  "HTTP/1.1 401 X\r\nWww-Authenticate: X\r\nContent-Length: 12\r\n\r\nX",
	"500":           "HTTP/1.1 500 X\r\nContent-Length: 12\r\n\r\nX",
	"error event":   "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"error\":{\"message\":\"X\"}}\n\n",
	"event, cut":    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n20\r\ndata: {\"error\":{\"message\":\"X",
	"bad type":      "HTTP/1.1 200 OK\r\nContent-Type: X;;;=\r\n\r\nX",
	"protocol":      "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: X\r\n\r\nX",
	"interim":       "HTTP/1.1 1999 X\r\n\r\n",
	"nothing":       "",
	"too many":      "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("X", 10000) + "\r\n\r\n",
	"unread answer": "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nX and more X that nobody asked for X",
}

// TestNothingSaysWhatWasSaid sends words through every way in which a request can end, and looks for them in what is logged, in
// the results, and in errors that are answered in the upstream's place.
func TestNothingSaysWhatWasSaid(t *testing.T) {
	const prompt, reply, key, ours = "canary-prompt", "canary-reply", "canary-key", "canary-ours"
	var logs sink
	log.SetOutput(&logs)
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer func() { log.SetOutput(os.Stderr); slog.SetDefault(old) }()

	var said strings.Builder
	for name, way := range ways {
		g := rigAt(t, raw(t, func(conn net.Conn) { _, _ = io.WriteString(conn, strings.ReplaceAll(way, "X", reply)) }), func(c *Config) {
			c.Credential = http.Header{"Authorization": {ours}}
			c.Prefixes = []Prefix{{Path: "/custom", Query: []string{"q"}}}
		})
		g.server.Config.ErrorLog = log.New(&logs, "", 0)
		for _, path := range []string{chat, "/api/chat", "/custom/x?q=" + prompt + "&key=" + key, "/api/pull/" + prompt + "?" + key} {
			said.WriteString(name + ": " + g.say(t, path, prompt, key))
		}
		fmt.Fprintln(&said, g.proxy.Probe(t.Context()))
		_, err := g.proxy.Models(t.Context())
		fmt.Fprintln(&said, err)
	}
	for _, config := range []Config{
		{URL: "http://" + key + ":" + key + "@x"}, {URL: "http://x/?" + key, APIs: []API{OpenAI}}, {URL: key + "://x"}, {URL: "http://[" + key},
		{URL: "http://x", APIs: []API{OpenAI}, Credential: http.Header{"X": {key + "\n"}}},
	} {
		_, err := New(config)
		fmt.Fprintln(&said, err)
	}
	logs.mu.Lock()
	defer logs.mu.Unlock()
	for _, where := range []string{logs.all.String(), said.String()} {
		for line := range strings.SplitSeq(where, "\n") {
			for _, word := range []string{prompt, reply, key, ours} {
				if strings.Contains(line, word) || strings.Contains(line, url.QueryEscape(word)) {
					t.Errorf("%s is in %q", word, line)
				}
			}
		}
	}
	t.Logf("%d bytes were said, %d logged", said.Len(), logs.all.Len())
}

// say sends a prompt, and returns what the proxy says about it: its result, and what it answers in the upstream's place.
func (g *rig) say(t *testing.T, path, prompt, key string) (said string) {
	r, _ := http.NewRequest("POST", g.server.URL+path, strings.NewReader(prompt))
	r.Header.Set("Authorization", key)
	if res, err := http.DefaultClient.Do(r); err == nil {
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if strings.Contains(string(body), `"type":"upstream"`) || res.StatusCode == 502 || res.StatusCode == 404 {
			said = string(body)
		}
	}
	result := g.result(t)
	return said + fmt.Sprintf("%v %+v\n", result, result)
}

// TestNothingIsLeft: 1,000 requests, of which half are aborted at some moment, leave neither goroutines nor descriptors nor memory.
func TestNothingIsLeft(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 5 {
			events(w, chunkText)
			time.Sleep(2 * time.Millisecond)
		}
		events(w, chunkEnd, done)
	}))
	defer upstream.Close()
	g := rigAt(t, upstream.URL, nil)
	run := func(count int) {
		var all sync.WaitGroup
		turns := make(chan struct{}, 32)
		for n := range count {
			turns <- struct{}{}
			all.Go(func() { g.half(t, n); <-turns })
		}
		all.Wait()
	}
	left := func() (int, int) {
		time.Sleep(300 * time.Millisecond)
		open, _ := os.ReadDir("/proc/self/fd")
		return runtime.NumGoroutine(), len(open)
	}
	run(50)
	goroutines, descriptors := left()
	run(1000)
	var nowGoroutines, nowDescriptors int
	for range 20 {
		if nowGoroutines, nowDescriptors = left(); nowGoroutines <= goroutines && nowDescriptors <= descriptors {
			break
		}
	}
	ends := make(map[Outcome]int)
	for len(g.results) > 0 {
		r := <-g.results
		ends[r.Outcome]++
		if r.Outcome == Failed {
			t.Errorf("a request ended as %v", r)
		}
	}
	t.Logf("goroutines %d before, %d after; descriptors %d, %d; ends %v", goroutines, nowGoroutines, descriptors, nowDescriptors, ends)
	if nowGoroutines > goroutines+2 || nowDescriptors > descriptors+2 {
		t.Error("something is left")
	}
	if held := g.proxy.bodies.Load(); held != 0 {
		t.Errorf("%d bytes are held", held)
	}
}

// half sends a request; each second one is aborted at some moment.
func (g *rig) half(t *testing.T, n int) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if n%2 == 1 {
		defer time.AfterFunc(time.Duration(n%20)*time.Millisecond, cancel).Stop()
	}
	r, _ := http.NewRequestWithContext(ctx, "POST", g.server.URL+chat, strings.NewReader(strings.Repeat("x", 10000)))
	if res, err := client.Do(r); err == nil {
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
}
