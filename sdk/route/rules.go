package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Endpoint is where a model is served, as its offer says. ID, Model, Revision and Quantization together name it: what was learned
// is kept for as long as they stay.
type Endpoint struct {
	ID           string   // a name of the caller's, such as its URL; at most 512 bytes, not empty
	Model        string   // not empty
	Revision     string   // of the model; empty: not said, and out for requests that want one
	Quantization string   // such as fp8; empty: not said, likewise
	Region       string   // where it stands; empty: not said, likewise
	Policies     []string // what it promises, such as no-store; empty: nothing
	Prefill      bool     // whether it goes on with the text of a last message of the assistant's. No rule looks at it
	Price        Price    // by its signed offer
	MaxInFlight  int      // the most requests of this Router at once; 0: no bound
}

// Request is what a caller wants, and what it may cost. The zero value of a bound is no bound, but for Budget.
type Request struct {
	Model         string                     // exactly; required
	InTokens      int64                      // of the prompt, from 0 to 4,194,304; what is over counts as that
	OutTokens     int64                      // that the answer is expected to have, from 1 to MaxTokens; 0: MaxTokens
	MaxTokens     int64                      // that the answer may have, from 1 to 4,194,304; 0: 4,096
	Budget        Nano                       // what may still be reserved. Zero: nothing, and only what is free can be chosen
	Cap           func(endpoint string) Nano // what may still be signed for at an endpoint, beside Budget; nil: Budget alone. It must not call the Router
	MaxPrice      Price                      // PerSlotSecond: of endpoints priced by it. The others: what is expected to be paid, by tokens, however it is priced. A part of 0: no bound
	Sort          Sort                       // default SortCost
	SecondWorth   Nano                       // what a second of waiting is worth; 0: the Router's
	Revision      string                     // of the model; empty: any
	Quantizations []string                   // one of these; empty: any
	Regions       []string                   // one of these; empty: any
	Policies      []string                   // all of these; empty: none
	Only          []string                   // endpoints; empty: all
	Ignore        []string                   // endpoints, such as those that this request has failed at
	LastEndpoint  string                     // where the session's turn before ran; empty: nowhere
	CachedTokens  int64                      // of the prompt that LastEndpoint has read already, from 0 to InTokens
}

func (r *Request) tokens() (in, out int64) {
	in, out = tokens(r.InTokens), tokens(r.OutTokens)
	if out == 0 {
		out = r.maxTokens()
	}
	return in, min(out, r.maxTokens())
}

func (r *Request) maxTokens() int64 {
	if r.MaxTokens <= 0 {
		return 4096
	}
	return tokens(r.MaxTokens)
}

// Rule is a bound that no choice breaks, whatever else is to be had.
type Rule string

const (
	RuleModel        Rule = "model"        // nobody serves it
	RuleOnly         Rule = "only"         // the request names others, or not this one
	RuleRevision     Rule = "revision"     // of the model
	RuleQuantization Rule = "quantization" // of the model
	RuleRegion       Rule = "region"
	RulePolicy       Rule = "policy" // a promise is missing
	RuleBusy         Rule = "busy"   // MaxInFlight requests are there
	RulePrice        Rule = "price"  // over MaxPrice
	RuleCap          Rule = "cap"    // what it may cost is more than may be signed for there
	RuleBudget       Rule = "budget" // what it may cost is more than the budget has
)

// rules in the order in which they are tried. An endpoint is out by the first one.
var rules = [...]Rule{RuleModel, RuleOnly, RuleRevision, RuleQuantization, RuleRegion, RulePolicy, RuleBusy, RulePrice, RuleCap, RuleBudget}

// tally counts endpoints by the rule that leaves them out.
type tally [len(rules)]int

func (t *tally) add(rule Rule, n int) { t[slices.Index(rules[:], rule)] += n }

func (t *tally) byRule() map[Rule]int {
	out := make(map[Rule]int)
	for i, n := range t {
		if n > 0 {
			out[rules[i]] = n
		}
	}
	return out
}

// asked is the first rule by which an endpoint is not for a request at all, or none.
func (e *Endpoint) asked(r *Request) Rule {
	if len(r.Only) > 0 && !slices.Contains(r.Only, e.ID) || slices.Contains(r.Ignore, e.ID) {
		return RuleOnly
	}
	return e.offers(r)
}

// offers is the first rule that what an endpoint says of itself breaks, or none.
func (e *Endpoint) offers(r *Request) Rule {
	switch {
	case r.Revision != "" && r.Revision != e.Revision:
		return RuleRevision
	case len(r.Quantizations) > 0 && !slices.Contains(r.Quantizations, e.Quantization):
		return RuleQuantization
	case len(r.Regions) > 0 && !slices.Contains(r.Regions, e.Region):
		return RuleRegion
	}
	for _, policy := range r.Policies {
		if !slices.Contains(e.Policies, policy) {
			return RulePolicy
		}
	}
	return ""
}

// dear reports whether a price, or what is expected to be paid, is over what a request allows.
func (p Price) dear(r *Request, pay Nano) bool {
	if m := r.MaxPrice.PerSlotSecond; !m.IsZero() && p.PerSlotSecond.Cmp(m) > 0 {
		return true
	}
	byTokens := Price{PerInputToken: r.MaxPrice.PerInputToken, PerOutputToken: r.MaxPrice.PerOutputToken}
	return byTokens != Price{} && pay.Cmp(byTokens.byTokens(r.tokens())) > 0
}

// words say why a rule leaves an endpoint out.
func (rule Rule) words(e *Endpoint, r *Request, pay, reserve Nano) string {
	switch rule {
	case RuleOnly:
		return "the request names other endpoints, or leaves this one out"
	case RuleRevision:
		return fmt.Sprintf("it serves revision %.80q of the model, and %.80q is asked for", e.Revision, r.Revision)
	case RuleQuantization:
		return fmt.Sprintf("its quantization is %.80q, and %.200q is asked for", e.Quantization, r.Quantizations)
	case RuleRegion:
		return fmt.Sprintf("it is in region %.80q, and %.200q is asked for", e.Region, r.Regions)
	case RulePolicy:
		return fmt.Sprintf("it promises %.200q, and %.200q is asked for", e.Policies, r.Policies)
	case RuleBusy:
		return fmt.Sprintf("it has its %d requests at once already", e.MaxInFlight)
	case RulePrice:
		return fmt.Sprintf("its answer would cost some %s base units, at %s per slot-second: over the request's maximum price", pay, e.Price.PerSlotSecond)
	case RuleCap:
		return fmt.Sprintf("its answer may cost %s base units, more than may still be signed for there", reserve)
	case RuleBudget:
		return fmt.Sprintf("its answer may cost %s base units, and the budget has %s left", reserve, r.Budget)
	}
	return ""
}

// ErrNone is what a *NoneError is.
var ErrNone = errors.New("no endpoint may take the request")

// NoneError says that hard rules leave no endpoint to a request, and which. It is never due to failures of endpoints: those are asked
// where nobody else is.
type NoneError struct {
	Model string
	Out   map[Rule]int // endpoints that a rule leaves out, each counted once, by the first rule that it breaks
}

func (e *NoneError) Error() string {
	if e.Out[RuleModel] > 0 {
		return fmt.Sprintf("%v: nobody serves model %.80q", ErrNone, e.Model)
	}
	var parts []string
	for _, rule := range rules {
		if n := e.Out[rule]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d by %s", n, rule))
		}
	}
	return fmt.Sprintf("%v for model %.80q: left out are %s", ErrNone, e.Model, strings.Join(parts, ", "))
}

// Is makes errors.Is(err, ErrNone) true.
func (e *NoneError) Is(target error) bool { return target == ErrNone }
