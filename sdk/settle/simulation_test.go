package settle_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
)

// The tests below have policies decide for a simulated provider, whose leases and fees are drawn from these distributions
// by a seed. Money is in millionths of a dollar, as the token's base units.
//
// Leases: renters come by a Poisson process whose rate follows the hour of the day and the day of the week; one that finds no
// GPU goes away. The renter is one of 150 by a Zipf law, the length log-normal with a median of 2 hours (2 minutes to two
// weeks), the price log-normal around 2.20 dollars a GPU-hour. One lease in fifty ends with its payer asking for the rest.
// Money comes in evenly, as vouchers every few seconds do.
//
// Fees: a median, times a daily wave, times the exponential of a mean-reverting walk, times spikes that come by a Poisson
// process, are Pareto-distributed and halve every hour. A coin is 3,000 dollars all the time.
const (
	dollar      = 1_000_000
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
	coinPrice   = 3_000 * dollar
	singleGas   = 51_200 // of settling one channel, which is no batch: see docs/contracts.md
	feeStep     = 10 * time.Minute
	feeHalf     = 6 * time.Hour // of the walk
	spikeHalf   = time.Hour
	spikeAlpha  = 1.2
	spikeMost   = 100
)

// A world is what a provider's time has in store.
type world struct {
	seed  uint64
	span  time.Duration
	gpus  int
	every time.Duration // between looks of the settler
}

// A regime is a chain's fees.
type regime struct {
	name   string
	median float64 // gwei per gas, in quiet times
	sigma  float64 // of the walk's logarithm, in the long run
	spikes float64 // a day
}

// regimes are an optimistic rollup on most days, the same when an event fills it for days on end, and Ethereum itself.
var regimes = []regime{{"L2, cheap", 0.01, 0.5, 0.2}, {"L2, congested", 0.5, 1, 2}, {"L1", 5, 0.7, 1}}

// A rental is one lease as it will be.
type rental struct {
	from, to time.Duration // since the world began
	renter   int
	gpus     int
	rate     uint64 // base units per second, of all its GPUs
	closes   bool   // its payer asks for the rest
}

// rentals draws the leases in the order in which they begin. A renter has one at a time.
func (w world) rentals() []rental {
	random := rand.New(rand.NewPCG(w.seed, 1))
	weights, total := make([]float64, renters), 0.0
	for i := range weights {
		total += math.Pow(float64(i+1), -zipf)
		weights[i] = total
	}
	var all, running []rental
	for at := time.Duration(0); ; {
		at += time.Duration(random.ExpFloat64() / (2 * perHour) * float64(time.Hour))
		if at >= w.span {
			return all
		}
		if random.Float64() > demand(at)/2 { // thinning: demand is at most twice the mean
			continue
		}
		running = slices.DeleteFunc(running, func(r rental) bool { return r.to <= at })
		r := w.draw(random, weights, at)
		free, busy := w.gpus, false
		for _, other := range running {
			free, busy = free-other.gpus, busy || other.renter == r.renter
		}
		if r.gpus <= free && !busy {
			running, all = append(running, r), append(all, r)
		}
	}
}

func (w world) draw(random *rand.Rand, weights []float64, at time.Duration) rental {
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
	who := random.Float64() * weights[renters-1]
	return rental{
		from: at, to: min(at+time.Duration(hours*float64(time.Hour)), w.span), gpus: gpus,
		renter: slices.IndexFunc(weights, func(below float64) bool { return who <= below }),
		rate:   uint64(price*dollar/3600) * uint64(gpus), closes: random.Float64() < askedBack,
	}
}

// demand is how many leases are asked for at a time, relative to the mean: a wave over the day, less at weekends.
func demand(at time.Duration) float64 {
	d := 1 + math.Sin((hourOf(at)-9)/24*2*math.Pi)/3
	if int(at/(24*time.Hour))%7 >= 5 {
		d *= 2.0 / 3
	}
	return d
}

func hourOf(at time.Duration) float64 { return float64(at%(24*time.Hour)) / float64(time.Hour) }

// fees is the fee of every ten minutes, in wei per gas.
func (r regime) fees(seed uint64, span time.Duration) []*big.Int {
	random := rand.New(rand.NewPCG(seed, 2))
	back := math.Exp2(-float64(feeStep) / float64(feeHalf))
	fade := math.Exp2(-float64(feeStep) / float64(spikeHalf))
	push := r.sigma * math.Sqrt(1-back*back)
	walk, spike := 0.0, 0.0
	fees := make([]*big.Int, int(span/feeStep)+1)
	for i := range fees {
		walk = walk*back + push*random.NormFloat64()
		spike *= fade
		if random.Float64() < r.spikes*float64(feeStep)/float64(24*time.Hour) {
			spike += min(math.Pow(1-random.Float64(), -1/spikeAlpha), spikeMost)
		}
		wave := 1 + 0.3*math.Sin((hourOf(time.Duration(i)*feeStep)-9)/24*2*math.Pi)
		fees[i] = big.NewInt(max(int64(r.median*1e9*wave*math.Exp(walk)*(1+spike)), 1))
	}
	return fees
}

// A strategy decides what is settled at a look.
type strategy struct {
	name   string
	ended  bool // a lease's end makes its channel urgent
	due    func(waiting []settle.Waiting, now time.Time, cost settle.Cost) []settle.Waiting
	policy *settle.Policy // what due obeys; nil for one that only compares
}

func driven(name string, p settle.Policy) strategy { return strategy{name, p.Ended(), p.Due, &p} }

// patient settles for half a percent, with 2,000 dollars at risk and a week at most.
var patient = driven("MaxFeeShare", settle.Policy{
	MaxFeeShare: 50, MinValue: *uint256.NewInt(2_000 * dollar), MaxAge: 7 * 24 * time.Hour, CoinPrice: *uint256.NewInt(coinPrice)})

var hourly = strategy{name: "every hour", due: func(waiting []settle.Waiting, now time.Time, _ settle.Cost) []settle.Waiting {
	if now.Unix()%3600 == 0 {
		return waiting
	}
	return urgentOnly(waiting, now, settle.Cost{})
}}

func urgentOnly(waiting []settle.Waiting, _ time.Time, _ settle.Cost) (due []settle.Waiting) {
	for _, w := range waiting {
		if w.Urgent {
			due = append(due, w)
		}
	}
	return due
}

// bound is what a strategy promises: the most at risk, if it bounds that, and the longest wait. Between two looks as much
// comes in as all GPUs earn at the dearest price, and each lease may use its credit.
func (w world) bound(s strategy) (value uint64, age time.Duration) {
	if s.policy == nil {
		return 0, 0
	}
	if !s.policy.MinValue.IsZero() {
		value = s.policy.MinValue.Uint64() + uint64(w.gpus)*uint64(mostPrice*dollar)/3600*uint64((w.every+credit)/time.Second)
	}
	return value, s.policy.Age() + w.every
}

// An outcome is a world's time under one strategy. Money is in base units.
type outcome struct {
	Revenue, Gas, MostAtRisk uint64
	Transactions             int
	Longest                  time.Duration // that anything waited
	Beyond                   int           // looks at which more was at risk than the policy promises, or longer
}

func (o outcome) share() float64 { return float64(o.Gas) / float64(o.Revenue) }

func (o outcome) String() string {
	return fmt.Sprintf("%d of %d dollars for gas, %.2f %%, in %d transactions; at most %d dollars and %s at risk, %d looks beyond the bound",
		o.Gas/dollar, o.Revenue/dollar, 100*o.share(), o.Transactions, o.MostAtRisk/dollar, o.Longest.Round(time.Minute), o.Beyond)
}

// A tab is one renter's channel.
type tab struct {
	rental    *rental // running; nil: none
	paid      time.Duration
	unsettled uint64
	since     time.Duration
	urgent    bool
}

type simulation struct {
	world
	strategy
	outcome
	fees    []*big.Int
	tabs    []tab
	coming  []rental
	waiting []settle.Waiting
}

// monday is when a world begins.
var monday = time.Unix(1_767_571_200, 0)

// simulate lives through a world. The same arguments give the same outcome.
func (w world) simulate(s strategy, r regime) outcome {
	x := &simulation{world: w, strategy: s, fees: r.fees(w.seed, w.span), tabs: make([]tab, renters), coming: w.rentals()}
	for now := w.every; now <= w.span; now += w.every {
		x.live(now)
		x.look(now)
		x.note(now)
	}
	return x.outcome
}

// live has leases begin, be paid and end until now.
func (x *simulation) live(now time.Duration) {
	for i := range x.tabs {
		x.earn(&x.tabs[i], now)
	}
	for len(x.coming) > 0 && x.coming[0].from <= now {
		r := &x.coming[0]
		x.coming = x.coming[1:]
		t := &x.tabs[r.renter]
		t.rental, t.paid = r, r.from
		x.earn(t, now)
	}
}

func (x *simulation) earn(t *tab, now time.Duration) {
	r := t.rental
	if r == nil {
		return
	}
	until := min(now, r.to)
	came := r.rate * uint64(until/time.Second-t.paid/time.Second)
	if t.unsettled == 0 && came > 0 {
		t.since = t.paid
	}
	t.paid, t.unsettled = until, t.unsettled+came
	x.Revenue += came
	if until == r.to {
		t.rental = nil
		t.urgent = t.unsettled > 0 && (x.ended || r.closes)
	}
}

// look asks the strategy, and settles what it says.
func (x *simulation) look(now time.Duration) {
	x.waiting = x.waiting[:0]
	for i, t := range x.tabs {
		if t.unsettled > 0 {
			var id common.Hash
			binary.BigEndian.PutUint32(id[:], uint32(i))
			x.waiting = append(x.waiting, settle.Waiting{ID: id, Unsettled: *uint256.NewInt(t.unsettled), Since: monday.Add(t.since), Urgent: t.urgent})
		}
	}
	fee := x.fees[now/feeStep]
	fixed, row := (*chain.Escrow)(nil).SettlementGas()
	var cost settle.Cost
	if x.policy != nil {
		cost = x.policy.Costs(fixed, row, fee)
	}
	for batch := range slices.Chunk(x.due(x.waiting, monday.Add(now), cost), settle.DefaultMaxBatch) {
		gas := fixed + row*uint64(len(batch))
		if len(batch) == 1 {
			gas = singleGas
		}
		wei := new(big.Int).Mul(fee, new(big.Int).SetUint64(gas))
		x.Gas += wei.Mul(wei, big.NewInt(coinPrice)).Div(wei, big.NewInt(1e18)).Uint64()
		x.Transactions++
		for _, w := range batch {
			t := &x.tabs[binary.BigEndian.Uint32(w.ID[:])]
			x.Longest = max(x.Longest, now-t.since)
			t.unsettled, t.urgent = 0, false
		}
	}
}

// note looks at what is at risk, the credit of running leases included.
func (x *simulation) note(now time.Duration) {
	var risk uint64
	var oldest time.Duration
	for _, t := range x.tabs {
		risk += t.unsettled
		if t.rental != nil {
			risk += t.rental.rate * uint64(credit/time.Second)
		}
		if t.unsettled > 0 {
			oldest = max(oldest, now-t.since)
		}
	}
	x.MostAtRisk, x.Longest = max(x.MostAtRisk, risk), max(x.Longest, oldest)
	if value, age := x.bound(x.strategy); value > 0 && risk > value || age > 0 && oldest > age {
		x.Beyond++
	}
}

// tenDays is a short world; a settler looks once a minute.
func tenDays(seed uint64) world { return world{seed, 10 * 24 * time.Hour, 64, time.Minute} }

var every = flag.Duration("every", 20*time.Minute, "between two looks of TestPolicyOverAYear; docs/performance.md has the figures of 1m")

// TestPolicyOverAYear: where settling every hour takes more than 5 % of a year's revenue, MaxFeeShare takes less than 1 %; and
// at no look, whatever the fees, is more at risk than it promises, or for longer.
func TestPolicyOverAYear(t *testing.T) {
	w := world{1, 365 * 24 * time.Hour, 64, *every}
	for _, r := range regimes {
		naive, kept := w.simulate(hourly, r), w.simulate(patient, r)
		t.Logf("%s, %s: %s", r.name, hourly.name, naive)
		t.Logf("%s, %s: %s", r.name, patient.name, kept)
		if kept.Beyond > 0 || kept.Revenue != naive.Revenue || naive.share() > 0.05 && kept.share() >= 0.01 {
			t.Errorf("%s: %s; every hour %s", r.name, kept, naive)
		}
		if r.name == "L1" && naive.share() <= 0.05 {
			t.Errorf("settling every hour on L1 takes only %.2f %%: it shows nothing", 100*naive.share())
		}
	}
}

// TestNothingIsBeyondTheBound: whatever the policy and the fees, no more is at risk, and nothing waits longer, than it promises.
func TestNothingIsBeyondTheBound(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	wild := regime{"wild", 20, 2, 10}
	for i := range uint64(40) {
		w := tenDays(i)
		w.every = time.Duration(1+random.IntN(10)) * time.Minute
		s := driven("any", settle.Policy{
			MinValue: *uint256.NewInt(random.Uint64N(500) * dollar), MaxAge: time.Duration(1+random.IntN(100)) * time.Hour,
			MaxFeeShare: uint32(random.IntN(3) * 50), CoinPrice: *uint256.NewInt(coinPrice),
		})
		if o := w.simulate(s, wild); o.Beyond > 0 || o.Revenue == 0 || o.Transactions == 0 {
			t.Errorf("%+v: %s", s.policy, o)
		}
	}
}

// TestSimulationFindsABrokenPolicy: the same seed gives the same figures, and a policy that breaks its promise is found out.
func TestSimulationFindsABrokenPolicy(t *testing.T) {
	a, b, c := tenDays(1).simulate(patient, regimes[2]), tenDays(1).simulate(patient, regimes[2]), tenDays(2).simulate(patient, regimes[2])
	if !reflect.DeepEqual(a, b) || reflect.DeepEqual(a, c) {
		t.Errorf("%s, the same again: %s, another: %s", a, b, c)
	}
	asleep := driven("asleep", settle.Policy{MinValue: *uint256.NewInt(dollar)})
	asleep.due = urgentOnly
	if o := tenDays(1).simulate(asleep, regimes[0]); o.Beyond == 0 {
		t.Error("nothing is settled, and nothing is beyond the bound")
	}
}
