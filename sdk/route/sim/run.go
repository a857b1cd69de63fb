package sim

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gpupay/gpupay/sdk/route"
)

// Policy is a way to choose endpoints.
type Policy struct {
	Name string
	New  func(w *World, random *rand.Rand) Chooser // for one run
}

// Chooser chooses for one run, in the order of time.
type Chooser interface {
	Choose(ask *Ask) Pick
	Done(now time.Duration, pick Pick, result route.Result) // of each pick, when its attempt has ended
}

// Ask is an attempt to be sent somewhere.
type Ask struct {
	Now      time.Duration
	In       int64  // tokens of the prompt
	Expected int64  // of the answer: EWMA of those before
	Tried    []bool // servers that failed at this request before, unless all have
	Flying   []int  // own attempts that are under way, by server

	n, try int
	truth  Arrival // for Oracle
}

// Pick is where an attempt is sent.
type Pick struct {
	Server int
	Limit  time.Duration // after which it is ended, and paid up to there; 0: none

	choice *route.Choice
}

// Bounds and worths of every run. The caller fails over to another server at once.
const (
	attempts   = 3
	maxTokens  = 2048
	lost       = 10  // times c0 that a request costs which no attempt answered
	secondPay  = 400 // base units: what a second of waiting is worth, 0.0004 dollars
	failurePay = 500 // base units: c0, 0.0005 dollars
)

// Stats is what a run came to.
type Stats struct {
	Requests int
	J        float64       // base units a request, on average: see the package
	Paid     float64       // of those, to servers
	P95      time.Duration // of the time from arrival to the last byte, of requests that were answered
	Failed   float64       // share of requests that no attempt answered
	Sent     []int         // attempts, by server
}

// job is a request on its way.
type job struct {
	Arrival
	n, try int
	tried  []bool
}

// run is the state of one.
type run struct {
	world   *World
	chooser Chooser
	ends    ends
	flying  []int
	answers float64 // EWMA of tokens
	stats   Stats
	totals  []time.Duration
}

// Run serves requests, which come in the order of time, as a policy says.
func Run(w *World, arrivals []Arrival, policy Policy) Stats {
	r := &run{world: w, chooser: policy.New(w, rand.New(rand.NewPCG(w.Seed, 3))), flying: make([]int, len(w.Servers)), answers: 200}
	r.stats.Sent = make([]int, len(w.Servers))
	for n, a := range arrivals {
		r.until(a.At)
		r.send(a.At, &job{Arrival: a, n: n, tried: make([]bool, len(w.Servers))})
	}
	r.until(1 << 62)
	s := &r.stats
	s.Requests = len(arrivals)
	if s.Requests > 0 {
		s.J, s.Paid, s.Failed = s.J/float64(s.Requests), s.Paid/float64(s.Requests), s.Failed/float64(s.Requests)
	}
	if slices.Sort(r.totals); len(r.totals) > 0 {
		s.P95 = r.totals[len(r.totals)*95/100]
	}
	return *s
}

func (r *run) send(now time.Duration, j *job) {
	if !slices.Contains(j.tried, false) {
		clear(j.tried)
	}
	ask := &Ask{Now: now, In: j.In, Expected: int64(r.answers), Tried: j.tried, Flying: r.flying, n: j.n, try: j.try, truth: j.Arrival}
	pick := r.chooser.Choose(ask)
	got := r.world.attempt(pick.Server, j.n, j.try, now, j.Arrival, r.flying[pick.Server])
	if pick.Limit > 0 && got.Total > pick.Limit {
		price := r.world.Servers[pick.Server].Price
		cut := failed(pick.Limit)
		if got.Outcome == route.Done {
			cut.paid = price.Pay(pick.Limit, j.In, j.Out)
		}
		got = cut
	}
	r.flying[pick.Server]++
	r.stats.Sent[pick.Server]++
	heap.Push(&r.ends, end{at: now + got.Total, n: j.n, job: j, pick: pick, answer: got})
}

// until ends the attempts that end up to a moment.
func (r *run) until(now time.Duration) {
	for len(r.ends) > 0 && r.ends[0].at <= now {
		e := heap.Pop(&r.ends).(end)
		r.flying[e.pick.Server]--
		r.chooser.Done(e.at, e.pick, e.answer.Result)
		r.account(e)
	}
}

// account books an attempt that ended, and sends the request elsewhere if it failed.
func (r *run) account(e end) {
	j, s := e.job, &r.stats
	paid := e.answer.paid.BaseUnits()
	s.Paid += paid
	s.J += paid
	if e.answer.refused || e.answer.Outcome == route.Failed {
		s.J += failurePay
	}
	done := e.answer.Outcome == route.Done
	if !done && j.try+1 < attempts {
		j.try++
		j.tried[e.pick.Server] = true
		r.send(e.at, j)
		return
	}
	s.J += secondPay * (e.at - j.At).Seconds()
	if !done {
		s.J += lost * failurePay
		s.Failed++
		return
	}
	r.answers += .05 * (float64(j.Out) - r.answers)
	r.totals = append(r.totals, e.at-j.At)
}

// end is the end of an attempt.
type end struct {
	at time.Duration
	n  int
	*job
	pick   Pick
	answer answer
}

// ends is a heap of them by time.
type ends []end

func (e ends) Len() int      { return len(e) }
func (e ends) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e ends) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].n < e[j].n
}
func (e *ends) Push(x any) { *e = append(*e, x.(end)) }
func (e *ends) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	*e = (*e)[:last]
	return x
}
