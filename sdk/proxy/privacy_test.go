package proxy_test

import (
	"bytes"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/sdk/proxy"
)

const canary = "canary-7f3a"

// TestNothingIsKept: prompts, answers and keys of callers are in no log at any level, no request log, no metric, no status, no file and no error.
func TestNothingIsKept(t *testing.T) {
	t.Parallel()
	var log, requests locked
	dir := t.TempDir()
	keys, err := proxy.OpenKeys(filepath.Join(dir, "keys.json"), nil)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := keys.Add("ci", "1", nil)
	if err != nil {
		t.Fatal(err)
	}
	answers := func(w http.ResponseWriter, r *http.Request) {
		if streams(r) {
			say(w, canary)
			panic(http.ErrAbortHandler)
		}
		http.Error(w, `{"error":{"message":"`+canary+`"}}`, http.StatusInternalServerError)
	}
	d := newDesk(t, []*engine{newEngine(t, answers), newEngine(t, answers)}, func(c *proxy.Config, p *purse) {
		debug := &slog.HandlerOptions{Level: slog.LevelDebug - 4}
		c.Log, c.Requests, c.Keys = slog.New(slog.NewJSONHandler(&log, debug)), slog.New(slog.NewJSONHandler(&requests, debug)), keys
		for i := range p.endpoints {
			p.endpoints[i].Prefill = true
		}
	})
	var words strings.Builder
	for _, body := range []string{
		`{"model":"m","messages":[{"role":"user","content":"` + canary + `"}],"user":"` + canary + `"}`,
		`{"model":"m","stream":true,"messages":[{"role":"user","content":"` + canary + `"}]}`,
		`{"model":"m","stream":"` + canary + `"}`, `{"model":"m","` + canary, canary,
	} {
		a := d.post("/v1/chat/completions?"+canary, body, "Authorization", "Bearer "+secret, "X-Request-Id", canary)
		if a.StatusCode >= 400 {
			words.WriteString(a.text)
		} else if at := strings.Index(a.text, `data: {"error"`); at < 0 || a.Trailer.Get("X-Gpupay-Attempts") != "2" { // it was gone on with, in vain
			t.Errorf("%q %v", a.text, a.Trailer)
		} else {
			words.WriteString(a.text[at:])
		}
		d.post("/v1/chat/completions", body, "Authorization", "Bearer "+canary)
	}
	for name, h := range map[string]http.Handler{"metrics": d.server.Metrics(), "status": d.server.StatusHandler()} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1/", nil))
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "budget_left") {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		words.Write(w.Body.Bytes())
	}
	words.WriteString(log.String() + requests.String())
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			text, _ := os.ReadFile(path)
			words.Write(text)
		}
		return nil
	})
	if n := bytes.Count(requests.Bytes(), []byte("\n")); n != 10 || !strings.Contains(requests.String(), `"cost":"0.00"`) {
		t.Errorf("%d lines of 10 requests: %s", n, requests.String())
	}
	for _, line := range strings.Split(words.String(), "\n") {
		if strings.Contains(line, canary) || strings.Contains(line, secret[3:]) {
			t.Errorf("kept: %.300s", line)
		}
	}
}

// TestBrokenHTTPIsNotQuoted: a provider that answers a prompt with the prompt, instead of HTTP, has it in no log at any level: net/http's errors
// quote what came.
func TestBrokenHTTPIsNotQuoted(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"no status line": canary + "\r\n\r\n", "a bad status": "HTTP/1.1 " + canary + "\r\n\r\n", "a bad header": "HTTP/1.1 200 OK\r\n" + canary + "\r\n\r\n",
		"a bad length": "HTTP/1.1 200 OK\r\nContent-Length: " + canary + "\r\n\r\n", "a bad encoding": "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + canary + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log locked
			d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, _ *http.Request) {
				if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
					_, _ = conn.Write([]byte(answer))
					_ = conn.Close()
				}
			})}, func(c *proxy.Config, _ *purse) {
				c.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			})
			a := d.chat("")
			log.mu.Lock()
			defer log.mu.Unlock()
			if text := log.String() + a.text; strings.Contains(text, canary) || !strings.Contains(text, "a provider did not answer") {
				t.Errorf("%d, kept: %s", a.StatusCode, text)
			}
		})
	}
}
