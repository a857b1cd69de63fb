package proxy

import (
	"slices"

	"github.com/gpupay/gpupay/sdk/internal/continuation"
	"github.com/gpupay/gpupay/sdk/route"
)

// notes is where what is said of an answer is kept, for another provider to go on with when the one that began it fails; nil: nobody could.
func (q *query) notes() *continuation.Said {
	if q.path != pathChat || !q.stream || q.options.noRecovery || !continuation.Plain(q.members) {
		return nil
	}
	return new(continuation.Said)
}

// goesOn reports whether an answer that has begun and broken off may be gone on with elsewhere, and has what is missing of it be asked for: all of
// it if nothing was said.
func (c *call) goesOn() bool {
	if c.said == nil || !c.said.Plain() {
		return false
	}
	if !c.said.Begun() {
		return true
	}
	rest := *c.whole
	var ok bool
	if rest.members, ok = c.said.Rest(c.whole.members); !ok {
		return false
	}
	rest.inTok += c.said.Tokens()
	if rest.maxTok > 0 {
		rest.maxTok -= c.said.Tokens()
	}
	c.q = &rest
	return true
}

// elsewhere are the steps in which what is missing of an answer is looked for: at who serves the same model, revision and quantization and goes on
// with text. All of an answer of which nothing was said may come from whoever serves the model.
func (c *call) elsewhere(steps []step, endpoints []route.Endpoint) []step {
	by := c.by
	var able, out []string
	for _, e := range endpoints {
		switch {
		case e.Model != by.Model:
		case !c.said.Begun() || e.Prefill && e.Revision == by.Revision && e.Quantization == by.Quantization:
			able = append(able, e.ID)
		default: // a provider is asked by its URL and the model alone
			out = append(out, e.ID)
		}
	}
	able = slices.DeleteFunc(able, func(id string) bool { return slices.Contains(out, id) })
	var left []step
	for _, s := range steps {
		if only := slices.DeleteFunc(slices.Clone(able), func(id string) bool { return len(s.only) > 0 && !slices.Contains(s.only, id) }); s.model == by.Model && len(only) > 0 {
			left = append(left, step{s.model, only})
		}
	}
	return left
}

// nowhere says why nobody goes on with an answer; none: what the router said.
func (c *call) nowhere(none *route.NoneError, others bool) *APIError {
	switch {
	case none != nil && none.Out[route.RuleBudget]+none.Out[route.RuleCap] > 0:
		return c.overBudget(others)
	case none != nil && none.Out[route.RuleBusy] > 0:
		return &APIError{Message: "the providers that could are full with requests of this machine."}
	}
	return &APIError{Message: `no other provider that serves the same model, revision and quantization says that it goes on with text ("prefill" in the list of providers).`}
}
