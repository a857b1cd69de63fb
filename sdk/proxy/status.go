package proxy

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/route"
)

// Status is what a Server is at. Amounts are dollars.
type Status struct {
	Left      string           `json:"budget_left"` // of today, of all callers together
	Keys      []KeyStatus      `json:"keys"`
	Running   int64            `json:"running"` // requests at providers
	Providers []ProviderStatus `json:"providers"`
	Money     *MoneyStatus     `json:"money,omitempty"` // where it was asked for and is known
}

// KeyStatus is a local key's budget.
type KeyStatus struct {
	Name   string   `json:"name"`
	Budget string   `json:"budget,omitempty"` // a day's; empty: what all callers have together
	Left   string   `json:"left"`
	Models []string `json:"models,omitempty"`
}

// ProviderStatus is a provider of a model, as it was measured since the start.
type ProviderStatus struct {
	Provider     string  `json:"provider"`
	Model        string  `json:"model"`
	Region       string  `json:"region,omitempty"`
	PerHour      float64 `json:"price_per_hour"`                // of all of its GPUs
	PerSlotHour  float64 `json:"price_per_slot_hour"`           // of one request at a time
	PerMillion   float64 `json:"per_million_tokens,omitempty"`  // what a million tokens of answers came to
	FirstToken   float64 `json:"first_token_seconds,omitempty"` // as expected of a short prompt
	TokensSecond float64 `json:"tokens_per_second,omitempty"`
	Success      float64 `json:"success"`
	State        string  `json:"state"` // asked, on trial or resting
	Running      int     `json:"running"`
	Requests     int64   `json:"requests"`
	Failures     int64   `json:"failures"`
	Full         int64   `json:"full"` // times that it was full
	Spent        string  `json:"spent"`
}

var breakers = map[route.Breaker]string{route.Closed: "asked", route.HalfOpen: "on trial", route.Open: "resting"}

// Status says what the Server is at.
func (s *Server) Status() (Status, error) {
	left, err := s.config.Pool.Left("")
	if err != nil {
		return Status{}, err
	}
	st := Status{Left: s.money(left), Keys: []KeyStatus{}, Running: s.running.Load(), Providers: []ProviderStatus{}}
	if s.config.Keys != nil {
		keys, err := s.config.Keys.List()
		if err != nil {
			return Status{}, err
		}
		for _, key := range keys {
			left, err := s.config.Pool.Left(key.Name)
			if err != nil {
				return Status{}, err
			}
			st.Keys = append(st.Keys, KeyStatus{key.Name, key.Budget, s.money(left), key.Models})
		}
	}
	seen := make(map[string]bool)
	for _, e := range s.refresh(nil) {
		if seen[e.Model] {
			continue
		}
		seen[e.Model] = true
		for _, row := range s.router.Table(s.clock(), s.within(route.Request{Model: e.Model}, "", left)) {
			st.Providers = append(st.Providers, s.provider(row))
		}
	}
	return st, nil
}

func (s *Server) provider(row route.Row) ProviderStatus {
	m, e := s.stats.of(row.Endpoint), row.Endpoint
	slot := s.stats.dollars(e.Price.PerSlotSecond) * 3600
	p := ProviderStatus{
		Provider: redact.URL(e.ID), Model: e.Model, Region: e.Region, PerSlotHour: slot, PerHour: slot * float64(max(e.MaxInFlight, 1)), PerMillion: s.stats.perMillion(e),
		Success: row.Estimate.Success, State: breakers[row.Breaker], Running: row.InFlight, Requests: m.Requests, Failures: m.Failures, Full: m.Full, Spent: s.money(m.Cost),
	}
	if m.First > 0 { // what is expected of others is no measurement of this one
		p.FirstToken = row.Estimate.FirstToken.Seconds()
	}
	if m.Out > 0 {
		if per := row.Estimate.PerToken; per > 0 {
			p.TokensSecond = float64(time.Second) / float64(per)
		}
	}
	return p
}

// StatusHandler answers with Status, for who runs the Server: give it an address of its own. With "money" in the query it says where the
// money is, for which it asks the chain.
func (s *Server) StatusHandler() http.Handler {
	return s.Guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		st, err := s.Status()
		if err != nil {
			s.config.Log.Error("the proxy does not know what it is at", "err", err)
			http.Error(w, "the proxy does not know what it is at: its log says why", http.StatusInternalServerError)
			return
		}
		if r.URL.Query().Has("money") {
			st.Money = s.whereMoneyIs(r)
		}
		serve.JSON(w, http.StatusOK, st)
	}))
}

// Metrics are Prometheus's, for who runs the Server.
func (s *Server) Metrics() http.Handler {
	all := prometheus.NewRegistry()
	all.MustRegister(s.stats.requests, s.stats.attempts, s.stats.cost, s.stats.tokens, s.stats.first,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_proxy_running", Help: "Requests at providers."}, func() float64 { return float64(s.running.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_proxy_budget_left_dollars", Help: "What is left of today's budget."}, func() float64 {
			left, err := s.config.Pool.Left("")
			if err != nil {
				return -1
			}
			return s.stats.dollars(left)
		}))
	return s.Guard(promhttp.HandlerFor(all, promhttp.HandlerOpts{}))
}

// Guard has a handler for who runs the Server refuse what a web page may have sent: asked by a name that leads here, or by a script of its own.
func (s *Server) Guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if e := s.guard(r); e != nil {
			e.write(w)
			return
		}
		h.ServeHTTP(w, r)
	})
}
