package proxy

import (
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/route"
)

// line is what the request log says of a request: nothing of its content.
type line struct {
	ID       string
	Provider string
	Model    string
	Status   int
	Error    string
	Out      int64
	First    time.Duration
	Why      string
}

func (l *line) of(a *attempt, end ending) {
	l.Provider, l.Model, l.Out, l.Why = redact.URL(a.choice.Endpoint.ID), a.choice.Endpoint.Model, l.Out+a.out, end.why
	if !a.first.IsZero() && !a.resume {
		l.First = a.first.Sub(a.sent)
	}
}

// log writes the request's line.
func (c *call) log() {
	attempts := len(c.tried)
	if c.line.Status < 400 && c.line.Provider != "" && c.line.Error == "" {
		attempts++
	}
	model, path, in := c.line.Model, "", int64(0)
	if c.q != nil {
		path, in = c.q.path, c.q.inTok
	}
	c.stats.requests.WithLabelValues(statusClass(c.line.Status), c.key.Name).Inc()
	if c.config.Requests == nil {
		return
	}
	c.config.Requests.LogAttrs(c.r.Context(), slog.LevelInfo, "request",
		slog.String("id", c.line.ID), slog.String("key", c.key.Name), slog.String("path", path), slog.String("model", model), slog.String("provider", c.line.Provider),
		slog.Int("attempts", attempts), slog.Int("status", c.line.Status), slog.String("error", c.line.Error), slog.String("ended", c.line.Why),
		slog.String("cost", c.money(c.cost)), slog.Int64("tokens_in", in), slog.Int64("tokens_out", c.line.Out),
		slog.Duration("first_token", c.line.First), slog.Duration("took", c.config.Now().Sub(c.began)))
}

// stats are what was measured of providers since the start.
type stats struct {
	unit float64 // base units of a dollar

	requests *prometheus.CounterVec
	attempts *prometheus.CounterVec
	cost     *prometheus.CounterVec
	tokens   *prometheus.CounterVec
	first    *prometheus.HistogramVec

	mu sync.Mutex
	by map[[2]string]*measured // by endpoint and model
}

// measured is what one provider's model came to.
type measured struct {
	Requests, Failures, Full int64
	In, Out                  int64 // tokens, of answers
	Cost                     route.Nano
	Took                     time.Duration // of answers
	First                    time.Duration // the last answer's
}

func newStats(decimals uint8) *stats {
	const space = "gpupay_proxy_"
	of := []string{"provider", "model"}
	return &stats{
		unit: math.Pow10(int(decimals)), by: make(map[[2]string]*measured),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: space + "requests_total", Help: "Requests of callers, by the status that they were answered with and the local key."}, []string{"status", "key"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: space + "attempts_total", Help: "Requests to providers, by how they ended."}, append(of, "outcome")),
		cost:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: space + "cost_dollars_total", Help: "What requests to providers cost, by the clock of this machine."}, of),
		tokens:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: space + "tokens_total", Help: "Tokens of answers, as counted here, about."}, of),
		first: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: space + "first_token_seconds", Help: "Time to the first token of an answer.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 12)}, of),
	}
}

var outcomes = map[route.Outcome]string{route.Failed: "failed", route.Done: "done", route.Throttled: "full", route.Aborted: "aborted", route.Cut: "cut"}

// attempt books one request to a provider.
func (s *stats) attempt(a *attempt, end ending, took time.Duration, cost route.Nano, in int64) {
	provider, model := redact.URL(a.choice.Endpoint.ID), a.choice.Endpoint.Model
	s.attempts.WithLabelValues(provider, model, outcomes[end.outcome]).Inc()
	s.cost.WithLabelValues(provider, model).Add(s.dollars(cost))
	s.tokens.WithLabelValues(provider, model).Add(float64(a.out))
	if !a.first.IsZero() {
		s.first.WithLabelValues(provider, model).Observe(a.first.Sub(a.sent).Seconds())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.by[[2]string{a.choice.Endpoint.ID, model}]
	if m == nil {
		m = new(measured)
		s.by[[2]string{a.choice.Endpoint.ID, model}] = m
	}
	m.Cost = m.Cost.Add(cost)
	m.Requests++
	switch end.outcome {
	case route.Done:
		m.In, m.Out, m.Took = m.In+in, m.Out+a.out, m.Took+took
		if !a.first.IsZero() {
			m.First = a.first.Sub(a.sent)
		}
	case route.Failed:
		m.Failures++
	case route.Throttled:
		m.Full++
	}
}

func statusClass(status int) string {
	switch {
	case status == 0:
		return "aborted"
	case status < 300:
		return "2xx"
	case status < 500:
		return "4xx"
	}
	return "5xx"
}

func (s *stats) dollars(n route.Nano) float64 { return n.BaseUnits() / s.unit }

// of is what was measured of an endpoint.
func (s *stats) of(e route.Endpoint) measured {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.by[[2]string{e.ID, e.Model}]; m != nil {
		return *m
	}
	return measured{}
}

// perMillion is what a million tokens of answers have cost at an endpoint, in dollars; 0: none came.
func (s *stats) perMillion(e route.Endpoint) float64 {
	m := s.of(e)
	if m.Out == 0 {
		return 0
	}
	return s.dollars(m.Cost) / float64(m.Out) * 1e6
}
