package renting

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestWhoMaySpendOnThisMachine: neither a page in a browser nor a name that a stranger has lead here, and nothing but the APIs.
func TestWhoMaySpendOnThisMachine(t *testing.T) {
	l := new(local)
	for _, c := range []struct {
		host, origin, path string
		want               int
	}{
		{"gpu.example.org:8420", "", "/v1/chat/completions", http.StatusForbidden},
		{"gpu.example.org", "", "/v1/chat/completions", http.StatusForbidden},
		{"192.0.2.1:8420", "", "/v1/chat/completions", http.StatusForbidden},
		{"127.0.0.1:8420", "https://example.org", "/v1/chat/completions", http.StatusForbidden},
		{"127.0.0.1:8420", "null", "/v1/chat/completions", http.StatusForbidden},
		{"127.0.0.1:8420", "", "/lease", http.StatusNotFound},
		{"localhost", "", "/offer", http.StatusNotFound},
		{"[::1]:8420", "", "/", http.StatusNotFound},
	} {
		r := httptest.NewRequest(http.MethodPost, c.path, strings.NewReader("{}"))
		if r.Host = c.host; c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		w := httptest.NewRecorder()
		if l.ServeHTTP(w, r); w.Code != c.want {
			t.Errorf("%+v: %d %s", c, w.Code, w.Body)
		}
	}
}

// TestOnlyTheLoopbackIsListenedOn: a rental's budget is not for the network.
func TestOnlyTheLoopbackIsListenedOn(t *testing.T) {
	for address, ok := range map[string]bool{"127.0.0.1:0": true, "localhost:0": true, ":0": false, "0.0.0.0:0": false, "[::]:0": false, "8420": false, "gpu.example.org:0": false} {
		at, err := listen(address)
		if (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
		if err == nil {
			_ = at.Close()
		}
	}
}

// TestTokensAreNotShown: the table says how a GPU is reached, and of a share no token.
func TestTokensAreNotShown(t *testing.T) {
	for access, ok := range map[string]bool{
		`{"kind":"openai","url":"https://gpu.example.org","token":"gp-canary"}`: false, `{"token":"gp-canary","kind":"openai"}`: false,
		`{"ssh":"gpu.example.org"}`: true, `"gpu.example.org"`: true, "gpu.example.org": true,
	} {
		if said := shown(access); strings.Contains(said, "canary") || (said == access) != ok {
			t.Errorf("%s is shown as %s", access, said)
		}
	}
}
