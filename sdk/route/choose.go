package route

import (
	"math"
	"slices"
	"time"
)

// pick draws one of several.
func (r *Router) pick(from []candidate) (picked candidate, explores bool) {
	explores = r.random.Float64() < explore
	slices.SortStableFunc(from, byJ)
	if !explores {
		from = from[:min(len(from), weighed)]
	}
	var weights [drawn]float64
	sum := 0.
	for i, c := range from {
		if weights[i] = weight(c.j, from[0].j); explores {
			weights[i] = 1 / max(c.j.float(), 1) // what it costs to learn of an endpoint is alike for all
		}
		sum += weights[i]
	}
	at := r.random.Float64() * sum
	for i, c := range from {
		if at -= weights[i]; at < 0 {
			return c, explores
		}
	}
	return from[0], explores
}

// weight is 1 for the least J, and of no other more.
func weight(j, least Nano) float64 {
	if j == least {
		return 1
	}
	if least.IsZero() {
		return 0
	}
	return math.Exp(-(j.float()/least.float() - 1) / temperature)
}

// Outcome is how a request ended, as the caller saw it.
type Outcome uint8

const (
	Failed    Outcome = iota // refused, broken off, timed out, or its bill was refused: it counts against the endpoint
	Done                     // its answer came whole
	Throttled                // 429: the endpoint is full, and not asked for a while
	Aborted                  // by the caller: it counts neither way
	Cut                      // by Choice.Limit: its time and tokens so far are the least that it takes. Without a token it counts against the endpoint
)

// Result is what one request came to, measured by the caller's own clock. Any value is taken, and brought within the bounds.
type Result struct {
	Outcome    Outcome
	FirstToken time.Duration // from its sending to the first token; up to an hour; 0: none came. Of a stream that was Cut before it: Total
	Total      time.Duration // from its sending to the last byte; up to an hour
	OutTokens  int64         // of the answer, as the caller counted them: not what the endpoint says
	Claimed    time.Duration // slot time that the endpoint wants paid; 0: not said. More than Total and 50 ms is a failure
	RetryAfter time.Duration // of a 429, from 0.5 s to 5 min; 0: it said none
}

// Done ends a choice and learns from it. A second time, and for an endpoint that is gone, it does nothing.
func (r *Router) Done(now time.Duration, c *Choice, result Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now = r.tick(now)
	if c == nil || c.state == nil || c.ended {
		return
	}
	c.ended = true
	s := c.state
	s.flying--
	if c.trial {
		s.trying = false
	}
	if result.Claimed > within(result.Total)+tolerance {
		result.Outcome = Failed
	}
	switch result.Outcome {
	case Done, Aborted:
		r.learn(s, c, result)
	case Cut: // of this endpoint alone: one that hangs says nothing of others
		if m := r.models[s.Model]; m != nil {
			s.estimator = m.known(s)
		}
		s.estimator.learnCut(c.prompt, c.most, c.flying, result)
		if result.OutTokens <= 0 {
			result.Outcome = Failed
		}
	}
	switch result.Outcome {
	case Done:
		s.count(now, true)
		s.succeed(c.trial)
	case Throttled:
		s.throttle(now, result.RetryAfter, r.random)
	case Aborted, Cut:
	default:
		s.count(now, false)
		s.fail(now, r.random)
	}
}

func (r *Router) learn(s *state, c *Choice, result Result) {
	if m := r.models[s.Model]; m != nil {
		s.estimator = m.known(s)
		m.all.learn(c.prompt, c.flying, result)
	}
	s.estimator.learn(c.prompt, c.flying, result)
}

// Row is an endpoint as a dashboard shows it for a request.
type Row struct {
	Endpoint Endpoint
	Cost     Cost     // expected; zero where a rule leaves it out that is not about money
	Estimate Estimate // by which
	Breaker  Breaker
	Until    time.Duration // to when an open breaker stays so, on the caller's clock
	InFlight int           // choices not ended
	Limit    time.Duration // for how long the request might run there, see Choice; 0: it is out
	Out      Rule          // by which it is out; empty: it is in
	Why      string        // in words; empty: it is in
}

// Table is what all endpoints of a request's model would cost, in the order in which they were set. It changes nothing.
func (r *Router) Table(now time.Duration, request Request) []Row {
	r.mu.Lock()
	defer r.mu.Unlock()
	now = max(now, r.now)
	m := r.models[request.Model]
	if m == nil {
		return nil
	}
	rows := make([]Row, 0, len(m.states))
	for _, s := range m.states {
		e := m.figures(s)
		row := Row{Endpoint: s.Endpoint, Estimate: e.estimate(now, &request), InFlight: s.flying, Out: s.asked(&request)}
		var pay, reserve Nano
		if row.Out == "" {
			row.Out, pay, reserve = r.bounds(s, &e, &request)
		}
		if row.Out == "" || row.Out == RulePrice || row.Out == RuleCap || row.Out == RuleBudget {
			row.Cost = e.cost(now, s.Price, r.worth(&request), r.failure, &request, s.cached(&request))
		}
		if row.Out == "" {
			row.Limit, _ = e.most(s.Price, &request, s.ID)
		}
		row.Why = row.Out.words(&s.Endpoint, &request, pay, reserve)
		row.Breaker, row.Until = s.breaker.state(now)
		rows = append(rows, row)
	}
	return rows
}
