package route

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// How a choice is drawn.
const (
	explore     = .02 // chance that a request is sent anywhere, to learn
	temperature = .1  // of the softmax over J/Jmin
	drawn       = 32  // endpoints that are looked at
	weighed     = 16  // of those, the ones with the least J
)

// Config is what a Router does not learn.
type Config struct {
	Rand        *rand.Rand // required; the Router alone uses it from then on
	Decimals    uint8      // of the token, for the defaults below; up to 18, default 6
	SecondWorth Nano       // what a second of waiting is worth; default 0.0004 of the token, 1.44 an hour
	FailureCost Nano       // what a failure costs beside time and price; default 0.0005 of the token
}

// Router chooses endpoints and learns of them. It is safe for concurrent use.
type Router struct {
	mu      sync.Mutex
	random  *rand.Rand
	second  Nano
	failure Nano
	now     time.Duration // the latest that was given
	states  map[key]*state
	models  map[string]*model
	among   []*state // scratch: endpoints that a request may be sent to
	asks    uint64   // requests so far; endpoints that one names are marked with it
}

type key struct{ id, model, revision, quantization string }

// state is what is known of an endpoint.
type state struct {
	Endpoint
	estimator
	breaker
	flying int
	class  *class
	named  uint64 // the last request, by Router.asks, that named it
}

// New is a Router without endpoints.
func New(config Config) (*Router, error) {
	if config.Rand == nil {
		return nil, errors.New("a router needs Config.Rand: without it choices are not random")
	}
	if config.Decimals > 18 {
		return nil, fmt.Errorf("%w: a token of %d decimals, at most 18 are known", ErrAmount, config.Decimals)
	}
	if config.Decimals == 0 {
		config.Decimals = 6
	}
	token := Base(1)
	for range config.Decimals {
		token = token.mulDiv(10, 1, false)
	}
	if config.SecondWorth.IsZero() {
		config.SecondWorth = token.mulDiv(4, 10_000, false)
	}
	if config.FailureCost.IsZero() {
		config.FailureCost = token.mulDiv(5, 10_000, false)
	}
	return &Router{
		random: config.Rand, second: config.SecondWorth, failure: config.FailureCost,
		states: make(map[key]*state), models: make(map[string]*model),
	}, nil
}

// Set replaces the endpoints. What was learned of those that stay is kept. One without ID or model, and two of one name, are
// refused, and nothing is changed then.
func (r *Router) Set(endpoints []Endpoint) error {
	seen := make(map[key]bool, len(endpoints))
	for _, e := range endpoints {
		if k := e.key(); e.ID == "" || e.Model == "" || len(e.ID) > 512 || e.MaxInFlight < 0 || seen[k] {
			return fmt.Errorf("endpoint %.80q of model %.80q: it needs an ID of at most 512 bytes, a model, and a name that no other has", e.ID, e.Model)
		}
		seen[e.key()] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	states, models := make(map[key]*state, len(endpoints)), make(map[string]*model)
	for _, e := range endpoints {
		k := e.key()
		s := r.states[k]
		if s == nil {
			s = &state{estimator: newEstimator()}
		}
		e.Policies = slices.Clone(e.Policies)
		s.Endpoint, states[k] = e, s
		if models[e.Model] == nil {
			models[e.Model] = &model{all: newEstimator()}
			if before := r.models[e.Model]; before != nil {
				models[e.Model].all = before.all
			}
		}
		models[e.Model].states = append(models[e.Model].states, s)
	}
	for _, m := range models {
		m.index()
	}
	r.states, r.models = states, models
	return nil
}

func (e *Endpoint) key() key { return key{e.ID, e.Model, e.Revision, e.Quantization} }

// Choice is an endpoint for a request. End it once by Router.Done: until then it counts as in flight.
type Choice struct {
	Endpoint   Endpoint
	Cost       Cost          // expected
	Estimate   Estimate      // by which
	Reserve    Nano          // what to reserve of the budget before the request is sent: whole base units
	Limit      time.Duration // end the request when it has run for so long, by Cut: it would cost more than Reserve; up to an hour and a half
	Explores   bool          // it was drawn to learn, and not for its J
	LastResort bool          // its breaker is open, as all others are

	state  *state
	prompt int64 // tokens that it has to read
	most   int64 // tokens that its answer may have
	flying int   // others that were there when it was sent
	trial  bool
	ended  bool
}

// Choose picks an endpoint for a request. now is the time since any fixed moment, by a monotonic clock; one that goes back stands
// still. The error is a *NoneError where hard rules leave nobody.
func (r *Router) Choose(now time.Duration, request Request) (*Choice, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now = r.tick(now)
	m := r.models[request.Model]
	if m == nil {
		return nil, &NoneError{Model: request.Model, Out: map[Rule]int{RuleModel: 1}}
	}
	closed, open, out := r.draw(now, m, &request)
	var picked candidate
	explores := false
	switch {
	case len(closed) > 0:
		picked, explores = r.pick(closed)
	case len(open) > 0:
		picked = slices.MinFunc(open, byJ)
	default:
		return nil, &NoneError{Model: request.Model, Out: out.byRule()}
	}
	c := r.choice(now, m, &request, picked)
	c.Explores, c.LastResort = explores, len(closed) == 0
	return c, nil
}

func (r *Router) choice(now time.Duration, m *model, request *Request, picked candidate) *Choice {
	s := picked.state
	e := m.figures(s)
	c := &Choice{Endpoint: s.Endpoint, Estimate: e.estimate(now, request), state: s, prompt: tokens(request.InTokens)}
	c.Cost = e.cost(now, s.Price, r.worth(request), r.failure, request, s.cached(request))
	c.Limit, c.Reserve = e.most(s.Price, request, s.ID)
	c.most = request.maxTokens()
	c.prompt -= min(s.cached(request), c.prompt)
	c.trial, c.flying = s.begin(now), s.flying
	s.flying++
	return c
}

// tick is the time of a call, never before that of another.
func (r *Router) tick(now time.Duration) time.Duration {
	r.now = max(r.now, now)
	return r.now
}

// candidate is an endpoint that may be chosen.
type candidate struct {
	state *state
	j     Nano
}

func byJ(a, b candidate) int { return a.j.Cmp(b.j) }

// draw looks at the endpoints that may take a request in a random order, until as many as are drawn may. Those whose breaker is
// open are told apart, the time that they are still open being counted as waited. What out counts is whole where none may.
func (r *Router) draw(now time.Duration, m *model, request *Request) (closed, open []candidate, out tally) {
	among, out := r.admit(m, request)
	closed = make([]candidate, 0, drawn)
	for i := range among {
		j := i + r.random.IntN(len(among)-i)
		among[i], among[j] = among[j], among[i]
		s := among[i]
		state, until := s.breaker.state(now)
		if state == Open && len(open) == drawn {
			continue
		}
		e := m.figures(s)
		if rule, _, _ := r.bounds(s, &e, request); rule != "" {
			out.add(rule, 1)
			continue
		}
		cost := e.cost(now, s.Price, r.worth(request), r.failure, request, s.cached(request))
		c := candidate{state: s, j: cost.J()}
		if state == Open {
			c.j = c.j.Add(r.worth(request).forTime(until - now))
			open = append(open, c)
			continue
		}
		if closed = append(closed, c); len(closed) == drawn {
			break
		}
	}
	return closed, open, out
}

// bounds is the first rule that a request breaks at an endpoint by what is in flight there and by money, or none; what is expected to
// be paid, where that was asked for; and what is to be reserved at the least.
func (r *Router) bounds(s *state, e *estimator, request *Request) (rule Rule, pay, reserve Nano) {
	if s.MaxInFlight > 0 && s.flying >= s.MaxInFlight {
		return RuleBusy, Nano{}, Nano{}
	}
	if request.MaxPrice != (Price{}) {
		in, out := request.tokens()
		if pay = s.Price.Pay(e.wait(in, out), in, out); s.Price.dear(request, pay) {
			return RulePrice, pay, Nano{}
		}
	}
	_, reserve = e.least(s.Price, request)
	switch {
	case request.Cap != nil && reserve.Cmp(request.Cap(s.ID)) > 0:
		return RuleCap, pay, reserve
	case reserve.Cmp(request.Budget) > 0:
		return RuleBudget, pay, reserve
	}
	return "", pay, reserve
}

func (r *Router) worth(request *Request) Nano {
	if request.SecondWorth.IsZero() {
		return request.Sort.worth(r.second)
	}
	return request.Sort.worth(request.SecondWorth)
}

// cached is how many prompt tokens an endpoint has read before, as the request says.
func (s *state) cached(request *Request) int64 {
	if request.LastEndpoint == "" || request.LastEndpoint != s.ID {
		return 0
	}
	return tokens(request.CachedTokens)
}
