package upstream

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }

// send writes a request as it is over TCP, and returns what comes back until the connection ends or is silent.
func send(t testing.TB, at, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(at, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	all, _ := io.ReadAll(conn)
	return string(all)
}

// tricks are other ways to write a path, of which servers make the path.
func tricks(p string) []string {
	first, rest, _ := strings.Cut(p[1:], "/")
	last := path.Base(p)
	hex := func(s string) string {
		var b strings.Builder
		for _, c := range []byte(s) {
			fmt.Fprintf(&b, "%%%02x", c)
		}
		return b.String()
	}
	return []string{
		p, p + "/", p + "//", p + ".", p + "/.", p + "/..", p + ";", p + ";a=b", p + "%20", p + "%00", p + "?x", p + "%3f", p + "%23",
		p + "/../" + last, "/" + p, "//" + p[1:], "/." + p, "/.." + p, "/%2e" + p, "/%2e%2e" + p, "/%2E%2E/" + p, "/./" + p[1:],
		"/v1/models/.." + p, "/v1/models/../.." + p, "/v1/models/%2e%2e" + p, "/v1/models/..%2f.." + p, "/v1/models/x/../../.." + p,
		"/v1/models/..;/.." + p, "/v1/models/x;/../.." + p, "/v1/chat/completions/../../.." + p, "/v1/chat/completions" + p,
		"/v1/chat/completions;" + p, "/v1/chat/completions%2f.." + p, "/v1/chat/completions%3f/../.." + p, "/v1/chat/completions%00" + p,
		"/api/tags/../.." + p, "/api/tags%2f..%2f.." + p, "/" + strings.ToUpper(p[1:]), "/" + strings.ToUpper(p[1:2]) + p[2:],
		"/" + hex(p[1:]), "/" + hex(p[1:2]) + p[2:], "/" + first + "%2f" + rest, "/" + first + "%2F" + rest, "/" + first + "%5c" + rest,
		"/" + first + `\` + rest, "/" + first + "/./" + rest, "/" + first + "//" + rest, "/" + first + "/%2e/" + rest, "/" + first + "/x/../" + rest,
		"http://evil.example" + p, "http://127.0.0.1:1" + p, "/custom/.." + p, "/custom/%2e%2e" + p, "/custom%2f.." + p, "/custom/..;" + p,
	}
}

func TestControlRoutesAreNotServed(t *testing.T) {
	var reached atomic.Pointer[string]
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached.Store(&r.RequestURI) }), func(c *Config) {
		c.Prefixes = []Prefix{{Path: "/custom", Methods: []string{"GET", "POST", "PUT", "DELETE"}, Query: []string{"q"}}}
	})
	tried := 0
	for _, engine := range controlRoutes {
		for _, control := range engine {
			for _, written := range append(tricks(control), tricks(control+"/x")...) {
				for _, method := range []string{"GET", "POST", "DELETE"} {
					u, err := url.ParseRequestURI(written)
					if err != nil {
						continue // net/http answers 400
					}
					tried++
					route, ok := g.proxy.routes.match(&http.Request{Method: method, URL: u})
					if ok && !strings.HasPrefix(route.Path, "/custom/") && !strings.HasPrefix(route.Path, oneModel) {
						t.Errorf("%s %s is passed on as %s", method, written, route.Path)
					}
					if ok && !plain(route.Path) {
						t.Errorf("%s %s is passed on as %s", method, written, route.Path)
					}
				}
			}
		}
	}
	t.Logf("%d requests for control routes", tried)
	for _, control := range []string{"/api/pull", "/sleep", "/slots", "/v1/load_lora_adapter", "/props", "/metrics"} { // over TCP
		for _, written := range tricks(control) {
			reached.Store(nil)
			_ = send(t, g.server.URL, "POST "+written+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			if at := reached.Load(); at != nil {
				t.Errorf("%s got to the upstream as %s", written, *at)
			}
		}
	}
}

func TestRoutesOfClientsAreServed(t *testing.T) {
	g := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Method+" "+r.RequestURI) }), func(c *Config) {
		c.Prefixes = []Prefix{{Path: "/generate", Query: []string{"seed"}}, {Path: "/view", Methods: []string{"GET"}}}
	})
	for asked, want := range map[string]string{
		"GET /v1/models":                         "GET /v1/models",
		"GET /v1/models/Qwen/Qwen3-8B:free":      "GET /v1/models/Qwen/Qwen3-8B:free",
		"POST /v1/messages?beta=true":            "POST /v1/messages",
		"POST /api/chat?key=secret":              "POST /api/chat",
		"POST /generate?seed=1&api_key=secret":   "POST /generate?seed=1",
		"POST /generate/x?seed=%26a%3db":         "POST /generate/x?seed=%26a%3Db",
		"POST http://evil.example/v1/embeddings": "POST /v1/embeddings",
		"GET /view/a.png":                        "GET /view/a.png",
		"POST /view/a.png":                       "",
		"POST /v1/chat%2fcompletions":            "",
		"POST /v1/chat/%63ompletions":            "",
		"POST /V1/chat/completions":              "",
		"POST /v1/chat/completions/":             "",
		"POST /v1/models":                        "",
		"GET /v1/chat/completions":               "",
		"DELETE /v1/models/x":                    "",
		"POST /generatex":                        "",
		"POST /generate/../api/pull":             "",
		"POST /generate/sleep":                   "POST /generate/sleep",
		"OPTIONS *":                              "",
		"CONNECT evil.example:443":               "",
		"GET /":                                  "",
	} {
		method, target, _ := strings.Cut(asked, " ")
		got := send(t, g.server.URL, method+" "+target+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		if want == "" && !strings.HasPrefix(got, "HTTP/1.1 404") && asked != "OPTIONS *" || want != "" && !strings.HasSuffix(got, want) {
			t.Errorf("%s is answered with %q, not %q", asked, got, want)
		}
	}
	for _, known := range slices.Concat(openAI, ollama) {
		method, target, _ := strings.Cut(known, " ")
		if !g.proxy.Serves(&http.Request{Method: method, URL: &url.URL{Path: target}}) {
			t.Errorf("%s is a control route", known)
		}
	}
}

func TestPrefixesThatReachControlRoutesAreRefused(t *testing.T) {
	for _, prefix := range []string{"", "/", "/api", "/v1", "/api/", "/api/pull", "/API/Pull", "/sleep", "/metrics/x", "/v2", "/slots", "x", "/a/../b", "/a%2fb", "/a//b", "/a."} {
		if _, err := New(Config{URL: "http://127.0.0.1:1", Prefixes: []Prefix{{Path: prefix}}}); err == nil {
			t.Errorf("prefix %q is taken", prefix)
		}
	}
	for _, config := range []Config{
		{URL: "http://127.0.0.1:1"},
		{URL: "http://127.0.0.1:1/api", Prefixes: []Prefix{{Path: "/pull"}}},
		{URL: "127.0.0.1:1", APIs: []API{OpenAI}},
		{URL: "http://u:p@127.0.0.1:1", APIs: []API{OpenAI}},
		{URL: "http://127.0.0.1:1/?key=x", APIs: []API{OpenAI}},
		{URL: "http://127.0.0.1:1", APIs: []API{"other"}},
		{URL: "http://127.0.0.1:1", APIs: []API{OpenAI}, Credential: http.Header{"Authorization": {"Bearer x\r\nX: y"}}},
		{URL: "http://127.0.0.1:1", APIs: []API{OpenAI}, Credential: http.Header{"Host": {"x"}}},
		{URL: "http://127.0.0.1:1", APIs: []API{OpenAI}, Prefixes: []Prefix{{Path: "/x", Methods: []string{"CONNECT"}}}},
	} {
		if _, err := New(config); err == nil {
			t.Errorf("%+v is taken", config)
		}
	}
}

// FuzzMatch: what is passed on has one reading, is what was asked for, and is on the list.
func FuzzMatch(f *testing.F) {
	for _, control := range []string{"/api/pull", "/v1/load_lora_adapter"} {
		for _, written := range tricks(control) {
			f.Add("POST", written)
		}
	}
	for _, known := range slices.Concat(openAI, ollama) {
		method, target, _ := strings.Cut(known, " ")
		f.Add(method, target)
	}
	f.Add("GET", "/v1/models/a/b")
	served, err := newRoutes("", []API{OpenAI, Ollama}, []Prefix{{Path: "/custom", Query: []string{"q"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		route, ok := served.match(&http.Request{Method: method, URL: u})
		if !ok {
			return
		}
		known := slices.Contains(openAI, method+" "+route.Path) || slices.Contains(ollama, method+" "+route.Path)
		below := strings.HasPrefix(route.Path, "/v1/models/") && method == "GET" || route.Path == "/custom" || strings.HasPrefix(route.Path, "/custom/")
		if !known && !below || controls(route.Path) {
			t.Errorf("%s %q is passed on as %q", method, target, route.Path)
		}
		if path.Clean(route.Path) != route.Path || (&url.URL{Path: route.Path}).EscapedPath() != route.Path || strings.ContainsAny(route.Path, "%;\\?# ") {
			t.Errorf("%q has more than one reading", route.Path)
		}
		if raw, _, _ := strings.Cut(target, "?"); !strings.HasSuffix(raw, route.Path) {
			t.Errorf("%q is passed on as %q", target, route.Path)
		}
	})
}
