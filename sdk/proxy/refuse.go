package proxy

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// fail answers with an error.
func (c *call) fail(e *APIError) {
	c.line.Status, c.line.Error = e.Status, e.Code
	if len(c.tried) > 0 {
		c.w.Header().Set(HeaderAttempts, fmt.Sprint(len(c.tried)))
		c.w.Header().Set(HeaderCost, c.money(c.cost))
	}
	e.write(c.w)
}

// overBudget says that what is left of the day does not hold a request; others: some was set aside for other ones when that was found.
func (c *call) overBudget(others bool) *APIError {
	left, err := c.config.Pool.Left(c.key.Name)
	if err != nil {
		return c.trouble("asking what is left of the budget", err)
	}
	whose, raise := "today's budget", "start the proxy with a larger --budget"
	if c.key.Name != "" {
		whose, raise = "today's budget of the local key "+c.key.Name, "raise that key's budget"
	}
	if n := c.running.Load(); n > 0 || others {
		return busy(time.Second, "budget_reserved", "Of %s $%s is left, and more is set aside for the %d requests that run now: this one finds room when they have ended.", whose, c.money(left), max(n, 1))
	}
	return overBudget("Of %s $%s is left, which this request could pass. Let its answer be shorter (max_tokens), %s, or wait until 00:00 UTC, when a new day's begins.", whose, c.money(left), raise)
}

// rules are the bounds in words, in the order in which they are named.
var rules = []struct {
	rule  route.Rule
	words string
}{
	{route.RuleOnly, "left out by the request's \"provider\" options"},
	{route.RuleQuantization, "of another quantization"},
	{route.RulePrice, "over \"provider.max_price\""},
	{route.RuleRevision, "of another revision"},
	{route.RuleRegion, "in another region"},
	{route.RulePolicy, "without a promise that is asked for"},
	{route.RuleBusy, "full with requests of this machine"},
	{route.RuleCap, "over what may be spent there"},
	{route.RuleBudget, "over what is left of the budget"},
}

// nobody says why no provider may take a request; nil: one that was missing is there again.
func (c *call) nobody(none *route.NoneError, others bool) *APIError {
	if len(c.refresh(nil)) == 0 || none.Out[route.RuleModel] > 0 || len(none.Out) == 0 {
		return c.unserved()
	}
	if none.Out[route.RuleBudget]+none.Out[route.RuleCap] > 0 {
		return c.overBudget(others)
	}
	var why []string
	for _, r := range rules {
		if n := none.Out[r.rule]; n > 0 {
			why = append(why, fmt.Sprintf("%d %s", n, r.words))
		}
	}
	words := fmt.Sprintf("No provider of the model %q may take this request: %s.", redact.Line(none.Model), strings.Join(why, ", "))
	if none.Out[route.RuleBusy] > 0 {
		return busy(time.Second, "providers_full", "%s", words)
	}
	return notFound("no_provider_fits", "%s Loosen the options, or add a provider.", words)
}

// unserved says why no provider serves a model now; nil: one does, again.
func (c *call) unserved() *APIError {
	missing := c.config.Pool.Missing(c.r.Context(), c.q.models)
	known := c.config.Pool.Endpoints()
	if !c.looked && slices.ContainsFunc(known, func(e route.Endpoint) bool { return slices.Contains(c.q.models, e.Model) }) {
		c.looked = true
		return nil
	}
	name := redact.Line(strings.Join(c.q.models, ", "))
	var why []string
	var short *pool.WalletError
	dear := 0
	for _, m := range missing {
		var s *pool.WalletError
		switch words := "did not answer"; {
		case errors.As(m.Err, &s):
			if short == nil || s.Needs.Lt(&short.Needs) {
				short = s
			}
		case errors.Is(m.Err, wallet.ErrPrice):
			dear++
		default:
			again := "now"
			if wait := time.Until(m.Again); !m.Again.IsZero() && wait > 0 {
				again = "in " + wait.Round(time.Second).String()
			}
			var said *wire.Problem
			switch {
			case m.Err == nil:
				words = "has not said its price yet"
			case errors.As(m.Err, &said): // such as that its inference server is down
				words = "takes no requests now"
			}
			why = append(why, fmt.Sprintf("%s %s, and is asked again %s", redact.URL(m.URL), words, again))
		}
	}
	switch {
	case short != nil:
		return walletEmpty(short)
	case len(why) > 0:
		more := ""
		if n := len(why) - mostNamed; n > 0 {
			why, more = why[:mostNamed], fmt.Sprintf("; and %d more", n)
		}
		return failedAt("No provider of the model %q can be asked now: %s%s. Send the request again in a moment.", name, strings.Join(why, "; "), more)
	case dear > 0:
		return notFound("no_provider_fits", "Every provider of the model %q costs more than --max-price allows. Start the proxy with a higher one, or add a provider.", name)
	case len(known) == 0: // the list is empty, or the network is gone
		return failedAt("No provider answers now: each of those on the list is asked for its price again and again. Send the request again in a moment.")
	}
	return notFound("model_not_found", "No provider serves the model %q now. GET /v1/models lists those that are served; --providers says where they are looked for.", name)
}

// mostNamed is how many providers an error names.
const mostNamed = 3

// exhausted says that every provider that was tried has failed, or is full.
func (c *call) exhausted() *APIError {
	var all []string
	after := time.Duration(0)
	for _, f := range c.tried {
		all = append(all, redact.URL(f.endpoint)+" "+f.why)
		if after == 0 || f.after > 0 && f.after < after {
			after = f.after
		}
	}
	words := strings.Join(all, "; ")
	if last := c.tried[len(c.tried)-1].short; last != nil && !slices.ContainsFunc(c.tried, func(f failure) bool { return f.short == nil }) {
		return walletEmpty(last)
	}
	if !slices.ContainsFunc(c.tried, func(f failure) bool { return !f.throttled }) {
		return busy(after, "providers_full", "Every provider that was asked is full: %s. Send the request again in a moment.", words)
	}
	if c.tried[len(c.tried)-1].large {
		return &APIError{Status: http.StatusUnprocessableEntity, Type: "invalid_request_error", Code: "answer_too_large", Message: fmt.Sprintf("The answer is too long to be passed on: %s. %s %s", words, c.charged(), tooLarge)}
	}
	for _, f := range c.tried {
		if f.cut == nil {
			continue
		}
		if advice, again := c.afterCut(f.cut); !again {
			return &APIError{Status: http.StatusGatewayTimeout, Type: "server_error", Code: "time_used", Message: fmt.Sprintf("No provider answered: %s. %s %s", words, c.charged(), advice)}
		}
	}
	return failedAt("No provider answered: %s. %s Send the request again, or add a provider.", words, c.charged())
}

// tooLarge is what to do about an answer that is longer than what is passed on: any provider's would be, and would be paid.
const tooLarge = "The same request would be answered at the same length, and charged, again: ask for less at once, or for a stream."

// charged says what the request's attempts have cost.
func (c *call) charged() string {
	if c.cost.IsZero() {
		return "Nothing is charged."
	}
	return "$" + c.money(c.cost) + " is charged for the time that this took."
}

// afterCut is what to do after our limit has cut a request, and whether the same one would be given more time now: else it would be cut, and
// charged, again.
func (c *call) afterCut(choice *route.Choice) (advice string, again bool) {
	left, _ := c.config.Pool.Left(c.key.Name) // none, if it cannot be asked
	request := c.within(c.q.request(c), c.key.Name, left)
	request.Model, request.Only, request.Ignore = choice.Endpoint.Model, []string{choice.Endpoint.ID}, nil
	for _, row := range c.router.Table(c.clock(), request) {
		if row.Limit > choice.Limit+choice.Limit/4 {
			return fmt.Sprintf("Send the request again: there it may run for %s now.", row.Limit.Round(time.Second)), true
		}
	}
	return fmt.Sprintf("The same request would be given no more time: more is reserved for a max_tokens over %d and out of a larger budget. Or ask another provider (provider.ignore).", request.MaxTokens), false
}
