package forwarding

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/proxy"
)

// asEndpoint is the stand of a provider that this program is to be.
const asEndpoint = "GPUPAY_BENCH_ENDPOINT"

// TestEndpoint is a provider's process: a sidecar before an engine. In the parent it is nothing.
func TestEndpoint(t *testing.T) {
	text := os.Getenv(asEndpoint)
	if text == "" {
		return
	}
	var at stand
	must(t, json.Unmarshal([]byte(text), &at))
	server := httptest.NewServer(http.HandlerFunc(engine))
	defer server.Close()
	site := httptest.NewServer(sell(t, at, server.URL))
	defer site.Close()
	fmt.Println("at " + site.URL)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent is done
}

// endpoint starts a process for a provider, and returns where it is.
func endpoint(tb testing.TB, at stand) string {
	tb.Helper()
	text, err := json.Marshal(at)
	must(tb, err)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestEndpoint$")
	cmd.Env, cmd.Stderr = append(os.Environ(), asEndpoint+"="+string(text)), os.Stderr
	in, err := cmd.StdinPipe()
	must(tb, err)
	out, err := cmd.StdoutPipe()
	must(tb, err)
	must(tb, cmd.Start())
	tb.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if site, ok := strings.CutPrefix(lines.Text(), "at "); ok {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return site
		}
	}
	tb.Fatalf("a provider's process says not where it is: %v", lines.Err())
	return ""
}

// proxied are providers that are processes of their own, asked in turn: without anything between, through a ReverseProxy, which is what a
// hop alone costs, and through a local proxy.
func proxied(tb testing.TB, endpoints int) []way {
	tb.Helper()
	local := chain(tb, endpoints)
	direct, payer := local.renter(tb), local.renter(tb)
	var doors []door
	var candidates []pool.Candidate
	for i := range endpoints {
		site := endpoint(tb, local.at(tb, i))
		doors = append(doors, local.rent(tb, direct, site))
		candidates = append(candidates, pool.Candidate{URL: site, Model: "m"})
	}
	quiet := slog.New(slog.DiscardHandler)
	p, err := pool.Open(tb.Context(), pool.Config{Client: payer, File: filepath.Join(tb.TempDir(), "pool.db"), Budget: "100000", Log: quiet})
	must(tb, err)
	tb.Cleanup(func() { _ = p.Stop() })
	must(tb, p.Set(candidates))
	for end := time.Now().Add(time.Minute); len(p.Endpoints()) < endpoints; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("%d of %d offers came", len(p.Endpoints()), endpoints)
		}
	}
	server, err := proxy.New(proxy.Config{Pool: proxy.FromPool(p), Log: quiet})
	must(tb, err)
	site := httptest.NewServer(server)
	tb.Cleanup(site.Close)
	w := opened(tb, "proxy", func() {}, door{site.URL, "any"})
	for end := time.Now().Add(2 * time.Minute); held(tb, p) < endpoints; { // each has its deposit before anything is measured
		if time.Now().After(end) {
			tb.Fatalf("%d of %d providers were asked", held(tb, p), endpoints)
		}
		_, err := burst(w, 64, whole)
		must(tb, err)
	}
	behind, turn := transport(tb), new(atomic.Uint64)
	hop := httptest.NewServer(&httputil.ReverseProxy{FlushInterval: -1, Transport: behind, Rewrite: func(r *httputil.ProxyRequest) {
		at := doors[turn.Add(1)%uint64(len(doors))]
		to, _ := url.Parse(at.url)
		r.SetURL(to)
		r.Out.Header.Set("Authorization", "Bearer "+at.token)
	}})
	tb.Cleanup(hop.Close)
	return []way{opened(tb, "sidecars", func() {}, doors...), opened(tb, "ReverseProxy", behind.CloseIdleConnections, door{hop.URL, "any"}), w}
}

// held is at how many providers a pool has money.
func held(tb testing.TB, p *pool.Pool) int {
	m, err := p.Money(tb.Context())
	must(tb, err)
	return len(m.Channels)
}

// TestProxyLeavesNothing is TestNothingIsLeft of a local proxy before two sidecars. It keeps connections for the next request, of which there may
// be as many as run at once.
func TestProxyLeavesNothing(t *testing.T) { nothingLeft(t, proxied(t, 2)[2], 600, 2*64) }

// BenchmarkProxyFirstByte is BenchmarkFirstByte of a local proxy before 20 sidecars, beside those sidecars alone.
func BenchmarkProxyFirstByte(b *testing.B) {
	all := proxied(b, 20)
	for _, streams := range []int{1, 64} {
		for _, w := range all {
			b.Run(fmt.Sprintf("streams=%d/way=%s", streams, w.name), func(b *testing.B) { firstByte(b, w, streams) })
		}
	}
}

// BenchmarkProxyRequests is BenchmarkRequests of a local proxy before 20 sidecars, beside those sidecars alone.
func BenchmarkProxyRequests(b *testing.B) {
	for _, w := range proxied(b, 20) {
		b.Run("way="+w.name, func(b *testing.B) { sends(b, w) })
	}
}
