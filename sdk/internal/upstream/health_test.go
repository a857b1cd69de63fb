package upstream

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// hasten has a proxy's probes be ten times as fast.
func (p *Proxy) hasten() { p.every, p.patience = p.every/10, p.patience/10 }

// watch follows the health of a proxy.
func watch(t *testing.T, p *Proxy) <-chan Health {
	told := make(chan Health, 10)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { p.Watch(ctx, func(h Health) { told <- h }); close(over) }()
	t.Cleanup(func() { cancel(); <-over })
	return told
}

func next(t *testing.T, told <-chan Health, up bool, within time.Duration) Health {
	t.Helper()
	select {
	case h := <-told:
		if h.Up != up || (h.Err == nil) != up {
			t.Fatalf("the upstream is told to be %+v", h)
		}
		return h
	case <-time.After(within):
		t.Fatalf("nothing was told within %v", within)
		return Health{}
	}
}

func TestHealthIsToldWithinTenSeconds(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(w http.ResponseWriter, r *http.Request){
		"silent":  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"503":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, // llama.cpp, SGLang while they load
		"cut":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"sent on": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusFound) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sick atomic.Bool
			var asked atomic.Pointer[string]
			g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				at := r.Method + " " + r.URL.Path + " " + r.Header.Get("Authorization")
				asked.Store(&at)
				if sick.Load() {
					fail(w, r)
				}
			}), func(c *Config) { c.HealthPath = "/health" })
			if name != "silent" { // the slowest is timed as it is
				g.proxy.hasten()
			}
			told := watch(t, g.proxy)
			next(t, told, true, 2*time.Second)
			if *asked.Load() != "GET /health Bearer "+ownKey {
				t.Errorf("the upstream was asked for %q", *asked.Load())
			}
			time.Sleep(100 * time.Millisecond)
			sick.Store(true)
			began := time.Now()
			h := next(t, told, false, 10*time.Second)
			t.Logf("%s: noticed after %v: %v", name, time.Since(began).Round(time.Millisecond), h.Err)
			sick.Store(false)
			next(t, told, true, 10*time.Second)
		})
	}
}

// TestAFailedRequestIsLookedInto: an upstream that has gone is noticed by the request that it refuses, not at the next probe.
func TestAFailedRequestIsLookedInto(t *testing.T) {
	behind := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	g := rigAt(t, behind.URL, nil)
	told := watch(t, g.proxy)
	next(t, told, true, 2*time.Second)
	time.Sleep(300 * time.Millisecond)
	behind.Close()
	if _, _, err := g.post(t, chat, "{}"); err != nil {
		t.Fatal(err)
	}
	g.want(t, Failed, Unreachable)
	next(t, told, false, 1500*time.Millisecond)
}

// TestABusyUpstreamIsNotDown: one that is too busy to say that it works, but streams, works.
func TestABusyUpstreamIsNotDown(t *testing.T) {
	var busy atomic.Bool
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			if busy.Load() {
				hang(r)
			}
			return
		}
		for r.Context().Err() == nil {
			events(w, chunkText)
			time.Sleep(100 * time.Millisecond)
		}
	}), nil)
	g.proxy.hasten()
	told := watch(t, g.proxy)
	next(t, told, true, 2*time.Second)
	busy.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	r, _ := http.NewRequestWithContext(ctx, "POST", g.server.URL+chat, strings.NewReader("{}"))
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	select {
	case h := <-told:
		t.Errorf("it is told to be %+v", h)
	default:
	}
	next(t, told, false, 5*time.Second)
}

func TestModelsAreListed(t *testing.T) {
	answers := map[string]string{
		"/v1/models": `{"object":"list","data":[{"id":"Qwen/Qwen3-8B","object":"model"},{"id":"lora"}],"models":[{"name":"Qwen/Qwen3-8B"}]}`,
		"/api/tags":  `{"models":[{"name":"llama3.2:latest","size":1}]}`,
	}
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answers[r.URL.Path])
	}), nil)
	if got, err := g.proxy.Models(t.Context()); err != nil || !slices.Equal(got, []string{"Qwen/Qwen3-8B", "lora"}) {
		t.Errorf("the models are %q: %v", got, err)
	}
	for path, want := range answers {
		res, err := http.Get(g.server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if string(got) != want {
			t.Errorf("%s is passed through as %q", path, got)
		}
		g.want(t, Completed, "")
	}
	only := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, answers[r.URL.Path]) }), func(c *Config) { c.APIs = []API{Ollama} })
	if got, err := only.proxy.Models(t.Context()); err != nil || !slices.Equal(got, []string{"llama3.2:latest"}) {
		t.Errorf("the models are %q: %v", got, err)
	}
	answers["/api/tags"] = `canary`
	if _, err := only.proxy.Models(t.Context()); err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("no list is %v", err)
	}
	none := rigAt(t, raw(t, func(conn net.Conn) { _, _ = io.WriteString(conn, "HTTP/1.1 canary\r\n\r\n") }), nil)
	if err := none.proxy.Probe(t.Context()); err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("no HTTP is %v", err)
	}
}

// TestModelsOfALiar: of a list that a server lies in names are left that can be shown, each once, and not more than fit.
func TestModelsOfALiar(t *testing.T) {
	many := make([]string, 3000)
	for i := range many {
		many[i] = fmt.Sprintf(`{"id":"%d%s"}`, i, strings.Repeat("x", 96))
	}
	var answer string
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/tags" && answer == "" {
			_, _ = io.WriteString(w, `{"models":[{"name":"llama3.2:latest"}]}`)
			return
		}
		_, _ = io.WriteString(w, answer)
	}), nil)
	for name, c := range map[string]struct {
		answer string
		want   []string
	}{
		"none, and ollama's":  {"", []string{"llama3.2:latest"}},
		"twice, and empty":    {`{"data":[{"id":"a"},{"id":""},{"id":"a"},{},{"id":"b"}]}`, []string{"a", "b"}},
		"what steers":         {`{"data":[{"id":"a\u001b[31m"},{"id":"a\nb"},{"id":"a\u202eb"},{"id":"b"}]}`, []string{"b"}},
		"no UTF-8":            {"{\"data\":[{\"id\":\"a\xff\"},{\"id\":\"\\ud800\"},{\"id\":\"b\"}]}", []string{"b"}},
		"markup":              {`{"data":[{"id":"<script>"}]}`, []string{"<script>"}},
		"long":                {`{"data":[{"id":"` + strings.Repeat("x", 257) + `"},{"id":"` + strings.Repeat("y", 256) + `"}]}`, []string{strings.Repeat("y", 256)}},
		"no names":            {`{"data":[]}`, nil},
		"more than is shown":  {`{"data":[` + strings.Join(many, ",") + `]}`, nil},
		"more than is read":   {`{"data":[{"id":"a"},{"id":"` + strings.Repeat("x", 2<<20) + `"}]}`, nil},
		"another type":        {`{"data":{"id":"a"}}`, nil},
		"deeper than is read": {strings.Repeat(`{"data":[`, 20_000), nil},
	} {
		answer = c.answer
		got, err := g.proxy.Models(t.Context())
		switch {
		case name == "more than is shown":
			all := len(strings.Join(got, ""))
			if err != nil || len(got) < 500 || all > maxNames || len(got) > maxModels {
				t.Errorf("%s: %d names of %d bytes, %v", name, len(got), all, err)
			}
		case !slices.Equal(got, c.want):
			t.Errorf("%s: %.300q, %v", name, got, err)
		}
	}
}
