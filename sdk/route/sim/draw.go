package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/gpupay/gpupay/sdk/route"
)

// Draw is a random world of 5 to 12 servers, and the process of its arrivals. Of a usual server
//
//	price     lognormal about 0.075 dollars an hour of a slot (2.40 for 32 slots), sigma 0.5; one in four is priced by tokens instead,
//	          lognormal about 0.15 and 0.45 dollars a million of the prompt and of the answer, sigma 0.5
//	speed     20 to 160 tokens a second and 2,000 to 20,000 of the prompt, log-uniform; a full server is 1.5 to 3.5 times as slow
//	slots     8, 16, 32 or 64; RTT 5 to 150 ms
//	load      of others: mean 0.2 to 0.9, swing 0 to 0.3 in 5 to 30 minutes, noise 0 to 0.15
//	full      half of them say 429, half of those with Retry-After of 1 to 10 s
//	failures  0.1 to 2 % of answers, log-uniform; outages begin each 30 minutes on average and last 10 to 120 s
//
// In half of the worlds each, independently, the last but two servers are: one that fails half of the time at 0.4 times the usual price, one that claims
// 1.3 to 2 times its time, one that is gone after 5 to 20 minutes. A token has six decimals and is a dollar.
func Draw(seed uint64) (*World, Process) {
	random := rand.New(rand.NewPCG(seed, 0))
	servers := make([]Server, 5+random.IntN(8))
	for i := range servers {
		servers[i] = drawServer(random)
		servers[i].ID = fmt.Sprintf("server-%d", i)
	}
	last := len(servers)
	if s := &servers[last-1]; random.IntN(2) == 0 {
		s.Fails, s.Price = .5, bySlot(.4*.075)
	}
	if s := &servers[last-2]; random.IntN(2) == 0 {
		s.Inflates, s.Price = 1.3+.7*random.Float64(), bySlot(.075*logNormal(random, .5))
	}
	if s := &servers[last-3]; random.IntN(2) == 0 {
		s.Gone = time.Duration(5*60+random.IntN(15*60)) * time.Second
	}
	process := Process{Seed: seed, Rate: logUniform(random, .5, 4), Burst: 1 + 4*random.Float64()}
	return NewWorld(seed, servers), process
}

func drawServer(random *rand.Rand) Server {
	s := Server{
		Slots: 8 << random.IntN(4), RTT: time.Duration(5+random.IntN(146)) * time.Millisecond,
		Prefill: logUniform(random, 2000, 20_000), Decode: logUniform(random, 20, 160), Slows: .5 + 2*random.Float64(),
		Load: Load{
			Mean: .2 + .7*random.Float64(), Swing: .3 * random.Float64(), Phase: random.Float64(), Noise: .15 * random.Float64(),
			Period: time.Duration(300+random.IntN(1500)) * time.Second,
		},
		Rejects: random.IntN(2) == 0, Fails: logUniform(random, .001, .02), Price: bySlot(.075 * logNormal(random, .5)),
	}
	if s.Rejects && random.IntN(2) == 0 {
		s.RetryAfter = time.Duration(1+random.IntN(10)) * time.Second
	}
	if random.IntN(4) == 0 {
		s.Price = route.Price{
			PerInputToken:  route.Nanos(uint64(.15e9 * logNormal(random, .5))), // a dollar a million is a base unit a token
			PerOutputToken: route.Nanos(uint64(.45e9 * logNormal(random, .5))),
		}
	}
	for at := time.Duration(0); ; {
		at += lasts(random.ExpFloat64() * 30 * 60)
		if at > 4*time.Hour {
			return s
		}
		to := at + time.Duration(10+random.IntN(111))*time.Second
		s.Outages = append(s.Outages, Span{at, to})
		at = to
	}
}

// bySlot is a price of so many dollars an hour of a slot.
func bySlot(dollars float64) route.Price {
	return route.Price{PerSlotSecond: route.Nanos(uint64(dollars * 1e15 / 3600))}
}

func logNormal(random *rand.Rand, sigma float64) float64 {
	return math.Exp(sigma * random.NormFloat64())
}

func logUniform(random *rand.Rand, low, high float64) float64 {
	return low * math.Pow(high/low, random.Float64())
}

// Arrival is a request: when it comes, the tokens of its prompt and those of its answer, which nobody knows before.
type Arrival struct {
	At      time.Duration
	In, Out int64
}

// Process is how requests come at random: a Poisson process whose rate is Rate a second in calm times and Rate*Burst in bursts. Calm
// times last 2 minutes on average and bursts 20 seconds, both exponentially. Prompts are lognormal with a median of 600 tokens and
// sigma 1.1, from 1 to 16,000; answers with a median of 150 and sigma 0.9, from 1 to 2,000.
type Process struct {
	Seed  uint64
	Rate  float64 // requests a second, over 0
	Burst float64 // from 1
}

// Arrivals are the requests of so much time.
func (p Process) Arrivals(span time.Duration) []Arrival {
	random := rand.New(rand.NewPCG(p.Seed, 2))
	var list []Arrival
	burst, turn := false, lasts(random.ExpFloat64()*120)
	for at := time.Duration(0); ; {
		rate := p.Rate
		if burst {
			rate *= p.Burst
		}
		next := at + lasts(random.ExpFloat64()/rate)
		if next > turn { // without memory: the rest of the wait is drawn anew
			at, burst = turn, !burst
			mean := 120.
			if burst {
				mean = 20
			}
			turn += lasts(random.ExpFloat64() * mean)
			if at > span {
				return list
			}
			continue
		}
		if at = next; at > span {
			return list
		}
		list = append(list, Arrival{
			At: at, In: int64(min(max(600*logNormal(random, 1.1), 1), 16_000)), Out: int64(min(max(150*logNormal(random, .9), 1), 2000)),
		})
	}
}
