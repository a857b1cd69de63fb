package chain_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// proxy is an HTTP proxy before an endpoint that can be told to fail.
type proxy struct {
	*httptest.Server

	mu       sync.Mutex
	status   int // 0: pass on; hangs: no answer
	path     string
	requests int
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(u)
		r.Out.URL.Path, r.Out.URL.RawQuery = "/", ""
	}}
	p := &proxy{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		status := p.status
		p.path = r.URL.RequestURI()
		p.requests++
		p.mu.Unlock()
		if status == hangs {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return
		}
		if status != 0 {
			http.Error(w, "told to fail", status)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Server.Close)
	return p
}

// hangs is a status of no answer at all.
const hangs = -1

// fail makes every request fail with a status, 0 makes them pass.
func (p *proxy) fail(status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = status
}

func (p *proxy) lastPath() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.path
}

func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}
