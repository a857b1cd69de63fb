package route

import (
	"math"
	"time"
)

// What is learned of an endpoint, and how fast. Of times the worse is learned faster than the better: who waits for a server that
// got slow loses more than who comes back late to one that got fast.
const (
	firstUp, firstDown = .3, .15 // gain of the normalized LMS on the time to the first token
	tokenUp, tokenDown = .3, .1  // and on the time per token
	scale              = 1000    // tokens that weigh in the LMS as much as the constant part does, and as one own request in flight
	forget             = 30      // seconds in which counts of answers fall to 1/e

	priorFirst  = .3   // seconds to the first token of a server that nobody has asked yet
	priorPrompt = 1e-4 // of each prompt token more, in seconds
	priorToken  = .02  // of each token of the answer, in seconds

	slowFirst  = 10.  // of a slow server, for which is reserved: seconds to the first token
	slowPrompt = 1e-3 // of each prompt token more, in seconds
	slowToken  = .2   // of each token of the answer, until so many answers were paced
	enough     = 10
	slower     = 4   // by how much one may be slower than its slowest answer lately
	forgetSlow = .05 // by how much of the difference each answer brings that nearer to itself

	maxTime   = time.Hour             // the longest time that is learned or estimated
	minToken  = 5e-5                  // seconds per token of the fastest server that is believed
	maxTokens = 1 << 22               // the most tokens of a prompt or an answer
	maxPrompt = 3600. / (1 << 10)     // seconds per prompt token of the slowest server
	maxToken  = 60.                   // seconds per token of the slowest server
	countMost = float64(1 << 30)      // answers in the decayed counts
	tolerance = 50 * time.Millisecond // by how much a claimed time may be more than ours
)

// Estimate is what a Router has learned of one endpoint and model from the caller's own requests.
type Estimate struct {
	FirstToken time.Duration // to the first token of an answer to an empty prompt, beside the own requests that are there; up to an hour
	PerPrompt  time.Duration // more of it for each prompt token
	PerToken   time.Duration // for each token of the answer, likewise
	Wait       time.Duration // for the whole answer to the request at hand; up to an hour
	Success    float64       // chance that an answer comes whole, over 0 and under 1
	Samples    int           // answers that were timed, at most 1,000,000; 0: the times are those of other endpoints of the model
}

// estimator learns from one endpoint, or from all of a model. Its figures are finite and within their bounds whatever it is given.
type estimator struct {
	a, b, q float64 // seconds to the first token; more per prompt token; more per own request that is there already
	d, w    float64 // seconds per token; more per own request that is there already
	slow    float64 // seconds per token of the slowest answer lately
	late    float64 // seconds to the first token of the latest one
	timed   int     // samples of the time to the first token
	paced   int     // and of the time per token
	ok, bad float64 // answers, decayed to at
	at      time.Duration
}

func newEstimator() estimator { return estimator{a: priorFirst, b: priorPrompt, d: priorToken} }

// learn takes the times of an answer with that many prompt tokens to read, as the caller measured them; flying own requests were there
// when it was sent. Where it came in one piece, what it took longer or shorter than expected is laid to its parts alike.
func (e *estimator) learn(prompt int64, flying int, result Result) {
	now := e.beside(flying)
	first, total := within(result.FirstToken), within(result.Total)
	if first == 0 && result.Outcome == Done {
		reads, whole := now.wait(prompt, 0), now.wait(prompt, result.OutTokens)
		first = seconds(total.Seconds() * max(reads.Seconds(), minToken) / max(whole.Seconds(), minToken))
		first = min(first, total)
	}
	if first == 0 {
		return
	}
	in := float64(tokens(prompt))
	x, y := in/scale, float64(flying)
	miss := first.Seconds() - (now.a + now.b*in)
	e.late = lately(e.late, first.Seconds())
	step := gain(e.timed, miss, firstUp, firstDown) * miss / (1 + x*x + y*y)
	e.a = bound(e.a+step, 0, maxTime.Seconds())
	e.b = bound(e.b+step*x/scale, 0, maxPrompt)
	e.q = bound(e.q+step*y, 0, maxTime.Seconds())
	e.timed = min(e.timed+1, 1_000_000)
	if out := tokens(result.OutTokens); out > 1 && total >= first {
		took := bound((total-first).Seconds()/float64(out-1), minToken, maxToken)
		e.slow = lately(e.slow, took)
		miss := took - now.d
		step := gain(e.paced, miss, tokenUp, tokenDown) * miss / (1 + y*y)
		e.d = bound(e.d+step, minToken, maxToken)
		e.w = bound(e.w+step*y, 0, maxToken)
		e.paced = min(e.paced+1, 1_000_000)
	}
}

// learnCut takes what is known of an answer that its limit cut: it takes no less. Of one without a token, of most tokens at the most, what
// it has run for is laid to its parts alike, or, where the caller says that no first token came, to that alone.
func (e *estimator) learnCut(prompt, most int64, flying int, result Result) {
	if within(result.FirstToken) == 0 {
		result.OutTokens = most
	}
	now := e.beside(flying)
	if result.FirstToken == 0 {
		reads, whole := now.wait(prompt, 0), now.wait(prompt, most)
		result.FirstToken = seconds(within(result.Total).Seconds() * max(reads.Seconds(), minToken) / max(whole.Seconds(), minToken))
	}
	first, total := within(result.FirstToken), within(result.Total)
	in, out := float64(tokens(prompt)), tokens(result.OutTokens)
	least := *e
	least.learn(prompt, flying, Result{FirstToken: max(first, 1), Total: max(first, total), OutTokens: out})
	if first.Seconds() > now.a+now.b*in {
		e.a, e.b, e.q, e.timed = least.a, least.b, least.q, least.timed
	}
	if least.d > e.d {
		e.d, e.w, e.paced = least.d, least.w, least.paced
	}
	e.late, e.slow = max(e.late, least.late), max(e.slow, least.slow)
}

// lately is the worst time of late: a worse one counts whole at once, and is forgotten as better ones come.
func lately(worst, took float64) float64 {
	if took >= worst {
		return took
	}
	return worst + forgetSlow*(took-worst)
}

// slowly are the figures by which is reserved.
func (e *estimator) slowly() *estimator {
	s := estimator{a: max(slowFirst+e.a, slower*e.late), b: max(slowPrompt, e.b), d: max(e.d, slower*e.slow)}
	if e.paced < enough {
		s.d = max(e.d, e.slow, slowToken)
	}
	return &s
}

// gain is 1 for the first sample, which is all that is known.
func gain(samples int, miss, up, down float64) float64 {
	switch {
	case samples == 0:
		return 1
	case miss > 0:
		return up
	}
	return down
}

// count books an answer that came whole or did not.
func (e *estimator) count(now time.Duration, good bool) {
	e.ok, e.bad = e.counts(now)
	if e.at = max(e.at, now); good {
		e.ok = min(e.ok+1, countMost)
	} else {
		e.bad = min(e.bad+1, countMost)
	}
}

// counts are the answers as they weigh now.
func (e *estimator) counts(now time.Duration) (ok, bad float64) {
	left := math.Exp(-max(now-e.at, 0).Seconds() / forget)
	return e.ok * left, e.bad * left
}

// beside is what is expected of a request that comes when so many own ones are there: a server that they fill is dear at once, and
// not when their late answers come back.
func (e *estimator) beside(flying int) estimator {
	now, n := *e, float64(flying)
	now.a, now.d = bound(e.a+e.q*n, 0, maxTime.Seconds()), bound(e.d+e.w*n, minToken, maxToken)
	return now
}

// wait is the expected time of an answer.
func (e *estimator) wait(in, out int64) time.Duration {
	return seconds(e.a + e.b*float64(tokens(in)) + e.d*float64(tokens(out)))
}

// seconds is a time of so many, from 0 to an hour. What is no number is the worst.
func seconds(s float64) time.Duration {
	return time.Duration(bound(s, 0, maxTime.Seconds()) * float64(time.Second))
}

func within(t time.Duration) time.Duration { return min(max(t, 0), maxTime) }

func tokens(n int64) int64 { return min(max(n, 0), maxTokens) }

func bound(x, low, high float64) float64 {
	switch {
	case x >= low && x <= high:
		return x
	case x < low:
		return low
	}
	return high
}
