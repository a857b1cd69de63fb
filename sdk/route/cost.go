package route

import "time"

// Price is what an endpoint takes, each part in Nano of the token that is paid with. A server is priced by its slots' time, by
// tokens, or by both; a part of 0 costs nothing.
type Price struct {
	PerSlotSecond  Nano // of a slot, from the request's sending to its last byte; see SlotSecond
	PerInputToken  Nano // of the prompt
	PerOutputToken Nano // of the answer
}

// Pay is what an answer costs that holds a slot for so long, rounded up by less than three Nano.
func (p Price) Pay(wait time.Duration, in, out int64) Nano {
	return p.PerSlotSecond.forTime(wait).Add(p.byTokens(in, out))
}

func (p Price) byTokens(in, out int64) Nano {
	if p.PerInputToken.IsZero() && p.PerOutputToken.IsZero() {
		return Nano{}
	}
	return p.PerInputToken.mulDiv(uint64(tokens(in)), 1, false).Add(p.PerOutputToken.mulDiv(uint64(tokens(out)), 1, false))
}

// Cost is what an answer is expected to cost at an endpoint, by its parts. It is an estimate: what is reserved is Choice.Reserve.
type Cost struct {
	Pay      Nano // what the endpoint is paid
	Wait     Nano // what the time until the last token is worth
	Risk     Nano // what its failures cost: time, money and trouble
	Affinity Nano // what it saves that the session's last turn ran there; at most the other parts
}

// J is the whole: Pay + Wait + Risk - Affinity, and never below 0.
func (c Cost) J() Nano { return c.Pay.Add(c.Wait).Add(c.Risk).Sub(c.Affinity) }

// Sort says what a request would rather save.
type Sort uint8

const (
	SortCost    Sort = iota // the least J, at the given worth of a second
	SortPrice               // a second is worth a tenth of it
	SortLatency             // a second is worth ten times as much
)

// worth is what a second of waiting costs a request.
func (s Sort) worth(second Nano) Nano {
	switch s {
	case SortPrice:
		return second.mulDiv(1, 10, true)
	case SortLatency:
		return second.mulDiv(10, 1, true)
	}
	return second
}

// What a failure costs beside half of the price: the time to its first token and half a second.
const failureWait = time.Second / 2

// cost is J by its parts, of an estimator's figures now.
func (e *estimator) cost(now time.Duration, price Price, second, failure Nano, r *Request, cached int64) Cost {
	in, out := r.tokens()
	wait := e.wait(in, out)
	c := Cost{Pay: price.Pay(wait, in, out), Wait: second.forTime(wait)}
	ok, bad := e.counts(now)
	const parts = 1_000_000_000 // (1-s)/s = (1+bad)/(9+ok), in billionths
	odds := uint64((1 + bad) / (9 + ok) * parts)
	fails := second.forTime(seconds(e.a) + failureWait).Add(c.Pay.mulDiv(1, 2, true)).Add(failure)
	c.Risk = fails.mulDiv(odds, parts, true)
	if cached = min(tokens(cached), in); cached > 0 {
		saved := min(seconds(e.b*float64(cached)), wait)
		c.Affinity = second.forTime(saved).Add(price.PerSlotSecond.forTime(saved))
	}
	return c
}

// least is for how long a request must be able to run at an endpoint for it to be chosen, and what it can cost in that time.
func (e *estimator) least(price Price, r *Request) (limit time.Duration, all Nano) {
	in, _ := r.tokens()
	wait := e.wait(in, r.maxTokens())
	return reserve(price, r, wait)
}

// most is for how long it may run, and what is reserved for that: as of a slow server until enough is known of this one, and by its slowest
// answers from then on. A request that is cut is paid and has brought nothing, while what is reserved and not used comes back. Where the
// budget or the cap has less room than that, it may run for as long as they pay.
func (e *estimator) most(price Price, r *Request, endpoint string) (limit time.Duration, all Nano) {
	in, _ := r.tokens()
	limit, all = reserve(price, r, max(e.slowly().wait(in, r.maxTokens()), e.wait(in, r.maxTokens())))
	room := r.Budget
	if r.Cap != nil {
		if cap := r.Cap(endpoint); cap.Cmp(room) < 0 {
			room = cap
		}
	}
	if all.Cmp(room) <= 0 {
		return limit, all
	}
	_, byTokens := reserve(Price{PerInputToken: price.PerInputToken, PerOutputToken: price.PerOutputToken}, r, 0)
	room = room.mulDiv(1, perBase, false).mulDiv(perBase, 1, false)
	shortest, all := e.least(price, r)
	if room.Cmp(all) <= 0 {
		return shortest, all
	}
	return max(shortest, min(limit, room.Sub(byTokens).TimeFor(price.PerSlotSecond))), room
}

// reserve is for how long an answer of the most tokens may run that is expected to take so long, and what it can cost in that time: half
// as much again and a second, in whole base units.
func reserve(price Price, r *Request, wait time.Duration) (limit time.Duration, all Nano) {
	in, _ := r.tokens()
	limit = wait + wait/2 + time.Second
	byTokens := price.byTokens(in, r.maxTokens())
	if !byTokens.IsZero() {
		byTokens = byTokens.mulDiv(3, 2, true)
	}
	all = price.PerSlotSecond.forTime(limit).Add(byTokens)
	return limit, all.mulDiv(1, perBase, true).mulDiv(perBase, 1, true)
}

func (e *estimator) estimate(now time.Duration, r *Request) Estimate {
	in, out := r.tokens()
	ok, bad := e.counts(now)
	return Estimate{
		FirstToken: seconds(e.a), PerPrompt: seconds(e.b), PerToken: seconds(e.d), Wait: e.wait(in, out),
		Success: (9 + ok) / (10 + ok + bad), Samples: e.timed,
	}
}
