package proxy_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/sdk/proxy"
)

// TestGuard: no web page spends the budget, under a name of its own or as itself.
func TestGuard(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, well)}, func(c *proxy.Config, _ *purse) {
		c.Hosts, c.Origins = []string{"gpu.lan"}, []string{"https://chat.example.org"}
	})
	for _, row := range []struct {
		host, origin string
		status       int
	}{
		{"", "", 200}, {"localhost:8420", "", 200}, {"LOCALHOST.", "", 200}, {"[::1]:8420", "", 200}, {"gpu.lan:1", "", 200}, {"127.0.0.1", "https://chat.example.org", 200},
		{"evil.example:8420", "", 403}, {"127.0.0.1.evil.example", "", 403}, {"localhost.evil.example", "", 403},
		{"", "https://evil.example", 403}, {"", "null", 403}, {"", "http://localhost:3000", 403}, {"", "https://chat.example.org.evil.example", 403},
	} {
		r, _ := http.NewRequest(http.MethodPost, d.site.URL+"/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[]}`))
		if r.Host = row.host; row.origin != "" {
			r.Header.Set("Origin", row.origin)
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != row.status {
			t.Errorf("Host %q, Origin %q: %d %s", row.host, row.origin, res.StatusCode, text)
		}
		if allowed := res.Header.Get("Access-Control-Allow-Origin"); (allowed != "") != (row.origin != "" && row.status == 200) {
			t.Errorf("Origin %q is allowed as %q", row.origin, allowed)
		}
	}
	if n := d.engines[0].asked.Load(); n != 6 {
		t.Errorf("%d requests reached a provider", n)
	}
}

// TestKeys: while there is no file of keys the loopback is open; with one nobody asks without a key, for a model that is not the key's, or
// after it was removed; and no secret is kept.
func TestKeys(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys.json")
	keys, err := proxy.OpenKeys(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t, []*engine{newEngine(t, well)}, func(c *proxy.Config, _ *purse) { c.Keys = keys })
	ask := func(secret string) int {
		return d.post("/v1/chat/completions", `{"model":"m","messages":[]}`, "Authorization", "Bearer "+secret).StatusCode
	}
	if got := ask("whatever"); got != 200 {
		t.Errorf("without keys: %d", got)
	}
	other, err := proxy.OpenKeys(file, nil) // as another process has it
	if err != nil {
		t.Fatal(err)
	}
	secret, err := other.Add("ci", "5", nil)
	if err != nil {
		t.Fatal(err)
	}
	narrow, err := other.Add("narrow", "", []string{"else"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ci", "", "../x", "A", strings.Repeat("a", 65)} {
		if _, err := other.Add(name, "", nil); err == nil {
			t.Errorf("a key %q was added", name)
		}
	}
	text, err := os.ReadFile(file)
	info, _ := os.Stat(file)
	if err != nil || strings.Contains(string(text), secret[3:]) || info.Mode().Perm() != 0o600 {
		t.Errorf("%s %v: %s", info.Mode(), err, text)
	}
	for given, want := range map[string]int{secret: 200, narrow: 403, "": 401, "whatever": 401, secret + "x": 401} {
		if got := ask(given); got != want {
			t.Errorf("%q: %d, want %d", given, got, want)
		}
	}
	if err := other.Remove("ci"); err != nil {
		t.Fatal(err)
	}
	if err := other.Remove("ci"); err == nil {
		t.Error("a key was removed twice")
	}
	if err := other.Remove("narrow"); err != nil {
		t.Fatal(err)
	}
	if got := ask(secret); got != 401 {
		t.Errorf("a key that was removed: %d", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got := ask("whatever"); got != 401 {
		t.Errorf("the file is gone: %d", got)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ask("whatever"); got != 500 {
		t.Errorf("the file is none of keys: %d", got)
	}
}

// TestKeysComeBack: a file of keys that is moved away lets nobody in, and one that comes back as it was lets in whom it did.
func TestKeysComeBack(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys.json")
	keys, err := proxy.OpenKeys(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := keys.Add("ci", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t, []*engine{newEngine(t, well)}, func(c *proxy.Config, _ *purse) { c.Keys = keys })
	for i, want := range []int{200, 401, 200} {
		if a := d.post("/v1/chat/completions", `{"model":"m","messages":[]}`, "Authorization", "Bearer "+secret); a.StatusCode != want {
			t.Errorf("%d: %d %s", i, a.StatusCode, a.text)
		}
		from, to := file, file+".away"
		if i == 1 {
			from, to = to, from
		}
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeyIsRemovedMeanwhile: a key that is removed while its request's body is on its way spends nothing.
func TestKeyIsRemovedMeanwhile(t *testing.T) {
	t.Parallel()
	keys, err := proxy.OpenKeys(filepath.Join(t.TempDir(), "keys.json"), nil)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := keys.Add("ci", "5", nil)
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t, []*engine{newEngine(t, well)}, func(c *proxy.Config, _ *purse) { c.Keys = keys })
	body, sent := io.Pipe()
	r, _ := http.NewRequest(http.MethodPost, "http://127.0.0.1/v1/chat/completions", body)
	r.Header.Set("Authorization", "Bearer "+secret)
	go func() {
		_, _ = io.WriteString(sent, `{"model":"m",`) // read: the key was let in
		_ = keys.Remove("ci")
		_, _ = io.WriteString(sent, `"messages":[]}`)
		_ = sent.Close()
	}()
	w := httptest.NewRecorder()
	d.server.ServeHTTP(w, r)
	if w.Code != http.StatusUnauthorized || d.engines[0].asked.Load() != 0 {
		t.Errorf("%d %s; a provider was asked %d times", w.Code, w.Body, d.engines[0].asked.Load())
	}
}

// TestModels: all models of all providers, with price and region.
func TestModels(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, well), newEngine(t, well), newEngine(t, well)}, func(_ *proxy.Config, p *purse) { p.endpoints[2].Model = "org/other" })
	for path, want := range map[string]string{
		"/v1/models":           `{"object":"list","data":[{"id":"m","object":"model","created":0,"owned_by":"gpupay","gpupay":[{"provider":"` + d.engines[0].URL + `","price_per_slot_hour":3.6,"region":"eu","quantization":"fp8"},`,
		"/v1/models/org/other": `{"id":"org/other","object":"model"`,
		"/v1/models/none":      `{"error":{"message":"No provider serves the model`,
	} {
		res, err := http.Get(d.site.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if !strings.HasPrefix(string(text), want) {
			t.Errorf("%s: %s", path, text)
		}
	}
}
