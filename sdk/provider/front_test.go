package provider

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/x402"
)

// get asks a provider for an offer, as from an address that a proxy would name.
func get(t *testing.T, url string, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// asked is the address that a 402 names.
func asked(t *testing.T, resp *http.Response) string {
	t.Helper()
	required, err := x402.ParsePaymentRequired(resp.Header)
	if err != nil {
		t.Fatal(resp.Status, err)
	}
	return required.Resource.URL
}

// proxy is a reverse proxy with TLS in front of a server.
func proxy(t *testing.T, to string) *httptest.Server {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host
		r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"] // as nginx does: it appends
		r.SetXForwarded()
	}})
	t.Cleanup(front.Close)
	return front
}

// TestBehindATrustedProxy: each of its clients has limits of its own, whatever it
// claims, and the 402 names the address that they use.
func TestBehindATrustedProxy(t *testing.T) {
	r := newPayRig(t, func(c *Config) {
		c.HTTP.TrustedProxies = []string{"127.0.0.0/8", "::1"}
		c.Limits.Challenges = limit.Rate{PerSecond: 1e-6, Burst: 3}
	})
	for _, client := range []string{"203.0.113.1", "203.0.113.2", "2001:db8:1:2::3"} {
		for n := range 5 {
			want := http.StatusPaymentRequired
			if n >= 3 {
				want = http.StatusTooManyRequests
			}
			invented := "198.51.100." + string(rune('1'+n)) // which the client sent, and its proxy appended to
			resp := get(t, r.server.URL+"/tick", "X-Forwarded-For", invented+", "+client, "X-Forwarded-Proto", "https")
			if resp.StatusCode != want {
				t.Fatalf("%s, request %d: %s, want %d", client, n+1, resp.Status, want)
			}
			if n == 0 && asked(t, resp) != "https"+r.server.URL[len("http"):]+"/tick" {
				t.Errorf("the 402 names %s", asked(t, resp))
			}
		}
	}
	front := proxy(t, r.server.URL)
	resp, err := front.Client().Get(front.URL + "/tick?gpus=2")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := asked(t, resp); got != front.URL+"/tick?gpus=2" {
		t.Errorf("through a proxy with TLS the 402 names %s, want %s", got, front.URL)
	}
}

// TestHeadersOfStrangers: where no proxy is trusted nothing is believed of what a
// client says of itself, and PublicURL is what the 402 names.
func TestHeadersOfStrangers(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.HTTP.TrustedProxies = []string{"203.0.113.1"} })
	resp := get(t, r.server.URL+"/tick", "X-Forwarded-For", "203.0.113.1", "Forwarded", "for=203.0.113.1;proto=https", "X-Forwarded-Proto", "https")
	if got := asked(t, resp); got != r.server.URL+"/tick" {
		t.Errorf("the 402 names %s", got)
	}
	req := from("192.0.2.1:1")
	req.Header.Set("X-Forwarded-For", "203.0.113.7")
	if got := r.provider.config.Limits.ClientIP(req); got != "192.0.2.1" {
		t.Errorf("a stranger is taken for %s", got)
	}
	r.shut()
	r.config.HTTP.PublicURL = "https://gpus.example.org/rent/"
	r.start()
	if got := asked(t, get(t, r.server.URL+"/tick?gpus=2")); got != "https://gpus.example.org/rent/tick?gpus=2" {
		t.Errorf("the 402 names %s", got)
	}
}

// TestFrontIsChecked: what is no address and no URL is refused at start.
func TestFrontIsChecked(t *testing.T) {
	good := payConfig(t, nil, "http://127.0.0.1", "0x1111111111111111111111111111111111111111", "0x2222222222222222222222222222222222222222", "x.db")
	good.Key = strangerKey
	if err := good.withDefaults().check(); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []func(*Config){
		func(c *Config) { c.HTTP.TrustedProxies = []string{"proxy.example"} },
		func(c *Config) { c.HTTP.PublicURL = "gpus.example.org" },
		func(c *Config) { c.HTTP.PublicURL = "ftp://gpus.example.org" },
		func(c *Config) { c.HTTP.PublicURL = "https://user:secret@gpus.example.org" },
		func(c *Config) { c.HTTP.PublicURL = "https://gpus.example.org/?a=b" },
	} {
		c := good
		if bad(&c); c.withDefaults().check() == nil {
			t.Errorf("taken: %q %q", c.HTTP.TrustedProxies, c.HTTP.PublicURL)
		}
	}
	for _, url := range []string{"http://10.0.0.1:8402", "https://gpus.example.org/rent"} {
		c := good
		if c.HTTP.PublicURL = url; c.withDefaults().check() != nil {
			t.Errorf("refused: %q", url)
		}
	}
}
