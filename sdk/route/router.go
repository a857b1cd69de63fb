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
	explore     = .02 // chance that a request is sent to any of those drawn alike
	temperature = .2  // of the softmax over J/Jmin
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
	order   []int32 // scratch: a random order of a model's endpoints
}

type key struct{ id, model, revision, quantization string }

// state is what is known of an endpoint.
type state struct {
	Endpoint
	estimator
	breaker
	flying int
}

// model is the endpoints of one, and what all of their answers taught.
type model struct {
	states []*state
	all    estimator
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
	Limit      time.Duration // end the request when it has run for so long: it would cost more than Reserve; up to an hour and a half
	Explores   bool          // it was drawn to learn, and not for its J
	LastResort bool          // its breaker is open, as all others are

	state  *state
	prompt int64 // tokens that it has to read
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
		return nil, &NoneError{Model: request.Model, Out: out}
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
	c.Limit, c.Reserve = e.reserve(s.Price, request)
	c.prompt -= min(s.cached(request), c.prompt)
	c.trial = s.begin(now)
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

// draw looks at the endpoints of a model in a random order, until as many as are drawn may take the request. Those whose breaker is
// open are told apart, the time that they are still open being counted as waited.
func (r *Router) draw(now time.Duration, m *model, request *Request) (closed, open []candidate, out map[Rule]int) {
	r.order = r.order[:0]
	for i := range m.states {
		r.order = append(r.order, int32(i))
	}
	closed = make([]candidate, 0, drawn)
	for i := range r.order {
		j := i + r.random.IntN(len(r.order)-i)
		r.order[i], r.order[j] = r.order[j], r.order[i]
		s := m.states[r.order[i]]
		verdict := r.judge(now, m, s, request)
		if verdict.rule != "" {
			if out == nil {
				out = make(map[Rule]int)
			}
			out[verdict.rule]++
			continue
		}
		c := candidate{state: s, j: verdict.cost.J()}
		state, until := s.breaker.state(now)
		switch {
		case state != Open:
			closed = append(closed, c)
		case len(open) < drawn:
			c.j = c.j.Add(r.worth(request).forTime(until - now))
			open = append(open, c)
		}
		if len(closed) == drawn {
			break
		}
	}
	return closed, open, out
}

// verdict is what a request would cost at an endpoint, and the rule that leaves it out, if one does.
type verdict struct {
	rule    Rule
	cost    Cost
	reserve Nano
}

func (r *Router) judge(now time.Duration, m *model, s *state, request *Request) verdict {
	rule := s.asked(request)
	if rule == "" && s.MaxInFlight > 0 && s.flying >= s.MaxInFlight {
		rule = RuleBusy
	}
	if rule != "" {
		return verdict{rule: rule}
	}
	e := m.figures(s)
	v := verdict{cost: e.cost(now, s.Price, r.worth(request), r.failure, request, s.cached(request))}
	_, v.reserve = e.reserve(s.Price, request)
	switch {
	case s.Price.dear(request, v.cost.Pay):
		v.rule = RulePrice
	case request.Cap != nil && v.reserve.Cmp(request.Cap(s.ID)) > 0:
		v.rule = RuleCap
	case v.reserve.Cmp(request.Budget) > 0:
		v.rule = RuleBudget
	}
	return v
}

func (r *Router) worth(request *Request) Nano {
	if request.SecondWorth.IsZero() {
		return request.Sort.worth(r.second)
	}
	return request.Sort.worth(request.SecondWorth)
}

// figures are an endpoint's, and the model's where it has none of its own yet.
func (m *model) figures(s *state) estimator {
	e := s.estimator
	if e.timed == 0 {
		e.a, e.b = m.all.a, m.all.b
	}
	if e.paced == 0 {
		e.d = m.all.d
	}
	return e
}

// cached is how many prompt tokens an endpoint has read before, as the request says.
func (s *state) cached(request *Request) int64 {
	if request.LastEndpoint == "" || request.LastEndpoint != s.ID {
		return 0
	}
	return tokens(request.CachedTokens)
}
