package sim

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gpupay/gpupay/sdk/route"
)

// Ours is package route, with its defaults.
var Ours = Policy{Name: "ours", New: newOurs}

// Oracle knows the truth of the moment: of each server whether it is up, how full and how fast it is, how often it fails and whether it
// lies. It takes the least expected J. It does not know what comes after, nor how the dice fall.
var Oracle = Policy{Name: "oracle", New: func(w *World, _ *rand.Rand) Chooser { return oracle{w} }}

// Clairvoyant knows besides how the dice fall: how long this answer gets and will take, whether it fails and whether an outage breaks it.
var Clairvoyant = Policy{Name: "clairvoyant", New: func(w *World, _ *rand.Rand) Chooser { return clairvoyant{w} }}

// PeakEWMA is the power of two choices, with the load of each measured as peak EWMA of its times, by requests in flight.
var PeakEWMA = Policy{Name: "power of two choices, peak EWMA", New: func(w *World, random *rand.Rand) Chooser {
	return &peakEWMA{outages: outages{row: 5, rest: 5 * time.Second}.of(w), random: random, peaks: make([]peak, len(w.Servers))}
}}

// Rivals are the policies that Ours is compared with, as the documentation describes them.
func Rivals() []Policy {
	return []Policy{
		{"random", func(_ *World, random *rand.Rand) Chooser { return anyone{random: random} }},
		{"cheapest list price", func(w *World, _ *rand.Rand) Chooser { return cheapest{prices: listPrices(w)} }},
		{"lowest latency EWMA", func(w *World, random *rand.Rand) Chooser {
			return &fastest{random: random, times: make([]float64, len(w.Servers))}
		}},
		{"inverse square of price, outage rule", func(w *World, random *rand.Rand) Chooser {
			return &inverse{random: random, prices: listPrices(w), failed: make([]time.Duration, len(w.Servers))}
		}},
		PeakEWMA,
		{"least outstanding, round robin", func(*World, *rand.Rand) Chooser { return new(fewest) }},
	}
}

// untried are the servers that an attempt may be sent to.
func (a *Ask) untried() []int {
	var list []int
	for i, tried := range a.Tried {
		if !tried {
			list = append(list, i)
		}
	}
	return list
}

// listPrices is what a usual request costs by the price lists: 600 and 150 tokens, in 3 seconds of a slot.
func listPrices(w *World) []float64 {
	var list []float64
	for _, s := range w.Servers {
		list = append(list, s.Price.Pay(3*time.Second, 600, 150).BaseUnits())
	}
	return list
}

type ours struct {
	router *route.Router
	index  map[string]int
	ids    []string
}

func newOurs(w *World, random *rand.Rand) Chooser {
	router, err := route.New(route.Config{Rand: random})
	if err != nil {
		panic(err)
	}
	o := &ours{router: router, index: make(map[string]int)}
	var endpoints []route.Endpoint
	for i, s := range w.Servers {
		o.index[s.ID] = i
		o.ids = append(o.ids, s.ID)
		endpoints = append(endpoints, route.Endpoint{ID: s.ID, Model: "m", Price: s.Price})
	}
	if err := router.Set(endpoints); err != nil {
		panic(err)
	}
	return o
}

func (o *ours) Choose(ask *Ask) Pick {
	request := route.Request{Model: "m", InTokens: ask.In, OutTokens: ask.Expected, MaxTokens: maxTokens, Budget: route.Base(math.MaxUint64)}
	for i, tried := range ask.Tried {
		if tried {
			request.Ignore = append(request.Ignore, o.ids[i])
		}
	}
	choice, err := o.router.Choose(ask.Now, request)
	if err != nil {
		panic(err) // no rule leaves anybody out here
	}
	return Pick{Server: o.index[choice.Endpoint.ID], Limit: choice.Limit, choice: choice}
}

func (o *ours) Done(now time.Duration, pick Pick, result route.Result) {
	o.router.Done(now, pick.choice, result)
}

type oracle struct{ *World }

func (o oracle) Choose(ask *Ask) Pick {
	a := Arrival{At: ask.Now, In: ask.In, Out: ask.Expected}
	costs := func(server int) float64 {
		s := &o.Servers[server]
		first, total, queued, full := o.times(server, ask.Now, a, ask.Flying[server], luck{})
		if full || s.down(ask.Now) || s.Gone > 0 && ask.Now >= s.Gone {
			return lost * failurePay * 1e3
		}
		whole := s.bill(a, first, total, queued)
		j := whole.paid.BaseUnits() + secondPay*total.Seconds()
		if whole.refused {
			j += failurePay
		}
		fails := s.RTT.Seconds() + (total-s.RTT).Seconds()/4 // half at once, half on the way
		return j + s.Fails/(1-s.Fails)*(failurePay+secondPay*fails)
	}
	return Pick{Server: slices.MinFunc(ask.untried(), func(a, b int) int { return cmp.Compare(costs(a), costs(b)) })}
}

func (oracle) Done(time.Duration, Pick, route.Result) {}

type clairvoyant struct{ *World }

func (o clairvoyant) Choose(ask *Ask) Pick {
	costs := func(server int) float64 {
		got := o.attempt(server, ask.n, ask.try, ask.Now, ask.truth, ask.Flying[server])
		j := got.paid.BaseUnits() + secondPay*got.Total.Seconds()
		switch {
		case got.Outcome != route.Done:
			return j + lost*failurePay
		case got.refused:
			return j + failurePay
		}
		return j
	}
	return Pick{Server: slices.MinFunc(ask.untried(), func(a, b int) int { return cmp.Compare(costs(a), costs(b)) })}
}

func (clairvoyant) Done(time.Duration, Pick, route.Result) {}

// anyone: each server alike.
type anyone struct{ random *rand.Rand }

func (p anyone) Choose(ask *Ask) Pick {
	from := ask.untried()
	return Pick{Server: from[p.random.IntN(len(from))]}
}

func (anyone) Done(time.Duration, Pick, route.Result) {}

// cheapest: the least list price, whatever happens.
type cheapest struct{ prices []float64 }

func (p cheapest) Choose(ask *Ask) Pick {
	return Pick{Server: slices.MinFunc(ask.untried(), func(a, b int) int { return cmp.Compare(p.prices[a], p.prices[b]) })}
}

func (cheapest) Done(time.Duration, Pick, route.Result) {}

// fastest: the least EWMA (0.3) of the time of an answer; a failure or 429 counts as 60 s. Servers that were never asked come first, and
// one request in twenty goes anywhere.
type fastest struct {
	random *rand.Rand
	times  []float64
}

func (p *fastest) Choose(ask *Ask) Pick {
	from := ask.untried()
	if p.random.Float64() < .05 {
		return Pick{Server: from[p.random.IntN(len(from))]}
	}
	return Pick{Server: slices.MinFunc(from, func(a, b int) int { return cmp.Compare(p.times[a], p.times[b]) })}
}

func (p *fastest) Done(_ time.Duration, pick Pick, result route.Result) {
	took := result.Total.Seconds()
	if result.Outcome != route.Done {
		took = 60
	}
	if at := &p.times[pick.Server]; *at == 0 {
		*at = took
	} else {
		*at += .3 * (took - *at)
	}
}

// inverse: by chance, weighed by 1/price^2; servers that failed or said 429 in the last 30 s come last.
type inverse struct {
	random *rand.Rand
	prices []float64
	failed []time.Duration // when last, and 30 s more
}

func (p *inverse) Choose(ask *Ask) Pick {
	from := ask.untried()
	well := slices.DeleteFunc(slices.Clone(from), func(i int) bool { return ask.Now < p.failed[i] })
	if len(well) > 0 {
		from = well
	}
	sum := 0.
	for _, i := range from {
		sum += 1 / (p.prices[i] * p.prices[i])
	}
	at := p.random.Float64() * sum
	for _, i := range from {
		if at -= 1 / (p.prices[i] * p.prices[i]); at < 0 {
			return Pick{Server: i}
		}
	}
	return Pick{Server: from[0]}
}

func (p *inverse) Done(now time.Duration, pick Pick, result route.Result) {
	if result.Outcome != route.Done {
		p.failed[pick.Server] = now + 30*time.Second
	}
}

// outages leaves out servers that failed so often in a row: for rest, then twice as long each time, up to 300 s.
type outages struct {
	row     int
	rest    time.Duration
	fails   []int
	rests   []time.Duration
	untilAt []time.Duration
}

func (o outages) of(w *World) outages {
	n := len(w.Servers)
	o.fails, o.rests, o.untilAt = make([]int, n), make([]time.Duration, n), make([]time.Duration, n)
	return o
}

func (o *outages) saw(now time.Duration, server int, ok bool) {
	if ok {
		o.fails[server], o.rests[server] = 0, 0
		return
	}
	if o.fails[server]++; o.fails[server] >= o.row && now >= o.untilAt[server] {
		o.rests[server] = min(max(2*o.rests[server], o.rest), 300*time.Second)
		o.untilAt[server] = now + o.rests[server]
	}
}

// peakEWMA: of two servers drawn at random the one with the less of (EWMA of the time of an answer) * (requests there + 1). A sample over
// the EWMA replaces it; others weigh 1-exp(-t/10 s), t being since the sample before. Five failures or 429s in a row leave a server out for 5 s, and
// twice as long each next time.
type peakEWMA struct {
	outages
	random *rand.Rand
	peaks  []peak
}

type peak struct {
	seconds float64
	at      time.Duration
}

func (p *peakEWMA) Choose(ask *Ask) Pick {
	from := ask.untried()
	well := slices.DeleteFunc(slices.Clone(from), func(i int) bool { return ask.Now < p.untilAt[i] })
	if len(well) > 0 {
		from = well
	}
	a := from[p.random.IntN(len(from))]
	b := from[p.random.IntN(len(from))]
	load := func(i int) float64 { return max(p.peaks[i].seconds, 1e-3) * float64(ask.Flying[i]+1) }
	if load(b) < load(a) {
		a = b
	}
	return Pick{Server: a}
}

func (p *peakEWMA) Done(now time.Duration, pick Pick, result route.Result) {
	at, took := &p.peaks[pick.Server], result.Total.Seconds()
	if took > at.seconds {
		at.seconds = took
	} else {
		at.seconds += (1 - math.Exp(-(now-at.at).Seconds()/10)) * (took - at.seconds)
	}
	at.at = now
	p.saw(now, pick.Server, result.Outcome == route.Done)
}

// fewest: the fewest requests in flight, in turn among equals.
type fewest struct{ turn int }

func (p *fewest) Choose(ask *Ask) Pick {
	from := ask.untried()
	p.turn++
	best := from[p.turn%len(from)]
	for i := range from {
		if s := from[(p.turn+i)%len(from)]; ask.Flying[s] < ask.Flying[best] {
			best = s
		}
	}
	return Pick{Server: best}
}

func (*fewest) Done(time.Duration, Pick, route.Result) {}
