package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/serve"
)

const (
	// piece is how much of an answer is read and written at a time, in bytes.
	piece = 32 << 10
	// StreamBound is how much of an answer is kept for one request at most, in bytes: a piece on its way, an event that is being judged
	// and what it is decoded into, and the buffers of the two connections.
	StreamBound = piece + 4*maxEvent + 16<<10
)

// Config is what a Proxy is made of.
type Config struct {
	// URL is where the inference server listens: http or https, with its host, and a path where it is below one. A "/v1" at its end,
	// with which clients are configured, is taken off.
	URL string
	// APIs are those that it is asked for.
	APIs []API
	// Prefixes are served beside the APIs.
	Prefixes []Prefix
	// Credential has the headers by which the upstream knows the operator, such as Authorization. They are added to each request. By
	// default there are none.
	Credential http.Header
	// HealthPath is asked with GET for whether the upstream works; it must answer 200. vLLM, SGLang, TGI and llama.cpp have /health. By default
	// it is /api/tags where ollama's API is served, and /v1/models otherwise.
	HealthPath string

	// MaxBody bounds the body of a request, in bytes. The default is 32 MiB.
	MaxBody int64
	// BodyMemory bounds the bodies of all requests together, in bytes; while they grow they take up to twice as much. The default is
	// 512 MiB; it is at least MaxBody.
	BodyMemory int64
	// BodyTimeout bounds the time in which a request's body must arrive. The default is 30 s.
	BodyTimeout time.Duration
	// ConnectTimeout bounds the time in which a connection to the upstream is made. The default is 5 s.
	ConnectTimeout time.Duration
	// HeaderTimeout bounds the time until the upstream begins to answer. An answer that is no stream begins when it is complete. The
	// default is 10 min.
	HeaderTimeout time.Duration
	// IdleTimeout bounds the time that a stream stands still: a model that reads a long prompt, or waits for its turn, writes
	// nothing. The default is 5 min.
	IdleTimeout time.Duration
	// TotalTimeout bounds a request from its acceptance to the last byte. The default is 30 min.
	TotalTimeout time.Duration
	// WriteTimeout bounds the time in which a client takes 32 KiB. The default is 30 s.
	WriteTimeout time.Duration

	// Now is the clock; its times have monotonic readings. The default is time.Now.
	Now func() time.Time
}

// withDefaults fills in what is not given.
func (c Config) withDefaults() Config {
	c.MaxBody = cmp.Or(c.MaxBody, 32<<20)
	c.BodyMemory = max(cmp.Or(c.BodyMemory, 512<<20), c.MaxBody)
	c.BodyTimeout = cmp.Or(c.BodyTimeout, 30*time.Second)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 5*time.Second)
	c.HeaderTimeout = cmp.Or(c.HeaderTimeout, 10*time.Minute)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 5*time.Minute)
	c.TotalTimeout = cmp.Or(c.TotalTimeout, 30*time.Minute)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, serve.WriteTimeout)
	if c.HealthPath == "" {
		c.HealthPath = "/v1/models"
		for _, api := range c.APIs {
			if api == Ollama {
				c.HealthPath = "/api/tags"
			}
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Proxy passes requests on to one upstream.
type Proxy struct {
	config    Config
	target    *url.URL
	routes    routes
	transport *http.Transport
	reverse   *httputil.ReverseProxy
	bodies    bodies
	pieces    pieces
	began     time.Time
	heard     atomic.Int64  // when the upstream sent something, since began
	doubt     chan struct{} // asks for a probe
	every     time.Duration // see probeEvery
	patience  time.Duration // see probeTimeout
	ctx       context.Context
	stop      context.CancelFunc
}

// New is a proxy to the upstream. It connects to nothing yet. Close ends it.
func New(config Config) (*Proxy, error) {
	config = config.withDefaults()
	target, err := url.Parse(config.URL)
	if err != nil || target.Host == "" || target.Scheme != "http" && target.Scheme != "https" {
		return nil, errors.New("the upstream's URL is not one of an inference server: give http://host:port") // it may have a key
	}
	if target.User != nil || target.RawQuery != "" || target.Fragment != "" {
		return nil, errors.New("the upstream's URL has more than a host and a path: give its credential as a header")
	}
	if target.Path = strings.TrimSuffix(strings.TrimRight(target.Path, "/"), "/v1"); target.Path != "" && !plain(target.Path) {
		return nil, errors.New("the upstream's URL has a path that is not served")
	}
	if !plain(config.HealthPath) {
		return nil, fmt.Errorf("the health path %q is none", config.HealthPath)
	}
	if err := checkCredential(config.Credential); err != nil {
		return nil, err
	}
	config.Credential = config.Credential.Clone()
	p := &Proxy{config: config, target: target, bodies: bodies{of: make(map[string]int64)}, began: time.Now(), doubt: make(chan struct{}, 1), every: probeEvery, patience: probeTimeout}
	if p.routes, err = newRoutes(target.Path, config.APIs, config.Prefixes); err != nil {
		return nil, err
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.transport = newTransport(config)
	p.reverse = &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { of(r.In.Context()).rewrite(r) },
		ModifyResponse: func(res *http.Response) error { return of(res.Request.Context()).answered(res) },
		ErrorHandler:   func(_ http.ResponseWriter, r *http.Request, _ error) { of(r.Context()).unanswered() },
		Transport:      sender{p},
		FlushInterval:  -1,
		BufferPool:     &p.pieces,
		ErrorLog:       log.New(io.Discard, "", 0), // errors of connections quote what came over them
	}
	return p, nil
}

func newTransport(config Config) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: config.ConnectTimeout}
	// A connection is for one request: what an upstream sends too much of would be in the answer to the next one, of another client, and
	// net/http writes it into the log of the program. No proxy of the environment's is used: prompts go to the upstream alone.
	return &http.Transport{
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    config.ConnectTimeout,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(0)},
		Protocols:              protocols,
		DisableCompression:     true,
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// Close ends the requests that are being passed on, as Stopped.
func (p *Proxy) Close() { p.stop() }

// Serves says whether a request has a route, before anything of it is read or paid.
func (p *Proxy) Serves(r *http.Request) bool {
	_, ok := p.routes.match(r)
	return ok
}

// pieces are buffers that are used again.
type pieces struct{ pool sync.Pool }

func (p *pieces) Get() []byte {
	if b, ok := p.pool.Get().(*[piece]byte); ok {
		return b[:]
	}
	return make([]byte, piece)
}

func (p *pieces) Put(b []byte) { p.pool.Put((*[piece]byte)(b)) }
