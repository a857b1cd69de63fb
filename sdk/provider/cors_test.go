package provider

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/browser"
	"github.com/gpupay/gpupay/sdk/internal/cors"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// preflight asks as a browser does before a script's request.
func preflight(t *testing.T, url, origin string) http.Header {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "OPTIONS", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", origin)
	req.Header.Set("Access-Control-Request-Method", "GET")
	req.Header.Set("Access-Control-Request-Headers", "access-control-expose-headers,payment-signature")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("%s: a preflight got %s", url, resp.Status)
	}
	return resp.Header
}

// TestScriptsOfOtherOrigins: preflights are answered without a payment, and what
// a script must read of an answer is exposed, to those origins that may; none sends
// its user's credentials along.
func TestScriptsOfOtherOrigins(t *testing.T) {
	t.Parallel()
	const app, other = "https://app.example.org", "https://other.example"
	for _, row := range []struct {
		name    string
		allowed []string
		want    map[string]string
	}{
		{"all", nil, map[string]string{app: "*", other: "*", "null": "*"}},
		{"one", []string{app}, map[string]string{app: app, other: "", app + ".evil.example": "", "null": ""}},
		{"none", []string{}, map[string]string{app: "", other: ""}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, _ := meteredRig(t, Route{MaxTime: time.Second}, func(http.ResponseWriter, *http.Request) {},
				func(c *Config) { c.HTTP.AllowedOrigins = row.allowed })
			for origin, want := range row.want {
				for _, path := range []string{"/offer", "/lease", "/tick", "/infer"} {
					ask := preflight(t, r.server.URL+path, origin)
					answer := get(t, r.server.URL+path, "Origin", origin).Header
					for _, h := range []http.Header{ask, answer} {
						if h.Get("Access-Control-Allow-Origin") != want || h.Get("Access-Control-Allow-Credentials") != "" {
							t.Errorf("%s from %s: %v, want %q", path, origin, h, want)
						}
					}
					exposed := answer.Get("Access-Control-Expose-Headers")
					for _, name := range []string{x402.HeaderRequired, x402.HeaderResponse, "WWW-Authenticate", "Payment-Receipt"} {
						if strings.Contains(exposed, name) != (want != "") {
							t.Errorf("%s from %s: exposed is %q", path, origin, exposed)
						}
					}
					if (ask.Get("Access-Control-Allow-Headers") != "") != (want != "") || (answer.Get("Vary") != "") != (row.allowed != nil) {
						t.Errorf("%s from %s: %v, %v", path, origin, ask, answer)
					}
				}
			}
		})
	}
	if cors.Origins([]string{"https://app.example.org/"}).Check() == nil || cors.Origins([]string{"app.example.org"}).Check() == nil || cors.Origins([]string{"*"}).Check() == nil {
		t.Error("what is no origin is taken")
	}
}

// scriptPage pays for a tick from a script: what it reads there goes into its title.
const scriptPage = `<!doctype html><title>runs</title><script>(async () => {
	try {
		const url = %q;
		const ask = await fetch(url);
		const payment = await (await fetch("/sign", { method: "POST", body: ask.headers.get("PAYMENT-REQUIRED") })).text();
		const paid = await fetch(url, { headers: { "PAYMENT-SIGNATURE": payment, "Idempotency-Key": "one", "Access-Control-Expose-Headers": "PAYMENT-RESPONSE" } });
		const receipt = JSON.parse(atob(paid.headers.get("PAYMENT-RESPONSE")));
		document.title = JSON.stringify({ unpaid: ask.status, challenge: ask.headers.get("WWW-Authenticate") !== null, paid: paid.status, success: receipt.success, state: (await paid.json()).state });
	} catch (error) {
		document.title = "failed: " + error;
	}
	await fetch("/done", { method: "POST", body: document.title });
})()</script>`

// TestBrowserPays: a script in a real browser, of another origin, reads the offer,
// pays, and reads its receipt. It needs Chromium.
func TestBrowserPays(t *testing.T) {
	browser.Need(t)
	r := newPayRig(t)
	b := r.buyer("/tick")
	header := headerOf(t, b.depositing(b.next(), 50_000)).Get(x402.HeaderSignature)
	done := make(chan string, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sign", func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprint(w, header)
	})
	mux.HandleFunc("POST /done", func(_ http.ResponseWriter, req *http.Request) {
		text := make([]byte, 1<<10)
		n, _ := req.Body.Read(text)
		done <- string(text[:n])
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, scriptPage, r.server.URL+"/tick")
	})
	site := httptest.NewServer(mux)
	defer site.Close()
	browser.Open(t, site.URL+"/")
	select {
	case text := <-done:
		var saw struct {
			Unpaid, Paid       int
			Challenge, Success bool
			State              string
		}
		if err := json.Unmarshal([]byte(text), &saw); err != nil || saw.Unpaid != 402 || !saw.Challenge || saw.Paid != 200 || !saw.Success || saw.State != wire.StateActive {
			t.Errorf("the script says %s", text)
		}
	case <-time.After(time.Minute):
		t.Fatal("the browser says nothing")
	}
}
