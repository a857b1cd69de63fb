// Package sidecar sells an inference server that runs already: it puts a provider of shared leases before it. Renters share the GPUs by
// slots and send requests as the server's own clients do, with the bearer token of their lease; each request that ends well is billed the
// time for which it held its slot. What the server fails at costs nothing.
//
// Requests that wait within the inference server are paid for: give no more slots than it runs at once.
package sidecar

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/cors"
	"github.com/gpupay/gpupay/sdk/internal/upstream"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Config says what is sold. Upstream is needed, and a Provider that shares its GPUs.
type Config struct {
	// Provider is the provider's. Its Share, or that of a class, has Slots.
	Provider provider.Config
	// Upstream is the URL of the inference server: http or https, with its host, and a path where it is below one.
	Upstream string
	// OllamaAPI has ollama's own API be served beside OpenAI's.
	OllamaAPI bool
	// Credential has the headers by which the inference server knows its operator, such as Authorization; none if nil. Renters' own
	// never get there.
	Credential http.Header
	// HealthPath is asked with GET for whether the inference server works: it answers 200. /v1/models, or /api/tags with OllamaAPI, if
	// empty; vLLM, SGLang, TGI and llama.cpp have /health.
	HealthPath string
	// HeaderTimeout bounds the time until the inference server begins to answer, which an answer that is no stream does when it is
	// complete: 10 min if zero. A request for which it is over costs nothing.
	HeaderTimeout time.Duration
	// IdleTimeout bounds the time for which a stream stands still: 5 min if zero, and at most half of the longest time of a request. A request for which it is over costs nothing.
	IdleTimeout time.Duration
}

// Server serves offers and leases as its provider does, and the inference server's routes to who has a lease.
type Server struct {
	*provider.Server
	proxy   *upstream.Proxy
	models  *models
	origins cors.Origins
	log     *slog.Logger
	down    time.Time    // since when the server is down; zero: it works
	paid    http.Handler // the routes for clients of x402, who have no lease; nil: they cannot pay here
}

// New starts a provider before an inference server, which need not run yet. Its errors say what to do.
func New(ctx context.Context, config Config) (*Server, error) {
	shared := config.Provider.Share.Slots > 0
	for _, class := range config.Provider.Classes {
		shared = shared || class.Share.Slots > 0
	}
	if !shared {
		return nil, errors.New("sidecar: Provider.Share.Slots is zero: say how many requests the inference server runs at once")
	}
	apis := []upstream.API{upstream.OpenAI}
	if config.OllamaAPI {
		apis = append(apis, upstream.Ollama)
	}
	if config.HeaderTimeout < 0 || config.IdleTimeout < 0 {
		return nil, errors.New("sidecar: HeaderTimeout and IdleTimeout are not negative")
	}
	idle, total := times(config.Provider)
	if config.IdleTimeout > 0 {
		idle = min(idle, config.IdleTimeout)
	}
	proxy, err := upstream.New(upstream.Config{URL: config.Upstream, APIs: apis, Credential: config.Credential, HealthPath: config.HealthPath,
		HeaderTimeout: config.HeaderTimeout, IdleTimeout: idle, TotalTimeout: total})
	if err != nil {
		return nil, fmt.Errorf("sidecar: %w", err)
	}
	p, err := provider.New(ctx, config.Provider)
	if err != nil {
		proxy.Close()
		return nil, err
	}
	s := &Server{Server: p, proxy: proxy, models: newModels(proxy.Models), origins: config.Provider.HTTP.AllowedOrigins, log: cmp.Or(config.Provider.Log, slog.Default())}
	if config.Provider.X402 != nil {
		route := provider.Route{Slots: true, Class: sharedClass(config.Provider), Streams: streams}
		if s.paid, err = p.Metered(route, http.HandlerFunc(s.answer)); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// sharedClass is the first whose GPUs are shared; empty where the provider has none.
func sharedClass(c provider.Config) string {
	for _, class := range c.Classes {
		if class.Share.Slots > 0 {
			return class.ID
		}
	}
	return ""
}

// streams reports whether an answer is sent as it comes: OpenAI's API does so where that is asked for, and ollama's where it is not declined.
func streams(r *http.Request, body []byte) bool {
	var asked struct {
		Stream *bool `json:"stream"`
	}
	_ = json.Unmarshal(body, &asked) // what is no JSON is refused where it is read
	if asked.Stream != nil {
		return *asked.Stream
	}
	return r.URL.Path == "/api/chat" || r.URL.Path == "/api/generate"
}

// times are how long an answer may stand still before the inference server has failed, which is before a request has run for as long as
// it may, and how long any may take: longer than that, so that a request which is answered all the while ends at its limit.
func times(c provider.Config) (idle, total time.Duration) {
	shares := []provider.Share{c.Share}
	for _, class := range c.Classes {
		shares = append(shares, class.Share)
	}
	idle = maxIdle
	for _, s := range shares {
		if s.Slots > 0 {
			most := cmp.Or(s.MaxTime, provider.MaxRequestTime)
			idle = min(idle, most/2)
			total = max(total, most+time.Minute)
		}
	}
	return idle, total
}

// maxIdle is how long a stream may stand still: a model that reads a long prompt, or waits for its turn, writes nothing.
const maxIdle = 5 * time.Minute

// Run settles, and watches the inference server: while that is down nothing is rented and nothing billed. It returns when ctx ends.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	every := time.NewTicker(listEvery)
	defer every.Stop()
	var watches sync.WaitGroup
	watches.Go(func() { s.models.run(ctx, every.C) })
	watches.Go(func() {
		s.proxy.Watch(ctx, func(h upstream.Health) {
			s.Slots().SetDown(h.Err)
			s.models.heard(h)
			s.say(h)
		})
	})
	err := s.Server.Run(ctx)
	cancel()
	watches.Wait()
	return err
}

// say tells the operator of each change, once: who rents nothing out earns nothing. That it works from the start is no change.
func (s *Server) say(h upstream.Health) {
	switch {
	case h.Err != nil:
		s.down = h.Since
		s.log.Error("the inference server is down: nothing is served, rented or billed until it works", "error", h.Err)
	case !s.down.IsZero():
		s.log.Warn("the inference server works again", "down", h.Since.Sub(s.down).Round(time.Second))
		s.down = time.Time{}
	}
}

// Ask asks the inference server, within 6 s, whether it works, and which models it serves: none where it does not list them. Its error says
// why it does not answer.
func (s *Server) Ask(ctx context.Context) (models []string, err error) {
	if err := s.proxy.Probe(ctx); err != nil {
		return nil, err
	}
	models, _ = s.proxy.Models(ctx) // a server without a list works
	return models, nil
}

// Close ends the requests that run, which cost nothing then, and closes the provider. Its leases go on with the next New.
func (s *Server) Close() error {
	s.proxy.Close()
	return s.Server.Close()
}

// ServeHTTP serves offers, leases, the inference server's routes and, to everybody at /models, the list of its models.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == modelsPath && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		s.models.ServeHTTP(w, r)
		return
	}
	if !s.proxy.Serves(r) {
		s.Server.ServeHTTP(w, r)
		return
	}
	if r.Header.Get("Authorization") == "" && s.paid != nil {
		s.paid.ServeHTTP(w, r)
		return
	}
	s.origins.Answer(w, r) // what is a preflight has no route here
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	turn, err := s.Slots().Admit(token)
	if err != nil {
		s.Slots().Refuse(w, err)
		return
	}
	defer turn.Leave()
	id, err := requestID(r.Header)
	if err != nil {
		s.Slots().Refuse(w, err)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	call, _ := s.proxy.Accept(w, r.WithContext(ctx), turn.Lease().Hex())
	if call == nil { // it was answered
		return
	}
	defer call.Release()
	request, err := turn.Take(ctx, id)
	if err != nil {
		s.Slots().Refuse(w, err)
		return
	}
	defer context.AfterFunc(request.Ctx, func() { cancel(context.Cause(request.Ctx)) })()
	forward(w, call, request)
}

// forward has the inference server answer a request that has its slot, and gives that back.
func forward(w http.ResponseWriter, call *upstream.Call, request *provider.Request) {
	w.Header().Set(wire.RequestHeader, strconv.FormatUint(request.ID, 10))
	call.Forward(func(end upstream.Result) { request.End(outcome(end, request), end.Last) })
}

// answer answers a request of x402, which has its slot: what is refused before it gets to the inference server costs nothing.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	request := provider.SlotOf(r.Context())
	call, _ := s.proxy.Accept(w, r, request.Lease().Hex())
	if call == nil {
		request.End(metering.RequestFailed, time.Now())
		return
	}
	defer call.Release()
	forward(w, call, request)
}

// requestID is what a client calls a request; zero: it does not say.
func requestID(h http.Header) (uint64, error) {
	text := h.Get(wire.RequestHeader)
	if text == "" {
		return 0, nil
	}
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil || id == 0 {
		return 0, wire.BadRequest.With("%s names a request by a number from 1 on", wire.RequestHeader)
	}
	return id, nil
}

// outcome is what a request is billed by. Whatever the inference server failed at costs nothing, and so does what ends with the process.
func outcome(end upstream.Result, request *provider.Request) metering.Outcome {
	switch {
	case end.Outcome == upstream.Completed, end.Outcome == upstream.Refused:
		return metering.RequestDone
	case end.Outcome == upstream.Aborted:
		return metering.RequestAborted
	case end.Reason == upstream.Stopped:
		return request.Stopped(end.Status != 0)
	}
	return metering.RequestFailed
}
