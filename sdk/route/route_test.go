package route

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holiman/uint256"
)

// bench is a router with endpoints a, b, .. at the given dollars an hour of a GPU with 32 slots.
func bench(t *testing.T, perHour ...float64) *Router {
	t.Helper()
	r, err := New(Config{Rand: rand.New(rand.NewPCG(1, 1))})
	if err != nil {
		t.Fatal(err)
	}
	var endpoints []Endpoint
	for i, dollars := range perHour {
		endpoints = append(endpoints, Endpoint{ID: name(i), Model: "m", Price: Price{PerSlotSecond: Nanos(uint64(dollars * 1e15 / 3600 / 32))}})
	}
	if err := r.Set(endpoints); err != nil {
		t.Fatal(err)
	}
	return r
}

func name(i int) string { return string(rune('a' + i)) }

var plain = Request{Model: "m", InTokens: 500, OutTokens: 100, MaxTokens: 1000, Budget: Base(20_000_000)}

var well = Result{Outcome: Done, FirstToken: 300 * time.Millisecond, Total: 3 * time.Second, OutTokens: 100}

func choose(t *testing.T, r *Router, now time.Duration, request Request) *Choice {
	t.Helper()
	c, err := r.Choose(now, request)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// only sends a request to one endpoint and ends it.
func only(t *testing.T, r *Router, now time.Duration, id string, result Result) *Choice {
	t.Helper()
	request := plain
	request.Only = []string{id}
	c := choose(t, r, now, request)
	r.Done(now, c, result)
	return c
}

// shares counts where requests go that are ended as they are sent, and change nothing.
func shares(t *testing.T, r *Router, now time.Duration, n int, request Request) map[string]float64 {
	t.Helper()
	got := make(map[string]float64)
	for range n {
		c := choose(t, r, now, request)
		r.Done(now, c, Result{Outcome: Aborted})
		got[c.Endpoint.ID] += 1 / float64(n)
	}
	return got
}

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.IsNaN(got) || math.Abs(got-want) > within {
		t.Errorf("%s is %g, want %g to within %g", what, got, want, within)
	}
}

// TestEstimator: the gains of the documentation, up and down.
func TestEstimator(t *testing.T) {
	e := newEstimator()
	sample := func(first, perToken float64) {
		e.learn(0, 0, Result{Outcome: Done, FirstToken: seconds(first), Total: seconds(first + 100*perToken), OutTokens: 101})
	}
	sample(1, .01)
	near(t, "a after the first sample", e.a, 1, 1e-6)
	near(t, "d after the first sample", e.d, .01, 1e-6)
	sample(2, .02)
	near(t, "a after a worse one", e.a, 1.3, 1e-6)
	near(t, "d after a worse one", e.d, .013, 1e-6)
	sample(.3, .003)
	near(t, "a after a better one", e.a, 1.3-.15, 1e-6)
	near(t, "d after a better one", e.d, .013-.001, 1e-6)

	e = newEstimator()
	for i := range 2000 {
		in := int64(100 + 37*i%4000)
		first := .2 + 1e-4*float64(in)
		e.learn(in, 0, Result{Outcome: Done, FirstToken: seconds(first), Total: seconds(first + 2), OutTokens: 101})
	}
	near(t, "a of a line", e.a, .2, .005)
	near(t, "b of a line", e.b, 1e-4, 2e-6)

	e.count(0, true)
	e.count(0, false)
	ok, bad := e.counts(30 * time.Second)
	near(t, "ok after 30 s", ok, 1/math.E, 1e-9)
	near(t, "bad after 30 s", bad, 1/math.E, 1e-9)
}

// TestEstimatorInOnePiece: an answer that comes in one piece teaches how long the whole takes.
func TestEstimatorInOnePiece(t *testing.T) {
	e := newEstimator()
	for range 50 {
		e.learn(500, 0, Result{Outcome: Done, Total: 7 * time.Second, OutTokens: 100})
	}
	near(t, "wait", e.wait(500, 100).Seconds(), 7, .1)
}

// TestFailuresTeachNoTimes: what fails at once is not fast, and what was full is not slow.
func TestFailuresTeachNoTimes(t *testing.T) {
	r := bench(t, 2.4)
	for _, outcome := range []Outcome{Failed, Throttled} {
		only(t, r, 0, "a", Result{Outcome: outcome, FirstToken: time.Millisecond, Total: time.Hour, OutTokens: 2})
	}
	if e := r.Table(0, plain)[0].Estimate; e.Samples != 0 || e.FirstToken != seconds(priorFirst) || e.PerToken != seconds(priorToken) {
		t.Errorf("%+v", e)
	}
}

// TestUnknownIsAsTheOthers: an endpoint that nobody asked is taken to be like those of its model.
func TestUnknownIsAsTheOthers(t *testing.T) {
	r := bench(t, 2.4, 2.4)
	only(t, r, 0, "a", Result{Outcome: Done, FirstToken: 5 * time.Second, Total: 25 * time.Second, OutTokens: 101})
	rows := r.Table(0, plain)
	if a, b := rows[0].Estimate, rows[1].Estimate; b.Samples != 0 || a.Samples != 1 || a.Wait != b.Wait || b.Wait < 20*time.Second {
		t.Errorf("a is %+v, and b, which nobody asked, %+v", a, b)
	}
}

// TestCost: the formula, with figures worked out by hand.
func TestCost(t *testing.T) {
	r := bench(t, 2.4)
	only(t, r, 0, "a", Result{Outcome: Done, FirstToken: time.Second, Total: 11 * time.Second, OutTokens: 101})
	r.states[key{id: "a", model: "m"}].estimator = estimator{a: 1, b: .001, d: .1, timed: 1, paced: 1, ok: 1, bad: 2}
	request := plain
	request.LastEndpoint, request.CachedTokens = "a", 400
	c := r.Table(0, request)[0].Cost
	// wait = 1 + 500*.001 + 100*.1 = 11.5 s; a slot-second costs 20.83 base units, a second of waiting 400, c0 500.
	near(t, "pay", c.Pay.BaseUnits(), 11.5*2.4e6/3600/32, 1e-3)
	near(t, "wait", c.Wait.BaseUnits(), 11.5*400, 1e-3)
	near(t, "risk", c.Risk.BaseUnits(), 3./10*(400*1.5+11.5*2.4e6/3600/32/2+500), 1e-3)
	near(t, "affinity", c.Affinity.BaseUnits(), .4*(400+2.4e6/3600/32), 1e-3)
	near(t, "J", c.J().BaseUnits(), (c.Pay.BaseUnits() + c.Wait.BaseUnits() + c.Risk.BaseUnits() - c.Affinity.BaseUnits()), 1e-3)
	for sort, factor := range map[Sort]float64{SortCost: 1, SortPrice: .1, SortLatency: 10} {
		request.Sort = sort
		near(t, "wait", r.Table(0, request)[0].Cost.Wait.BaseUnits(), factor*11.5*400, 1e-3)
	}
	byToken := Price{PerInputToken: Nanos(100e6), PerOutputToken: Nanos(400e6)}
	for _, test := range []struct {
		in, out int64
		want    string
	}{{500, 100, "90"}, {-1, math.MinInt64, "0"}, {math.MaxInt64, 0, "419430.4"}} {
		if got := byToken.Pay(time.Hour, test.in, test.out).String(); got != test.want {
			t.Errorf("%d and %d tokens cost %s, want %s", test.in, test.out, got, test.want)
		}
	}
}

// TestAffinity: a session stays where its prompt has been read, until another place costs less than that saves.
func TestAffinity(t *testing.T) {
	r := bench(t, 2.4, 2.4)
	for _, id := range []string{"a", "b"} {
		r.states[key{id: id, model: "m"}].estimator = estimator{a: .2, b: .001, d: .01, timed: 9, paced: 9}
	}
	request := plain
	request.InTokens = 4000
	near(t, "share of a without a session", shares(t, r, 0, 2000, request)["a"], .5, .05)
	request.LastEndpoint, request.CachedTokens = "a", math.MaxInt64
	c := choose(t, r, 0, request)
	if c.Endpoint.ID == "a" && c.Cost.Affinity.Cmp(c.Cost.Pay.Add(c.Cost.Wait)) > 0 {
		t.Errorf("affinity saves more than there is: %+v", c.Cost)
	}
	near(t, "share of a with one", shares(t, r, 0, 2000, request)["a"], .99, .02)
	r.states[key{id: "a", model: "m"}].d = .5
	near(t, "share of a when it is slow", shares(t, r, 0, 2000, request)["a"], .01, .02)
}

// TestSoftmax: two in a known relation of J are drawn as the weights say, and one in fifty is drawn by 1/J.
func TestSoftmax(t *testing.T) {
	r := bench(t, 2.4, 2.4)
	for _, test := range []struct{ b, within float64 }{{.12, .01}, {1, .0008}} {
		for id, d := range map[string]float64{"a": .1, "b": test.b} {
			r.states[key{id: id, model: "m"}].estimator = estimator{a: .2, d: d, timed: 9, paced: 9}
		}
		rows := r.Table(0, plain)
		ratio := rows[1].Cost.J().BaseUnits() / rows[0].Cost.J().BaseUnits()
		weight := math.Exp(-(ratio - 1) / .1)
		near(t, fmt.Sprintf("share of b, %.2f times as dear", ratio), shares(t, r, 0, 20_000, plain)["b"], .02/(1+ratio)+.98*weight/(1+weight), test.within)
	}
}

// TestCrowd: what own requests in flight add to the time of an answer is learned, counts before any of them has ended, and is no more
// once they have.
func TestCrowd(t *testing.T) {
	r := bench(t, 2.4, 2.6)
	burst := func(n int) (sent map[string]int) {
		sent = make(map[string]int)
		var choices []*Choice
		var results []Result
		for range n {
			c := choose(t, r, 0, plain)
			first := .2
			if c.Endpoint.ID == "a" {
				first += .3 * float64(sent["a"])
			}
			sent[c.Endpoint.ID]++
			choices = append(choices, c)
			results = append(results, Result{Outcome: Done, FirstToken: seconds(first), Total: seconds(first + 2), OutTokens: 101})
		}
		for i, c := range choices {
			r.Done(0, c, results[i])
		}
		return sent
	}
	for range 20 {
		burst(30)
	}
	s := r.states[key{id: "a", model: "m"}]
	near(t, "seconds more for each in flight", s.q, .3, .05)
	if other := r.states[key{id: "b", model: "m"}]; other.q > .03 || other.w > 1e-3 {
		t.Errorf("b, which has room: %g s and %g s a token more for each in flight", other.q, other.w)
	}
	if a := burst(30)["a"]; a > 8 {
		t.Errorf("%d of a burst of 30 went where each waits for those before it", a)
	}
	idle := r.Table(0, plain)[0].Estimate.Wait
	c := only(t, r, 0, "a", Result{Outcome: Aborted})
	for range 10 {
		s.flying++
	}
	busy := r.Table(0, plain)[0].Estimate
	near(t, "seconds more beside ten", (busy.Wait - idle).Seconds(), 3, .5)
	if full := only(t, r, 0, "a", Result{Outcome: Aborted}); full.Limit <= c.Limit || full.Reserve.Cmp(c.Reserve) <= 0 {
		t.Errorf("%s and %s reserved beside ten, %s and %s alone", full.Limit, full.Reserve, c.Limit, c.Reserve)
	}
}

// TestOfMany: of 100 the best is among the 32 that are drawn about every third time, and taken then. Of the 32 no more than 16 are weighed.
func TestOfMany(t *testing.T) {
	r := fleet(t, 100, 3)
	for _, s := range r.states {
		s.estimator = estimator{a: .2, d: .5, timed: 9, paced: 9}
	}
	best := "https://7.example/v1"
	r.states[key{best, "m", "r", "fp8"}].d = .005
	near(t, "share of the best", shares(t, r, 0, 8000, ask)[best], .32*.98, .025)

	// 32 in all: 16 good ones, and 16 a little dearer that are not weighed.
	r = fleet(t, 32, 3)
	for _, s := range r.states {
		s.estimator, s.Price = estimator{a: .2, d: .1, timed: 9, paced: 9}, Price{}
	}
	dear := make(map[string]bool)
	for i := range 16 {
		id := fmt.Sprintf("https://%d.example/v1", i)
		dear[id], r.states[key{id, "m", "r", "fp8"}].d = true, .1001
	}
	sum := 0.
	for id, share := range shares(t, r, 0, 8000, ask) {
		if dear[id] {
			sum += share
		}
	}
	near(t, "share of the worse half", sum, .01, .006)
}

// TestRules: what breaks a hard rule is out, in words, also where nobody else is there.
func TestRules(t *testing.T) {
	usual := Endpoint{
		ID: "a", Model: "m", Revision: "r1", Quantization: "fp8", Region: "eu", Policies: []string{"no-store", "zdr"},
		Price: Price{PerSlotSecond: Nanos(20_833_333_334)}, MaxInFlight: 2,
	}
	for _, test := range []struct {
		rule   Rule
		breaks func(e *Endpoint, r *Request)
	}{
		{RuleOnly, func(_ *Endpoint, r *Request) { r.Only = []string{"b"} }},
		{RuleOnly, func(_ *Endpoint, r *Request) { r.Ignore = []string{"a"} }},
		{RuleRevision, func(e *Endpoint, _ *Request) { e.Revision = "" }},
		{RuleRevision, func(e *Endpoint, _ *Request) { e.Revision = "r2" }},
		{RuleQuantization, func(e *Endpoint, _ *Request) { e.Quantization = "fp4" }},
		{RuleRegion, func(e *Endpoint, _ *Request) { e.Region = "us" }},
		{RulePolicy, func(e *Endpoint, _ *Request) { e.Policies = []string{"zdr"} }},
		{RuleBusy, func(e *Endpoint, _ *Request) { e.MaxInFlight = 1 }},
		{RulePrice, func(_ *Endpoint, r *Request) { r.MaxPrice.PerSlotSecond = Nanos(20_833_333_333) }},
		{RulePrice, func(_ *Endpoint, r *Request) { r.MaxPrice.PerOutputToken = Nanos(100_000) }},
		{RulePrice, func(e *Endpoint, r *Request) {
			e.Price, r.MaxPrice.PerInputToken = Price{PerInputToken: Nanos(101)}, Nanos(100)
		}},
		{RuleCap, func(_ *Endpoint, r *Request) { r.Cap = func(string) Nano { return Base(1) } }},
		{RuleBudget, func(_ *Endpoint, r *Request) { r.Budget = Base(1) }},
		{RuleBudget, func(_ *Endpoint, r *Request) { r.Budget = Nano{} }},
	} {
		t.Run(string(test.rule), func(t *testing.T) {
			e, request := usual, plain
			request.Revision, request.Quantizations, request.Regions, request.Policies = "r1", []string{"fp16", "fp8"}, []string{"eu"}, []string{"no-store"}
			r := bench(t)
			check := func(want Rule) {
				t.Helper()
				if err := r.Set([]Endpoint{e}); err != nil {
					t.Fatal(err)
				}
				row := r.Table(0, request)[0]
				if row.Out != want || (row.Why == "") != (want == "") {
					t.Errorf("out by %q (%s), want %q", row.Out, row.Why, want)
				}
				c, err := r.Choose(0, request)
				var none *NoneError
				if want == "" {
					if err != nil {
						t.Error(err)
					}
				} else if !errors.As(err, &none) || !errors.Is(err, ErrNone) || none.Out[want] != 1 || len(none.Out) != 1 {
					t.Errorf("Choose = %+v, %v; want out by %s", c, err, want)
				}
			}
			check("") // one request is in flight from here on
			test.breaks(&e, &request)
			check(test.rule)
		})
	}
	_, err := bench(t, 1).Choose(0, Request{Model: "other"})
	if !errors.Is(err, ErrNone) {
		t.Errorf("a model that nobody serves: %v", err)
	}
}

// TestFirstRule: each endpoint that is out is counted once, by the first rule that it breaks, as Table says it; an ID that several
// share, that is named twice or ignored as well, counts as often as it has endpoints.
func TestFirstRule(t *testing.T) {
	r := bench(t)
	var endpoints []Endpoint
	for i := range 60 {
		e := Endpoint{
			ID: name(i % 20), Model: "m", Revision: "r1", Quantization: []string{"fp8", "fp16", ""}[i/20], Region: []string{"eu", "us"}[i%2],
			Policies: [][]string{nil, {"no-store"}, {"zdr", "no-store"}, {`zdr" "no-store`}}[i/2%4], Price: Price{PerSlotSecond: Nanos(uint64(i) * 1e9)},
			MaxInFlight: i % 3,
		}
		endpoints = append(endpoints, e)
	}
	if err := r.Set(endpoints); err != nil {
		t.Fatal(err)
	}
	for _, s := range r.states {
		s.flying = 1
	}
	lists := [][]string{nil, {"a"}, {"b", "c", "b", "nobody"}, {"c", "d", "e", "f"}}
	for i := range 4 * 4 * 32 {
		request := plain
		request.Only, request.Ignore = lists[i%4], lists[i/4%4]
		bits := i / 16
		for bit, narrow := range []func(){
			func() { request.Quantizations = []string{"fp8"} },
			func() { request.Regions = []string{"us"} },
			func() { request.Policies = []string{"no-store", "zdr"} },
			func() { request.MaxPrice.PerSlotSecond = Nanos(20e9) },
			func() { request.Budget = Base(100) },
		} {
			if bits>>bit&1 == 1 {
				narrow()
			}
		}
		want, in := make(map[Rule]int), 0
		for _, row := range r.Table(0, request) {
			if row.Out == "" {
				in++
				continue
			}
			want[row.Out]++
		}
		c, err := r.Choose(0, request)
		var none *NoneError
		switch {
		case in > 0 && (err != nil || c.Endpoint.asked(&request) != ""):
			t.Fatalf("%+v: %d may take it, and Choose = %+v, %v", request, in, c, err)
		case in == 0 && (!errors.As(err, &none) || !maps.Equal(none.Out, want)):
			t.Fatalf("%+v: %v, want %v", request, err, want)
		case err == nil:
			r.Done(0, c, Result{Outcome: Aborted})
		}
	}
}

// TestRulesLeaveOthers: endpoints that break a rule get nothing, exploration included, while others are asked.
func TestRulesLeaveOthers(t *testing.T) {
	r := bench(t, 1, 2, 3, 4)
	request := plain
	request.MaxPrice.PerSlotSecond = Nanos(21_701_388_888)
	got := shares(t, r, 0, 2000, request)
	if len(got) != 2 || got["a"] == 0 || got["b"] == 0 {
		t.Errorf("shares %v, want a and b alone", got)
	}
}

// TestReserve: what is reserved covers what a request can cost up to its limit, to the base unit, and no more than the budget and the cap is reserved.
func TestReserve(t *testing.T) {
	r := bench(t, 2.4)
	e := r.states[key{id: "a", model: "m"}].estimator
	_, least := e.least(r.states[key{id: "a", model: "m"}].Price, &plain)
	for _, rule := range []Rule{RuleBudget, RuleCap} {
		for _, left := range []Nano{Base(20_000_000), least.Add(Nanos(perBase * 5 / 2)), least, least.Sub(Nanos(1))} {
			request := plain
			if rule == RuleBudget {
				request.Budget = left
			} else {
				request.Cap = func(id string) Nano {
					if id != "a" {
						t.Errorf("the cap of %q was asked for", id)
					}
					return left
				}
			}
			c, err := r.Choose(0, request)
			if (err == nil) != (left.Cmp(least) >= 0) {
				t.Errorf("%s: %s left, %s to reserve: %v", rule, left, least, err)
			}
			if err != nil {
				continue
			}
			if c.Limit < c.Estimate.Wait || c.Limit > time.Hour || c.Reserve.Cmp(left) > 0 {
				t.Errorf("limit %s of a request that is expected to take %s, %s reserved of %s", c.Limit, c.Estimate.Wait, c.Reserve, left)
			}
			if pay := c.Endpoint.Price.Pay(c.Limit, plain.InTokens, plain.MaxTokens); pay.Cmp(c.Reserve) > 0 || strings.Contains(c.Reserve.String(), ".") {
				t.Errorf("%s reserved, and it may cost %s", c.Reserve, pay)
			}
			r.Done(0, c, Result{Outcome: Aborted})
		}
	}
}

// TestSlowIsLetEnd: a healthy server that is slow, or gets slow, is given the time that its answers take, and J is as before.
func TestSlowIsLetEnd(t *testing.T) {
	t.Parallel()
	request := plain
	request.Only = []string{"a"}
	answer := func(perToken float64) Result {
		return Result{Outcome: Done, FirstToken: time.Second, Total: seconds(1 + 1000*perToken), OutTokens: 1001}
	}
	for name, perToken := range map[string][]float64{"15 tokens a second": {1. / 15, 1. / 15}, "200 and then 30": {1. / 200, 1. / 30}} {
		r := bench(t, 2.4)
		for i := range 40 {
			result := answer(perToken[i/20])
			c := choose(t, r, 0, request)
			if c.Limit < result.Total {
				t.Fatalf("%s: answer %d takes %s and is cut at %s", name, i, result.Total, c.Limit)
			}
			r.Done(0, c, result)
		}
	}
}

// TestCut: a request that was cut teaches how long it takes at the least, so that the next one may run for longer, and one with tokens is
// no failure of the endpoint.
func TestCut(t *testing.T) {
	t.Parallel()
	request := plain
	request.Only = []string{"a"}
	for name, cut := range map[string]Result{
		"a stream":               {Outcome: Cut, FirstToken: time.Second, OutTokens: 50},
		"a stream without token": {Outcome: Cut, FirstToken: 1},
		"a document":             {Outcome: Cut},
	} {
		r := bench(t, 2.4)
		for range 20 {
			only(t, r, 0, "a", Result{Outcome: Done, FirstToken: 100 * time.Millisecond, Total: 5 * time.Second, OutTokens: 1001})
		}
		before := choose(t, r, 0, request)
		if cut.Total = before.Limit; cut.FirstToken == 1 {
			cut.FirstToken = cut.Total
		}
		r.Done(0, before, cut)
		after := choose(t, r, 0, request)
		if after.Limit < 3*before.Limit/2 || after.Estimate.Wait <= before.Estimate.Wait || r.Table(0, request)[0].Limit < after.Limit {
			t.Errorf("%s was cut at %s, and the next one is at %s; %+v", name, before.Limit, after.Limit, after.Estimate)
		}
		if fails := after.Estimate.Success < before.Estimate.Success; fails != (cut.OutTokens == 0) {
			t.Errorf("%s: chance of an answer %g, then %g", name, before.Estimate.Success, after.Estimate.Success)
		}
	}
}

// TestBusy: no more requests than MaxInFlight are there at once; the end of one makes room once.
func TestBusy(t *testing.T) {
	r := bench(t, 1)
	if err := r.Set([]Endpoint{{ID: "a", Model: "m", MaxInFlight: 2}}); err != nil {
		t.Fatal(err)
	}
	first, _ := choose(t, r, 0, plain), choose(t, r, 0, plain)
	if _, err := r.Choose(0, plain); !errors.Is(err, ErrNone) {
		t.Fatalf("a third one: %v", err)
	}
	r.Done(0, first, well)
	r.Done(0, first, well)
	choose(t, r, 0, plain)
	if _, err := r.Choose(0, plain); !errors.Is(err, ErrNone) {
		t.Fatalf("a third one, after one had ended twice: %v", err)
	}
}

// TestBreaker: when it opens, for how long, and what closes it.
func TestBreaker(t *testing.T) {
	bad := Result{Outcome: Failed, Total: time.Second}
	state := func(r *Router, now time.Duration) (Breaker, time.Duration) {
		row := r.Table(now, plain)[0]
		return row.Breaker, row.Until - now
	}
	want := func(t *testing.T, r *Router, now time.Duration, breaker Breaker, low, high time.Duration) time.Duration {
		t.Helper()
		got, left := state(r, now)
		if got != breaker || left < low || left > high {
			t.Fatalf("%s for %s, want %s for %s to %s", got, left, breaker, low, high)
		}
		return now + left
	}
	t.Run("three in a row", func(t *testing.T) {
		r := bench(t, 1)
		for _, result := range []Result{bad, bad, well, bad, bad} {
			only(t, r, 0, "a", result)
		}
		want(t, r, 0, Closed, 0, 0)
		only(t, r, 0, "a", bad)
		until := want(t, r, 0, Open, 4*time.Second, 6*time.Second)
		want(t, r, until, HalfOpen, 0, 0)
		only(t, r, until, "a", bad)
		until = want(t, r, until, Open, 8*time.Second, 12*time.Second)
		only(t, r, until, "a", well)
		want(t, r, until, Closed, 0, 0)
		for range 2 {
			only(t, r, until, "a", bad)
		}
		want(t, r, until, Closed, 0, 0)
		only(t, r, until, "a", bad)
		want(t, r, until, Open, 16*time.Second, 24*time.Second) // it has not answered window times in between
	})
	t.Run("at most five minutes", func(t *testing.T) {
		r, now := bench(t, 1), time.Duration(0)
		for range 60 {
			only(t, r, now, "a", bad)
			_, left := state(r, now)
			now += left
		}
		only(t, r, now, "a", bad)
		want(t, r, now, Open, 4*time.Minute, 5*time.Minute)
	})
	t.Run("more than half of twenty", func(t *testing.T) {
		r := bench(t, 1)
		for i := range 16 { // two of three fail, so that the eleventh failure is the sixteenth outcome
			want(t, r, 0, Closed, 0, 0)
			only(t, r, 0, "a", []Result{bad, bad, well}[i%3])
		}
		want(t, r, 0, Open, 4*time.Second, 6*time.Second)
	})
	t.Run("half of twenty", func(t *testing.T) {
		r := bench(t, 1)
		for i := range 200 {
			only(t, r, 0, "a", []Result{well, bad}[i%2])
		}
		want(t, r, 0, Closed, 0, 0)
	})
	t.Run("one trial", func(t *testing.T) {
		r := bench(t, 1, 1000)
		trial := plain
		trial.Only = []string{"a"}
		late := choose(t, r, 0, trial)
		for range 3 {
			only(t, r, 0, "a", bad)
		}
		until := want(t, r, 0, Open, 4*time.Second, 6*time.Second)
		r.Done(1, late, well)
		want(t, r, 1, Open, 4*time.Second-1, 6*time.Second) // it was sent before
		if got := shares(t, r, until-1, 500, plain)["a"]; got > 0 {
			t.Errorf("%g of the requests to an open one", got)
		}
		c := choose(t, r, until, trial)
		if got := shares(t, r, until, 500, plain)["a"]; got > 0 {
			t.Errorf("%g of the requests while a trial is under way", got)
		}
		r.Done(until, c, well)
		want(t, r, until, Closed, 0, 0)
	})
	t.Run("429", func(t *testing.T) {
		r := bench(t, 1)
		full := Result{Outcome: Throttled}
		var burst []*Choice
		for range 12 {
			burst = append(burst, choose(t, r, 0, plain))
		}
		for _, c := range burst {
			r.Done(0, c, full)
		}
		until := want(t, r, 0, Open, 400*time.Millisecond, 600*time.Millisecond)
		want(t, r, until, Closed, 0, 0)
		only(t, r, until, "a", full)
		until = want(t, r, until, Open, 800*time.Millisecond, 1200*time.Millisecond)
		for _, retry := range []struct{ said, kept time.Duration }{
			{7 * time.Second, 7 * time.Second}, {1, time.Second / 2}, {1 << 62, 5 * time.Minute},
		} {
			full.RetryAfter = retry.said
			only(t, r, until, "a", full)
			until = want(t, r, until, Open, retry.kept, retry.kept)
		}
		if e := r.Table(until, plain)[0].Estimate; e.Success != .9 {
			t.Errorf("429s count as failures: success %g", e.Success)
		}
		only(t, r, until, "a", well)
		full.RetryAfter = 0
		only(t, r, until, "a", full)
		want(t, r, until, Open, 400*time.Millisecond, 600*time.Millisecond)
	})
}

// TestAllOpen: where every breaker is open the least bad is asked, and none is refused.
func TestAllOpen(t *testing.T) {
	r := bench(t, 1, 1)
	for _, id := range []string{"a", "b"} {
		for range 3 {
			only(t, r, 0, id, Result{Outcome: Failed})
		}
	}
	r.states[key{id: "b", model: "m"}].until += time.Minute // of two alike, a is asked sooner
	for range 50 {
		if c := choose(t, r, time.Second, plain); c.Endpoint.ID != "a" || !c.LastResort || c.Explores {
			t.Fatalf("%s, last resort %v", c.Endpoint.ID, c.LastResort)
		}
	}
	request := plain
	request.Budget = Base(1)
	if _, err := r.Choose(time.Second, request); !errors.Is(err, ErrNone) {
		t.Errorf("the least bad is over the budget: %v", err)
	}
}

// TestLiar: a claim of more time than our clock saw is a failure, and no claim moves an estimate.
func TestLiar(t *testing.T) {
	honest, liar := bench(t, 1), bench(t, 1)
	for range 2 {
		result := well
		result.Claimed = well.Total
		only(t, honest, 0, "a", result)
		result.Claimed += 50 * time.Millisecond
		only(t, honest, 0, "a", result)
		result.Claimed = 10 * well.Total
		only(t, liar, 0, "a", result)
		result.Claimed = well.Total + 50*time.Millisecond + 1
		only(t, liar, 0, "a", result)
	}
	a, b := honest.Table(0, plain)[0], liar.Table(0, plain)[0]
	if a.Breaker != Closed || a.Estimate.Success < .9 || b.Breaker != Open || b.Estimate.Success > .8 {
		t.Errorf("honest: %s, %g; liar: %s, %g", a.Breaker, a.Estimate.Success, b.Breaker, b.Estimate.Success)
	}
	result := well
	result.Claimed = time.Nanosecond // and one that claims to be fast is as slow as it was
	only(t, honest, 0, "a", result)
	near(t, "wait", honest.Table(0, plain)[0].Estimate.Wait.Seconds(), 3, .05)
}

// TestClockGoesBack: time stands still then; no pause ends sooner and no count grows.
func TestClockGoesBack(t *testing.T) {
	r := bench(t, 1)
	for range 3 {
		only(t, r, time.Hour, "a", Result{Outcome: Failed})
	}
	before := r.Table(time.Hour, plain)[0]
	for _, now := range []time.Duration{0, -time.Hour, math.MinInt64} {
		only(t, r, now, "a", Result{Outcome: Aborted})
		if row := r.Table(now, plain)[0]; row.Breaker != Open || row.Until != before.Until || row.Estimate.Success != before.Estimate.Success {
			t.Errorf("at %s: %+v, was %+v", now, row, before)
		}
	}
}

// TestSet: what stays keeps what was learned, what goes is forgotten, and a list with a fault changes nothing.
func TestSet(t *testing.T) {
	r := bench(t, 1, 2)
	only(t, r, 0, "a", well)
	gone := choose(t, r, 0, Request{Model: "m", Budget: plain.Budget, Only: []string{"b"}})
	a := Endpoint{ID: "a", Model: "m", Price: Price{PerSlotSecond: Nanos(5)}}
	for _, list := range [][]Endpoint{{a, a}, {a, {Model: "m"}}, {a, {ID: "c"}}, {{ID: "c", Model: "m", MaxInFlight: -1}}} {
		if err := r.Set(list); err == nil {
			t.Errorf("%+v was taken", list)
		}
	}
	if rows := r.Table(0, plain); len(rows) != 2 {
		t.Fatalf("%d endpoints after lists that were refused", len(rows))
	}
	if err := r.Set([]Endpoint{a, {ID: "c", Model: "m"}}); err != nil {
		t.Fatal(err)
	}
	r.Done(0, gone, well)
	rows := r.Table(0, plain)
	if rows[0].Estimate.Samples != 1 || rows[0].Endpoint.Price != a.Price || rows[1].Estimate.Samples != 0 {
		t.Errorf("%+v", rows)
	}
}

// TestSameCallsSameChoices: with the same randomness the same calls choose the same.
func TestSameCallsSameChoices(t *testing.T) {
	run := func() (ids []string) {
		r := fleet(t, 50, 9)
		for i := range 300 {
			c := choose(t, r, time.Duration(i)*time.Second, ask)
			ids = append(ids, c.Endpoint.ID)
			r.Done(time.Duration(i)*time.Second, c, Result{Outcome: Outcome(i % 4), FirstToken: time.Second, Total: time.Duration(i) * time.Second, OutTokens: 50})
		}
		return ids
	}
	if a, b := run(), run(); !slices.Equal(a, b) {
		t.Error("two runs chose differently")
	}
}

// TestAtOnce: many goroutines choose, end and look, for the race detector; what is in flight is nothing in the end.
func TestAtOnce(t *testing.T) {
	r := bench(t, 1, 2, 3)
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := range 300 {
				c, err := r.Choose(time.Duration(i), plain)
				if err != nil {
					t.Error(err)
					return
				}
				if i%50 == 0 {
					r.Table(time.Duration(i), plain)
				}
				r.Done(time.Duration(i), c, Result{Outcome: Outcome((worker + i) % 4), FirstToken: 1, Total: 2, OutTokens: 3})
			}
		})
	}
	all.Wait()
	for _, row := range r.Table(0, plain) {
		if row.InFlight != 0 {
			t.Errorf("%s has %d in flight", row.Endpoint.ID, row.InFlight)
		}
	}
}

// FuzzHostile: whatever times, tokens, prices and clocks are claimed, figures are numbers within their bounds, and every choice is within the
// budget.
func FuzzHostile(f *testing.F) {
	f.Add([]byte("0123456789abcdefghijklmnopqrstuvwxyz"))
	f.Add([]byte{255, 128, 7, 254, 3, 3, 3, 0, 1, 9, 200, 201, 202, 203, 204, 205, 206, 0, 0, 0, 0, 255, 255, 255, 255})
	extremes := []int64{0, 1, -1, 1000, 1e9, 3_600_000_000_000, math.MaxInt64, math.MinInt64, 1 << 40, -5e9}
	f.Fuzz(func(t *testing.T, script []byte) {
		next := func() int64 {
			if len(script) == 0 {
				return 0
			}
			b := script[0]
			script = script[1:]
			return extremes[int(b)%len(extremes)]
		}
		r := bench(t, 1, 2)
		price := func() Nano { return Nano{uint256.Int{uint64(next()), uint64(next())}} }
		for len(script) > 0 {
			list := []Endpoint{{ID: "a", Model: "m", Price: Price{price(), price(), price()}}, {ID: "b", Model: "m"}}
			if err := r.Set(list); err != nil {
				t.Fatal(err)
			}
			request := Request{
				Model: "m", InTokens: next(), OutTokens: next(), MaxTokens: next(), Budget: price(), SecondWorth: price(),
				LastEndpoint: "a", CachedTokens: next(), Sort: Sort(next()),
			}
			c, err := r.Choose(time.Duration(next()), request)
			if err != nil {
				t.Fatal(err) // b is free
			}
			if c.Reserve.Cmp(request.Budget) > 0 || c.Limit <= 0 || c.Limit > 2*time.Hour {
				t.Fatalf("%s reserved of %s, limit %s", c.Reserve, request.Budget, c.Limit)
			}
			r.Done(time.Duration(next()), c, Result{
				Outcome: Outcome(next()), FirstToken: time.Duration(next()), Total: time.Duration(next()),
				OutTokens: next(), Claimed: time.Duration(next()), RetryAfter: time.Duration(next()),
			})
			for _, row := range r.Table(time.Duration(next()), request) {
				e := row.Estimate
				if !(e.Success > 0 && e.Success < 1) || min(e.FirstToken, e.PerPrompt, e.PerToken, e.Wait) < 0 || max(e.FirstToken, e.PerPrompt, e.PerToken, e.Wait) > time.Hour {
					t.Fatalf("%+v", e)
				}
				if j := row.Cost.J(); j.Cmp(row.Cost.Pay.Add(row.Cost.Wait).Add(row.Cost.Risk)) > 0 {
					t.Fatalf("J %s of %+v", j, row.Cost)
				}
			}
		}
	})
}
