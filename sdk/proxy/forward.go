package proxy

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/internal/continuation"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/wire"
)

// errLimit ends a request that has run for as long as was reserved for.
var errLimit = errors.New("the time that was reserved for is over")

// doneTimeout bounds how long a reservation is corrected, in which its caller does not wait.
const doneTimeout = 10 * time.Second

// payTimeout bounds how long a request waits for a provider to be paid for the first time, which takes some blocks of the chain. It goes on
// for later requests, while this one goes elsewhere.
const payTimeout = 30 * time.Second

// mostLost is how often a request finds the budget taken by another one that was faster until it is told so.
const mostLost = 3

// call is one request of a caller, at however many providers.
type call struct {
	*Server
	w     http.ResponseWriter
	r     *http.Request
	q     *query // what is asked for now: what is missing of an answer that has begun
	whole *query // as the caller asked
	key   Key
	began time.Time

	tried  []failure
	ignore []string
	lost   int                // times that another request took meanwhile what was left
	looked bool               // whether one that was missing was looked for again
	begun  bool               // whether the caller has got something of an answer
	by     route.Endpoint     // that began it, or its text
	said   *continuation.Said // what that is; nil: nobody could go on with it
	out    *serve.Stream      // of an answer that is a stream
	cost   route.Nano         // of all attempts
	answer func()             // writes what is left of a whole answer, once its cost is known
	line   line               // what is said of it at the end
}

// failure is why an attempt came to nothing, in words for the caller.
type failure struct {
	endpoint, why string
	throttled     bool
	cut           *route.Choice // by our own limit; nil: it was not
	large         bool          // longer than what is passed on
	after         time.Duration
	short         *pool.WalletError // nil: it did not fail for want of money
}

// attempt is one request to one provider.
type attempt struct {
	choice *route.Choice
	hold   Hold
	resume bool   // whether it goes on with an answer that has begun
	held   []byte // comments before the first event
	sent   time.Time
	first  time.Time    // when the first token came; zero: none has
	out    int64        // tokens of the answer, as we counted them
	ended  map[int]bool // the choices that have said their end
	limit  context.Context
}

// ending is how an attempt ended.
type ending struct {
	outcome route.Outcome
	charged bool // whether the time that it took is paid: it was answered, or we have ended it
	failed  bool // whether it was answered with a failure; of what broke off the payments judge themselves
	large   bool // whether the answer is longer than what is passed on
	why     string
	after   time.Duration // of a provider that is full
}

// serve answers the request.
func (c *call) serve() {
	for len(c.tried) < c.config.Attempts && c.r.Context().Err() == nil {
		a, failed := c.choose()
		if failed != nil {
			c.giveUp(failed)
			return
		}
		if a == nil { // the provider could not be paid
			continue
		}
		end := c.try(a)
		c.settle(a, end)
		switch end.outcome {
		case route.Done:
			c.answer()
			return
		case route.Aborted:
			return
		}
		c.next(a, end)
		if c.begun && !c.goesOn() {
			break
		}
		if end.large || end.outcome == route.Cut { // the next one would be paid for the same
			break
		}
		if c.q.options.noFallbacks && len(c.q.options.order) == 0 {
			break
		}
	}
	c.giveUp(nil)
}

// giveUp ends a request that nobody has answered whole, with an error, or with that of all that were asked.
func (c *call) giveUp(failed *APIError) {
	switch {
	case c.begun:
		c.breakOff(failed)
	case failed != nil:
		c.fail(failed)
	case c.r.Context().Err() == nil:
		c.fail(c.exhausted())
	}
}

// choose picks an endpoint and reserves what it can cost there. Without an attempt and an error, the endpoint is to be left out.
func (c *call) choose() (*attempt, *APIError) {
	others := c.running.Load() > 0 // asked before what is left: that is then without what is set aside for them, though they end meanwhile
	left, err := c.config.Pool.Left(c.key.Name)
	if err != nil {
		return nil, c.trouble("asking what is left of the budget", err)
	}
	request := c.within(c.q.request(c), c.key.Name, left)
	endpoints := c.refresh(c.q.models)
	steps := c.q.steps(endpoints)
	if c.begun {
		steps = c.elsewhere(steps, endpoints)
	}
	var none *route.NoneError
	for _, step := range steps {
		request.Model, request.Only = step.model, step.only
		choice, err := c.router.Choose(c.clock(), request)
		var out *route.NoneError
		switch {
		case errors.As(err, &out):
			if none == nil || none.Out[route.RuleModel] > 0 || c.begun && out.Out[route.RuleBudget]+out.Out[route.RuleCap] > 0 {
				none = out
			}
			continue
		case err != nil:
			return nil, c.trouble("choosing a provider", err)
		}
		return c.reserve(choice)
	}
	if c.begun {
		return nil, c.nowhere(none, others)
	}
	if len(c.tried) > 0 {
		return nil, c.exhausted()
	}
	failed := c.nobody(none, others)
	if failed == nil { // there is one again
		return nil, nil
	}
	return nil, failed
}

// within bounds a request by what is left to a local key.
func (s *Server) within(r route.Request, key string, left route.Nano) route.Request {
	r.Budget, r.Cap = left, func(endpoint string) route.Nano { return s.config.Pool.Room(key, endpoint, left) }
	return r
}

func (c *call) reserve(choice *route.Choice) (*attempt, *APIError) {
	ctx, cancel := context.WithTimeout(c.r.Context(), payTimeout)
	defer cancel()
	var gone *APIError
	if c.key, gone = c.caller(c.r); gone != nil { // it was removed while the request's body came, or while another provider was tried
		c.router.Done(c.clock(), choice, route.Result{Outcome: route.Aborted})
		return nil, gone
	}
	c.running.Add(1) // from here on something may be set aside for it
	hold, err := c.config.Pool.Reserve(ctx, c.key.Name, choice.Endpoint, choice.Reserve)
	if err == nil {
		return &attempt{choice: choice, hold: hold}, nil
	}
	c.running.Add(-1)
	if errors.Is(err, ErrBudget) || c.r.Context().Err() != nil {
		c.router.Done(c.clock(), choice, route.Result{Outcome: route.Aborted})
		if c.r.Context().Err() != nil {
			return nil, failedAt("The request was given up.")
		}
		if c.lost++; c.lost < mostLost { // another one was faster: what is left now may do
			return nil, nil
		}
		return nil, c.overBudget(true)
	}
	c.debug("a provider could not be paid", choice.Endpoint.ID, err)
	a, end, short := &attempt{choice: choice}, ending{why: "could not be paid"}, (*pool.WalletError)(nil)
	if errors.As(err, &short) { // no fault of the provider's
		end = ending{outcome: route.Aborted, why: "wants more than is in the wallet"}
	}
	c.router.Done(c.clock(), choice, route.Result{Outcome: end.outcome})
	c.next(a, end)
	c.tried[len(c.tried)-1].short = short
	return nil, nil
}

// try sends the request, and passes the answer on if it is one.
func (c *call) try(a *attempt) ending {
	limit, cancel := context.WithTimeoutCause(c.r.Context(), a.choice.Limit, errLimit)
	defer cancel()
	a.limit, a.sent, a.resume = limit, c.config.Now(), c.begun
	res, err := a.hold.RoundTrip(c.q.outgoing(c.r.WithContext(limit), a.choice.Endpoint.Model))
	if err != nil {
		c.debug("a provider did not answer", a.choice.Endpoint.ID, kind(err))
		return c.broken(a, err, "did not answer")
	}
	defer res.Body.Close()
	own := wire.IsProblem(res) && res.Header.Get(wire.RequestHeader) == "" // the provider's own, which took no slot
	switch {
	case res.StatusCode == http.StatusTooManyRequests:
		return ending{outcome: route.Throttled, failed: true, why: "is full", after: retryAfter(res)}
	case res.StatusCode == http.StatusPaymentRequired:
		return ending{failed: true, why: "wants more than was reserved"}
	case own, res.StatusCode < 200, res.StatusCode >= 300 && res.StatusCode < 400, res.StatusCode == http.StatusUnauthorized,
		res.StatusCode == http.StatusRequestTimeout, res.StatusCode == http.StatusTooEarly:
		return ending{failed: true, why: "refused the request"}
	case res.StatusCode >= 500:
		return ending{why: "reported an error"}
	case res.StatusCode == http.StatusForbidden, res.StatusCode == http.StatusNotFound: // of the inference server, which a sidecar bills its time
		return ending{charged: true, why: "does not serve this request"}
	case a.resume && res.StatusCode >= 400:
		return ending{charged: true, why: "refused to go on with the answer"}
	}
	return c.relay(a, res)
}

// broken is how an attempt ended whose connection did: by the caller, by the limit or by what the hold pays for, which is shorter where a
// provider has raised its price, and either no failure of the provider, or by the provider, which costs nothing.
func (c *call) broken(a *attempt, err error, why string) ending {
	switch {
	case c.r.Context().Err() != nil:
		return ending{outcome: route.Aborted, charged: true, why: "the caller left"}
	case a.limit.Err() != nil, errors.Is(err, pool.ErrLimit):
		limit := min(a.choice.Limit, c.config.Now().Sub(a.sent)).Round(time.Millisecond)
		return ending{outcome: route.Cut, charged: true, why: "had not ended its answer after the " + limit.String() + " that were reserved for it"}
	}
	return ending{why: why}
}

// settle tells the router and the pool how an attempt ended.
func (c *call) settle(a *attempt, end ending) {
	took := c.config.Now().Sub(a.sent)
	result := route.Result{Outcome: end.outcome, Total: took, OutTokens: a.out, RetryAfter: end.after}
	if !a.first.IsZero() {
		result.FirstToken = a.first.Sub(a.sent)
	} else if end.outcome == route.Cut && c.q.stream {
		result.FirstToken = took
	}
	c.router.Done(c.clock(), a.choice, result)
	cost := route.Nano{}
	if end.charged {
		cost = a.choice.Endpoint.Price.Pay(min(took, a.choice.Limit), c.q.inTok, a.out)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), doneTimeout)
	defer cancel()
	done := func() error { return a.hold.Done(ctx, cost) }
	if end.failed {
		done = func() error { return a.hold.Fail(ctx) }
	}
	if err := done(); err != nil { // it stays reserved at its most, until the pool corrects it
		c.debug("a reservation could not be corrected", a.choice.Endpoint.ID, err)
	}
	c.running.Add(-1)
	c.cost = c.cost.Add(cost)
	c.line.of(a, end)
	c.stats.attempt(a, end, took, cost, c.q.inTok)
	if end.outcome == route.Done {
		c.sessions.ran(c.q.turns, a.choice.Endpoint.ID, c.q.inTok)
		c.learned.add(c.key.Name, a.choice.Endpoint.Model, c.line.Out)
	}
}

// next leaves a provider out of what is tried from here on.
func (c *call) next(a *attempt, end ending) {
	f := failure{endpoint: a.choice.Endpoint.ID, why: end.why, throttled: end.outcome == route.Throttled, after: end.after, large: end.large}
	if end.outcome == route.Cut {
		f.cut = a.choice
	}
	c.tried = append(c.tried, f)
	c.ignore = append(c.ignore, a.choice.Endpoint.ID)
}

// request is what the router is asked, but for the model, the endpoints and the budget.
func (q *query) request(c *call) route.Request {
	last := c.sessions.last(q.turns)
	r := route.Request{
		InTokens: q.inTok, MaxTokens: q.maxTok, Ignore: c.ignore, Quantizations: q.options.quantizations, Sort: q.options.sort,
		LastEndpoint: last.endpoint, CachedTokens: min(last.tokens, q.inTok),
		MaxPrice: route.Price{PerInputToken: perToken(q.options.promptPrice, c.config.Decimals), PerOutputToken: perToken(q.options.completionPrice, c.config.Decimals)},
	}
	if r.MaxTokens <= 0 {
		r.MaxTokens = c.config.MaxTokens
	}
	r.OutTokens = min(max(1, c.learned.expect(c.key.Name, q.models[0])-c.line.Out), r.MaxTokens)
	if q.path == pathEmbeddings {
		r.OutTokens = 1
	}
	r.Ignore = slices.Concat(r.Ignore, named(c.config.Pool.Endpoints(), q.options.ignore))
	return r
}

func (c *call) debug(what, endpoint string, err any) {
	c.config.Log.Debug(what, "provider", redact.URL(endpoint), "err", err)
}

// trouble is an error of this machine's.
func (c *call) trouble(doing string, err error) *APIError {
	c.config.Log.Error("the proxy failed", "doing", doing, "err", err)
	return &APIError{Status: http.StatusInternalServerError, Type: "server_error", Code: "proxy_failed", Message: "The proxy on this machine failed while " + doing + ": its log says why."}
}
