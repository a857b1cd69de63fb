package policy

import (
	"math"
	"math/rand/v2"
	"time"
)

// Money is in millionths of a dollar: the token's base units.
const dollar = 1_000_000

// A World is what a year has in store.
type World struct {
	Seed  uint64
	Span  time.Duration
	GPUs  int
	Every time.Duration // between looks of the settler
}

// Year is what the report simulates.
func Year(seed uint64) World {
	return World{Seed: seed, Span: 365 * 24 * time.Hour, GPUs: 64, Every: time.Minute}
}

const (
	renters     = 150
	zipf        = 1.1
	perHour     = 4.0  // leases asked for in an hour of the mean day
	askedBack   = 0.02 // of leases end with a request to close
	medianHours = 2.0
	sigmaHours  = 1.3
	medianPrice = 2.20
	sigmaPrice  = 0.35
	credit      = time.Minute // of service that may be given without a voucher: the default of a provider
	mostPrice   = 10.0        // dollars per GPU-hour: dearer ones are not drawn
)

// A rental is one lease as it will be.
type rental struct {
	from, to time.Duration // since the year began
	renter   int
	gpus     int
	rate     uint64 // base units per second, of all its GPUs
	closes   bool   // its payer asks for the rest
}

// rentals draws the year's leases in the order in which they begin. The same world gives the same ones.
func (w World) rentals() []rental {
	random := rand.New(rand.NewPCG(w.Seed, 1))
	weights := zipfWeights()
	var all, running []rental
	busy := make(map[int]bool)
	free := w.GPUs
	for at := time.Duration(0); ; {
		at += time.Duration(random.ExpFloat64() / (2 * perHour) * float64(time.Hour))
		if at >= w.Span {
			return all
		}
		if random.Float64() > demand(at)/2 { // thinning: demand is at most twice the mean
			continue
		}
		kept := running[:0]
		for _, r := range running {
			if r.to > at {
				kept = append(kept, r)
			} else {
				free += r.gpus
				delete(busy, r.renter)
			}
		}
		running = kept
		r := draw(random, weights, at, w.Span)
		if r.gpus > free || busy[r.renter] { // a channel has one lease at a time
			continue
		}
		free -= r.gpus
		busy[r.renter] = true
		running, all = append(running, r), append(all, r)
	}
}

func draw(random *rand.Rand, weights []float64, at, span time.Duration) rental {
	hours := min(max(medianHours*math.Exp(sigmaHours*random.NormFloat64()), 1.0/30), 24*14)
	price := min(medianPrice*math.Exp(sigmaPrice*random.NormFloat64()), mostPrice)
	gpus := 1
	switch u := random.Float64(); {
	case u > 0.92:
		gpus = 8
	case u > 0.80:
		gpus = 4
	case u > 0.60:
		gpus = 2
	}
	return rental{
		from: at, to: min(at+time.Duration(hours*float64(time.Hour)), span), renter: pickRenter(random, weights), gpus: gpus,
		rate: uint64(price*dollar/3600) * uint64(gpus), closes: random.Float64() < askedBack,
	}
}

// demand is how many leases are asked for at a time, relative to the mean: a wave over the day, less at weekends.
func demand(at time.Duration) float64 {
	day := int(at/(24*time.Hour)) % 7
	hour := float64(at%(24*time.Hour)) / float64(time.Hour)
	d := 1 + math.Sin((hour-9)/24*2*math.Pi)/3
	if day >= 5 {
		d *= 2.0 / 3
	}
	return d
}

func zipfWeights() []float64 {
	weights, total := make([]float64, renters), 0.0
	for i := range weights {
		total += math.Pow(float64(i+1), -zipf)
		weights[i] = total
	}
	return weights
}

func pickRenter(random *rand.Rand, weights []float64) int {
	u := random.Float64() * weights[len(weights)-1]
	for i, w := range weights {
		if u <= w {
			return i
		}
	}
	return len(weights) - 1
}
