package sim

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/gpupay/gpupay/sdk/route"
)

// Server is one that is simulated. What it does depends on how many of its slots are busy when a request comes.
type Server struct {
	ID         string
	Price      route.Price
	Slots      int           // requests at once, of all clients
	RTT        time.Duration // of the network, before anything else
	Prefill    float64       // prompt tokens a second on an idle server; on a full one half of it
	Decode     float64       // tokens a second for one of the answers on an idle server
	Slows      float64       // by how much a token takes longer on a full server: 1 is twice as long
	Load       Load          // of others
	Rejects    bool          // a full server says 429; else requests wait for a slot, which is not billed
	RetryAfter time.Duration // that it says with 429; 0: nothing
	Fails      float64       // chance that an answer fails: half of them at once, half on the way
	Outages    []Span        // it refuses connections, and what is under way breaks
	Gone       time.Duration // from when on it does not answer at all; 0: never
	Inflates   float64       // it claims so many times the slot time that there was; 0: as it was
}

// Load is how many of a server's slots others hold, as a share of them: Mean + Swing*sin(2*pi*(t/Period + Phase)) and a noise that
// is kept for four fifths from one ten seconds to the next. From 0 to 1.3, where over 1 is a queue.
type Load struct {
	Mean, Swing, Phase, Noise float64
	Period                    time.Duration // 0: no swing
}

// Span is from when to when.
type Span struct{ From, To time.Duration }

// What clients and servers do beside.
const (
	loadStep    = 10 * time.Second
	connectTime = 10 * time.Second // after which a server that does not answer is given up
	longest     = 2 * time.Minute  // after which any attempt is given up
	slotTime    = 5 * time.Second  // for which others hold a slot, on average
)

// World is servers and what befalls them. It does not change, and any number of runs may share it.
type World struct {
	Seed    uint64
	Servers []Server
	noise   [][]float64 // of each server's load, by loadStep
}

// NewWorld is a world of given servers, with noises for their loads from the seed, which repeat after an hour.
func NewWorld(seed uint64, servers []Server) *World {
	w := &World{Seed: seed, Servers: servers}
	random := rand.New(rand.NewPCG(seed, 1))
	for _, s := range servers {
		noise, at := make([]float64, time.Hour/loadStep), 0.
		for i := range noise {
			at = .8*at + .6*random.NormFloat64()
			noise[i] = at * s.Load.Noise
		}
		w.noise = append(w.noise, noise)
	}
	return w
}

// load is the share of a server's slots that others hold.
func (w *World) load(server int, now time.Duration) float64 {
	l := w.Servers[server].Load
	u := l.Mean + w.noise[server][int(now/loadStep)%len(w.noise[server])]
	if l.Period > 0 {
		u += l.Swing * math.Sin(2*math.Pi*(float64(now)/float64(l.Period)+l.Phase))
	}
	return min(max(u, 0), 1.3)
}

// answer is what a server does to an attempt.
type answer struct {
	route.Result
	paid    route.Nano // by the payer's own clock, whatever is claimed
	refused bool       // the bill, for claiming more time than there was
}

// luck is what is drawn for one attempt at one server, by whichever policy.
type luck struct{ slow, pace, fails, where, early float64 }

func (w *World) luck(server, n, try int) luck {
	random := rand.New(rand.NewPCG(w.Seed, uint64(n)<<20|uint64(server)<<4|uint64(try)))
	return luck{random.NormFloat64(), random.NormFloat64(), random.Float64(), random.Float64(), random.Float64()}
}

// times are those of an answer at a server as it is now, where so many of ours are already. Nothing is said of failures. full: the server
// has no slot and says 429.
func (w *World) times(server int, now time.Duration, a Arrival, flying int, l luck) (first, total, queued time.Duration, full bool) {
	s := &w.Servers[server]
	busy := w.load(server, now)*float64(s.Slots) + float64(flying)
	part := min(busy/float64(s.Slots), 1)
	if over := busy + 1 - float64(s.Slots); over > 0 {
		full = s.Rejects
		queued = time.Duration(over * float64(slotTime) / float64(s.Slots))
	}
	perToken := (1 + s.Slows*part) / s.Decode * math.Exp(.1*l.pace)
	reads := float64(a.In)/s.Prefill*(1+part)*math.Exp(.2*l.slow) + perToken
	first = s.RTT + queued + lasts(reads)
	return first, first + lasts(perToken*float64(a.Out-1)), queued, full
}

// attempt is what a server does to the n-th request, if it is sent there now, where so many of ours are already.
func (w *World) attempt(server, n, try int, now time.Duration, a Arrival, flying int) answer {
	s, l := &w.Servers[server], w.luck(server, n, try)
	if s.Gone > 0 && now >= s.Gone {
		return failed(connectTime)
	}
	if s.down(now) {
		return failed(s.RTT)
	}
	first, total, queued, full := w.times(server, now, a, flying, l)
	if full {
		return answer{Result: route.Result{Outcome: route.Throttled, Total: s.RTT, RetryAfter: s.RetryAfter}}
	}
	switch end := now + total; {
	case l.fails < s.Fails && l.early < .5:
		return failed(s.RTT)
	case l.fails < s.Fails:
		return failed(s.RTT + time.Duration(l.where*float64(total-s.RTT)))
	case s.Gone > 0 && end > s.Gone:
		return failed(s.Gone - now + connectTime)
	default:
		for _, o := range s.Outages {
			if now < o.From && end > o.From {
				return failed(o.From - now)
			}
		}
	}
	if total > longest {
		return failed(longest)
	}
	return s.bill(a, first, total, queued)
}

// bill is an answer that came whole. The payer pays the slot time, of a bill for more than its own clock saw what that saw.
func (s *Server) bill(a Arrival, first, total, queued time.Duration) answer {
	held := total - queued - s.RTT
	b := answer{Result: route.Result{Outcome: route.Done, FirstToken: first, Total: total, OutTokens: a.Out, Claimed: held}}
	if s.Inflates > 0 {
		b.Claimed = time.Duration(float64(held) * s.Inflates)
	}
	b.refused = b.Claimed > total+50*time.Millisecond
	b.paid = s.Price.Pay(min(b.Claimed, total), a.In, a.Out)
	return b
}

func (s *Server) down(now time.Duration) bool {
	for _, o := range s.Outages {
		if now >= o.From && now < o.To {
			return true
		}
	}
	return false
}

func failed(after time.Duration) answer {
	return answer{Result: route.Result{Outcome: route.Failed, Total: min(after, longest)}}
}

func lasts(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
