package proxy

import (
	"bytes"
	"encoding/json"
	"math/big"
	"net/url"
	"slices"
	"strings"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/continuation"
	"github.com/gpupay/gpupay/sdk/route"
)

// options are those of OpenRouter's "provider" object that are served, and stream_recovery. Any other is refused: one that is ignored would be a promise that
// nobody keeps.
type options struct {
	order, only, ignore, quantizations []string
	noFallbacks, noRecovery            bool
	sort                               route.Sort
	promptPrice, completionPrice       *big.Rat // dollars a million tokens; nil: no bound
}

func (o *options) parse(value json.RawMessage) *APIError {
	if bytes.Equal(value, []byte("null")) {
		return nil
	}
	all, err := continuation.Members(value)
	if err != nil {
		return invalid("provider", "The options in \"provider\" cannot be read: %v.", err)
	}
	for _, m := range all {
		if bytes.Equal(m.Value, []byte("null")) {
			continue
		}
		if e := o.option(m); e != nil {
			return e
		}
	}
	return nil
}

func (o *options) option(m continuation.Member) *APIError {
	name := "provider." + m.Name
	var err error
	switch m.Name {
	case "order":
		err = json.Unmarshal(m.Value, &o.order)
	case "only":
		err = json.Unmarshal(m.Value, &o.only)
	case "ignore":
		err = json.Unmarshal(m.Value, &o.ignore)
	case "quantizations":
		err = json.Unmarshal(m.Value, &o.quantizations)
	case "allow_fallbacks":
		allow := true
		err = json.Unmarshal(m.Value, &allow)
		o.noFallbacks = !allow
	case "sort":
		var by string
		if err = json.Unmarshal(m.Value, &by); err != nil {
			break
		}
		switch by {
		case "price":
			o.sort = route.SortPrice
		case "latency", "throughput":
			o.sort = route.SortLatency
		default:
			return invalid(name, "\"provider.sort\" is price, throughput or latency.")
		}
	case "stream_recovery":
		var how string
		if err = json.Unmarshal(m.Value, &how); err == nil && how != "continue" && how != "error" {
			return invalid(name, "\"provider.stream_recovery\" is continue or error.")
		}
		o.noRecovery = how == "error"
	case "max_price":
		return o.prices(m.Value)
	default:
		return invalid(name, "The option %.60q of \"provider\" is not served here, and is not ignored either: take it out. Served are order, only, ignore, allow_fallbacks, "+
			"max_price, sort, quantizations and stream_recovery.", m.Name)
	}
	if err != nil {
		return invalid(name, "%q has another type than it should have.", name)
	}
	return nil
}

// prices reads bounds in dollars a million tokens, which are numbers or texts.
func (o *options) prices(value json.RawMessage) *APIError {
	all, err := continuation.Members(value)
	if err != nil {
		return invalid("provider.max_price", "\"provider.max_price\" is an object such as {\"prompt\": 1, \"completion\": 2}.")
	}
	for _, m := range all {
		into := &o.promptPrice
		switch m.Name {
		case "prompt":
		case "completion":
			into = &o.completionPrice
		default:
			return invalid("provider.max_price."+m.Name, "Of \"provider.max_price\" prompt and completion are served, in dollars a million tokens: take the others out.")
		}
		text := strings.Trim(string(m.Value), `"`)
		plain := len(text) <= 40 && strings.Trim(text, "0123456789.") == ""
		price, ok := new(big.Rat), false
		if plain {
			price, ok = price.SetString(text)
		}
		if !ok || price.Cmp(big.NewRat(1_000_000_000, 1)) > 0 {
			return invalid("provider.max_price."+m.Name, "\"provider.max_price.%s\" is an amount of dollars a million tokens, such as 0.50.", m.Name)
		}
		*into = price
	}
	return nil
}

// perToken is a price of a million tokens for each of them, in billionths of a base unit, rounded down; a free one is the least there is.
func perToken(price *big.Rat, decimals uint8) route.Nano {
	if price == nil {
		return route.Nano{}
	}
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(decimals)+9), nil)
	scaled := new(big.Rat).Mul(price, new(big.Rat).SetFrac(scale, big.NewInt(1_000_000)))
	whole, nanos := new(big.Int).QuoRem(new(big.Int).Quo(scaled.Num(), scaled.Denom()), big.NewInt(1_000_000_000), new(big.Int))
	base, _ := uint256.FromBig(whole) // 10^21 at the most, as parsed
	bound, err := route.Amount(*base)
	bound = bound.Add(route.Nanos(nanos.Uint64()))
	if err != nil || bound.IsZero() { // what does not fit is no bound that is not there
		return route.Nanos(1)
	}
	return bound
}

// named are the endpoints that names of a request mean: an endpoint's URL, or its host.
func named(endpoints []route.Endpoint, names []string) []string {
	ids := make([]string, 0, len(names))
	for _, name := range names {
		for _, e := range endpoints {
			if u, err := url.Parse(e.ID); e.ID == name || err == nil && u.Host != "" && (u.Host == name || u.Hostname() == name) {
				ids = append(ids, e.ID)
			}
		}
	}
	return ids
}

// step is one thing that is tried in turn: a model, at some endpoints or at all.
type step struct {
	model string
	only  []string
}

// nobody is a name that no endpoint has: a list that names nobody who is here leaves nobody.
const nobody = "\x00"

// steps are what a request has tried in turn.
func (q *query) steps(endpoints []route.Endpoint) []step {
	only := named(endpoints, q.options.only)
	if len(q.options.only) > 0 && len(only) == 0 {
		only = []string{nobody}
	}
	var all []step
	for _, model := range q.models {
		for _, id := range named(endpoints, q.options.order) {
			if len(only) == 0 || slices.Contains(only, id) {
				all = append(all, step{model, []string{id}})
			}
		}
		if len(q.options.order) == 0 || !q.options.noFallbacks {
			all = append(all, step{model, only})
		}
	}
	if len(all) == 0 {
		all = append(all, step{q.models[0], []string{nobody}})
	}
	return all
}
