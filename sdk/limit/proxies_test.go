package limit

import (
	"crypto/tls"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func request(peer string, headers ...string) *http.Request {
	r := &http.Request{RemoteAddr: peer, Header: make(http.Header)}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

var trusted, _ = ParseProxies([]string{"127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48"})

// TestClientBehindProxies: the nearest address that is not a trusted proxy's counts,
// whatever a client wrote before its proxy wrote.
func TestClientBehindProxies(t *testing.T) {
	const xff, fwd = "X-Forwarded-For", "Forwarded"
	for _, row := range []struct {
		name, peer string
		headers    []string
		want       string
	}{
		{"no proxy", "203.0.113.9:1", nil, "203.0.113.9"},
		{"spoofed by one who is no proxy", "203.0.113.9:1", []string{xff, "198.51.100.1", fwd, "for=198.51.100.1"}, "203.0.113.9"},
		{"one proxy", "10.0.0.1:1", []string{xff, "198.51.100.1"}, "198.51.100.1"},
		{"a proxy of this host", "127.0.0.1:1", []string{xff, "198.51.100.1"}, "198.51.100.1"},
		{"mapped", "[::ffff:10.0.0.1]:1", []string{xff, "::ffff:198.51.100.1"}, "198.51.100.1"},
		{"two proxies", "10.0.0.1:1", []string{xff, "198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
		{"two headers", "10.0.0.1:1", []string{xff, "198.51.100.1", xff, "10.0.0.2"}, "198.51.100.1"},
		{"spoofed before the proxy", "10.0.0.1:1", []string{xff, "192.0.2.7, 198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
		{"spoofed as a proxy", "10.0.0.1:1", []string{xff, "10.9.9.9, 198.51.100.1"}, "198.51.100.1"},
		{"with a port", "10.0.0.1:1", []string{xff, "198.51.100.1:4711"}, "198.51.100.1"},
		{"of six", "10.0.0.1:1", []string{xff, "2001:db8:9:2:3::4"}, "2001:db8:9:2::/64"},
		{"all are proxies", "10.0.0.1:1", []string{xff, "10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"the proxy's own request", "10.0.0.1:1", nil, "10.0.0.1"},
		{"the proxy does not know", "10.0.0.1:1", []string{xff, "198.51.100.1, unknown"}, "10.0.0.1"},
		{"forwarded", "10.0.0.1:1", []string{fwd, `for=192.0.2.7, For="198.51.100.1:80";proto=https`}, "198.51.100.1"},
		{"forwarded of six", "[2001:db8:1::5]:1", []string{fwd, `by=_x;for="[2001:db8:9:2::4]:80"`}, "2001:db8:9:2::/64"},
		{"a quote left open", "10.0.0.1:1", []string{fwd, `for="192.0.2.7, for=198.51.100.1`}, "198.51.100.1"},
		{"both: the list of addresses", "10.0.0.1:1", []string{fwd, "for=192.0.2.7", xff, "198.51.100.1"}, "198.51.100.1"},
		{"hidden", "10.0.0.1:1", []string{fwd, "for=_secret"}, "10.0.0.1"},
	} {
		if got := Client(trusted.Client(request(row.peer, row.headers...))); got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
}

func TestSchemeBehindProxies(t *testing.T) {
	for _, row := range []struct {
		name, peer string
		headers    []string
		want       string
	}{
		{"plain", "10.0.0.1:1", nil, "http"},
		{"said by the proxy", "10.0.0.1:1", []string{"X-Forwarded-Proto", "https"}, "https"},
		{"said by the nearest", "10.0.0.1:1", []string{"X-Forwarded-Proto", "https, http"}, "http"},
		{"forwarded", "10.0.0.1:1", []string{"Forwarded", `for=192.0.2.1;proto="https"`}, "https"},
		{"said by nobody who is trusted", "203.0.113.9:1", []string{"X-Forwarded-Proto", "https", "Forwarded", "proto=https"}, "http"},
		{"nonsense", "10.0.0.1:1", []string{"X-Forwarded-Proto", "javascript"}, "http"},
	} {
		if got := trusted.Scheme(request(row.peer, row.headers...)); got != row.want {
			t.Errorf("%s: %s, want %s", row.name, got, row.want)
		}
	}
	r := request("203.0.113.9:1")
	if r.TLS = new(tls.ConnectionState); Proxies(nil).Scheme(r) != "https" {
		t.Error("TLS of our own is not https")
	}
}

func TestParseProxies(t *testing.T) {
	for _, bad := range []string{"", "proxy.example", "10.0.0.0/33", "10.0.0.1:80"} {
		if _, err := ParseProxies([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// FuzzProxies: a client behind a trusted proxy is the address that this appended,
// whatever the client sent.
func FuzzProxies(f *testing.F) {
	f.Add("198.51.100.1, 10.0.0.1", `for="x`)
	f.Add(strings.Repeat(",", 100), "\"")
	f.Fuzz(func(t *testing.T, sent, forwarded string) {
		for _, name := range []string{"X-Forwarded-For", "Forwarded"} {
			r := request("10.0.0.1:80", name, sent+", 203.0.113.9")
			if name == "Forwarded" {
				r = request("10.0.0.1:80", name, forwarded+", for=203.0.113.9")
			}
			if got := trusted.Client(r); got != netip.MustParseAddr("203.0.113.9").String() {
				t.Errorf("%s: %q", name, got)
			}
		}
	})
}
