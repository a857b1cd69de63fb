package routing

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/sdk/route"
)

// TestRules: requests, answers and lists of endpoints at random. Each choice is held to the rules as the test reads them: it is within
// the price, the cap, the budget and what the request names, its reserve covers what it can cost, and no breaker is passed over
// while another endpoint is closed. A refusal is one that the rules make.
func TestRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		router, err := route.New(route.Config{Rand: rand.New(rand.NewPCG(seed, seed))})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{T: t, router: router, caps: make(map[string]route.Nano)}
		w.set()
		t.Repeat(map[string]func(*rapid.T){
			"choose": func(t *rapid.T) { w.T = t; w.choose() },
			"end":    func(t *rapid.T) { w.T = t; w.end() },
			"wait": func(t *rapid.T) {
				w.now += time.Duration(rapid.SampledFrom([]int64{-1e9, 1e6, 1e9, 30e9, 600e9}).Draw(t, "wait"))
			},
			"set": func(t *rapid.T) { w.T = t; w.set() },
		})
	})
}

type world struct {
	*rapid.T
	router    *route.Router
	endpoints []route.Endpoint
	caps      map[string]route.Nano
	flying    []*route.Choice
	now       time.Duration
}

var some = []string{"", "x", "y"}

func (w *world) nano(what string) route.Nano {
	return rapid.SampledFrom([]route.Nano{{}, route.Nanos(1e9), route.Nanos(20e9), route.Base(500), route.Base(20_000), route.Base(1 << 62)}).Draw(w.T, what)
}

func (w *world) set() {
	w.endpoints = nil
	for _, id := range []string{"a", "b", "c", "d"}[:rapid.IntRange(1, 4).Draw(w.T, "endpoints")] {
		w.endpoints = append(w.endpoints, route.Endpoint{
			ID: id, Model: "m", Revision: rapid.SampledFrom(some).Draw(w.T, "revision"), Quantization: rapid.SampledFrom(some).Draw(w.T, "quantization"),
			Region: rapid.SampledFrom(some).Draw(w.T, "region"), Policies: some[:rapid.IntRange(0, 3).Draw(w.T, "policies")],
			Price: route.Price{
				PerSlotSecond:  w.nano("slot"),
				PerOutputToken: route.Nanos(rapid.SampledFrom([]uint64{0, 0, 4e8}).Draw(w.T, "token")),
			},
			MaxInFlight: rapid.IntRange(0, 3).Draw(w.T, "max in flight"),
		})
		w.caps[id] = w.nano("cap")
	}
	if err := w.router.Set(w.endpoints); err != nil {
		w.Fatal(err)
	}
	w.flying = slices.DeleteFunc(w.flying, func(c *route.Choice) bool { // of those that are gone the router knows nothing any more
		return !slices.ContainsFunc(w.endpoints, func(e route.Endpoint) bool { return same(e, c.Endpoint) })
	})
}

func (w *world) request() route.Request {
	r := route.Request{
		Model: "m", InTokens: rapid.Int64Range(-1, 10_000).Draw(w.T, "in"), OutTokens: rapid.Int64Range(-1, 3000).Draw(w.T, "out"),
		MaxTokens: rapid.Int64Range(-1, 4000).Draw(w.T, "max"), Budget: w.nano("budget"), Sort: route.Sort(rapid.IntRange(0, 2).Draw(w.T, "sort")),
		LastEndpoint: rapid.SampledFrom([]string{"", "a", "b"}).Draw(w.T, "last"), CachedTokens: rapid.Int64Range(-1, 20_000).Draw(w.T, "cached"),
		Revision: rapid.SampledFrom([]string{"", "", "x"}).Draw(w.T, "revision"),
	}
	if rapid.Bool().Draw(w.T, "caps") {
		r.Cap = func(id string) route.Nano { return w.caps[id] }
	}
	if rapid.IntRange(0, 3).Draw(w.T, "price") == 0 {
		r.MaxPrice = route.Price{PerSlotSecond: w.nano("max slot"), PerOutputToken: route.Nanos(rapid.SampledFrom([]uint64{0, 4e8, 4e10}).Draw(w.T, "max token"))}
	}
	for _, list := range []*[]string{&r.Quantizations, &r.Regions, &r.Policies} {
		if rapid.IntRange(0, 3).Draw(w.T, "wants") == 0 {
			*list = []string{"x"}
		}
	}
	if rapid.IntRange(0, 3).Draw(w.T, "ignores") == 0 {
		r.Ignore = []string{"a"}
	}
	return r
}

// named reports whether a request is for an endpoint at all.
func named(e route.Endpoint, r route.Request) bool {
	return !slices.Contains(r.Ignore, e.ID) && (r.Revision == "" || r.Revision == e.Revision) &&
		(r.Quantizations == nil || e.Quantization == "x") && (r.Regions == nil || e.Region == "x") && (r.Policies == nil || slices.Contains(e.Policies, "x"))
}

func same(a, b route.Endpoint) bool {
	return a.ID == b.ID && a.Revision == b.Revision && a.Quantization == b.Quantization
}

func (w *world) busy(e route.Endpoint) bool {
	n := 0
	for _, c := range w.flying {
		if same(c.Endpoint, e) {
			n++
		}
	}
	return e.MaxInFlight > 0 && n >= e.MaxInFlight
}

func (w *world) choose() {
	r := w.request()
	rows := w.router.Table(w.now, r)
	in, closed := 0, 0
	for _, row := range rows {
		if row.Out != "" {
			continue
		}
		if in++; row.Breaker != route.Open {
			closed++
		}
	}
	c, err := w.router.Choose(w.now, r)
	if err != nil {
		if in > 0 || !errors.Is(err, route.ErrNone) {
			w.Fatalf("%v, where %d may take it", err, in)
		}
		return
	}
	e := c.Endpoint
	switch {
	case in == 0, !named(e, r), w.busy(e), c.LastResort != (closed == 0):
		w.Fatalf("%+v for %+v: %d may take it, %d are closed, last resort %v", e, r, in, closed, c.LastResort)
	case c.Reserve.Cmp(r.Budget) > 0, r.Cap != nil && c.Reserve.Cmp(w.caps[e.ID]) > 0:
		w.Fatalf("%s reserved at %s, budget %s, cap %s", c.Reserve, e.ID, r.Budget, w.caps[e.ID])
	case !r.MaxPrice.PerSlotSecond.IsZero() && e.Price.PerSlotSecond.Cmp(r.MaxPrice.PerSlotSecond) > 0:
		w.Fatalf("%s per slot-second, at most %s", e.Price.PerSlotSecond, r.MaxPrice.PerSlotSecond)
	case e.Price.Pay(c.Limit, r.InTokens, r.MaxTokens).Cmp(c.Reserve) > 0:
		w.Fatalf("%s reserved, and it costs %s in %s", c.Reserve, e.Price.Pay(c.Limit, r.InTokens, r.MaxTokens), c.Limit)
	}
	w.flying = append(w.flying, c)
}

func (w *world) end() {
	if len(w.flying) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.flying)-1).Draw(w.T, "which")
	first := time.Duration(rapid.SampledFrom([]int64{-1, 0, 1, 2e8, 5e9, 1 << 62}).Draw(w.T, "first"))
	w.router.Done(w.now, w.flying[i], route.Result{
		Outcome: route.Outcome(rapid.IntRange(0, 3).Draw(w.T, "outcome")), FirstToken: first, Total: first + 3e9,
		OutTokens: rapid.Int64Range(-1, 3000).Draw(w.T, "tokens"), Claimed: time.Duration(rapid.SampledFrom([]int64{0, 3e9, 1 << 62}).Draw(w.T, "claimed")),
	})
	w.flying = slices.Delete(w.flying, i, i+1)
}
