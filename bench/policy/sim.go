package policy

import (
	"encoding/binary"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
)

// singleGas is what settling one channel costs, which is not a batch: see docs/contracts.md.
const singleGas = 51_200

// A Strategy decides what is settled at a look.
type Strategy struct {
	Name string
	// Ended reports whether a lease's end makes its channel urgent.
	Ended bool
	Due   func(waiting []settle.Waiting, now time.Time, cost settle.Cost) []settle.Waiting
	// Policy is what Due obeys; nil for those that only compare.
	Policy *settle.Policy
}

// Strategies are the two that everybody thinks of first, the policy as it is where nothing is set, and as it is meant to
// be set where gas costs more than next to nothing.
func Strategies() []Strategy {
	return []Strategy{
		{Name: "every hour", Due: hourly},
		{Name: "once per lease", Ended: true, Due: urgentOnly},
		driven("default policy", settle.Policy{}),
		driven("MaxFeeShare", Patient()),
	}
}

// Patient is the policy that the report is about: half a percent, 2,000 dollars at risk, a week at most.
func Patient() settle.Policy {
	return settle.Policy{MaxFeeShare: 50, MinValue: *uint256.NewInt(2_000 * dollar), MaxAge: 7 * 24 * time.Hour, CoinPrice: *uint256.NewInt(coinPrice)}
}

func driven(name string, p settle.Policy) Strategy {
	return Strategy{Name: name, Ended: p.Ended(), Due: p.Due, Policy: &p}
}

func hourly(waiting []settle.Waiting, now time.Time, _ settle.Cost) []settle.Waiting {
	if now.Unix()%3600 == 0 {
		return waiting
	}
	return urgentOnly(waiting, now, settle.Cost{})
}

func urgentOnly(waiting []settle.Waiting, _ time.Time, _ settle.Cost) (due []settle.Waiting) {
	for _, w := range waiting {
		if w.Urgent {
			due = append(due, w)
		}
	}
	return due
}

// A Result is a year under one strategy and one regime. Money is in base units.
type Result struct {
	Strategy, Regime string
	Leases           int
	Revenue          uint64
	Gas              uint64 // what it cost
	Transactions     int
	Rows             int
	MostAtRisk       uint64
	MeanAtRisk       uint64
	Longest          time.Duration // that anything waited
	Beyond           int           // looks at which more was at risk than the policy promises, or longer; 0 without a policy
	AtRisk           []uint64      // every hour
}

// Share is what gas took of the revenue.
func (r Result) Share() float64 { return float64(r.Gas) / float64(r.Revenue) }

// A tab is one renter's channel.
type tab struct {
	rental    *rental // running; nil: none
	paid      time.Duration
	unsettled uint64
	since     time.Duration
	urgent    bool
}

type run struct {
	World
	strategy Strategy
	fees     []*big.Int
	tabs     []tab
	coming   []rental
	waiting  []settle.Waiting
	result   Result
	sum      float64
	looks    int
}

// start is a Monday.
var start = time.Unix(1_767_571_200, 0)

// Simulate lives through a world under a strategy. The same arguments give the same figures.
func (w World) Simulate(s Strategy, r Regime) Result {
	x := &run{World: w, strategy: s, fees: r.fees(w.Seed, w.Span), tabs: make([]tab, renters), coming: w.rentals()}
	x.result = Result{Strategy: s.Name, Regime: r.Name, Leases: len(x.coming)}
	for now := w.Every; now <= w.Span; now += w.Every {
		x.live(now)
		x.look(now)
		x.note(now)
	}
	x.result.MeanAtRisk = uint64(x.sum / float64(x.looks))
	return x.result
}

// live has leases begin, be paid and end until now.
func (x *run) live(now time.Duration) {
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

func (x *run) earn(t *tab, now time.Duration) {
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
	x.result.Revenue += came
	if until == r.to {
		t.rental = nil
		t.urgent = t.unsettled > 0 && (x.strategy.Ended || r.closes)
	}
}

// look asks the strategy, and settles what it says.
func (x *run) look(now time.Duration) {
	x.waiting = x.waiting[:0]
	for i, t := range x.tabs {
		if t.unsettled > 0 {
			var id common.Hash
			binary.BigEndian.PutUint32(id[:], uint32(i))
			x.waiting = append(x.waiting, settle.Waiting{ID: id, Unsettled: *uint256.NewInt(t.unsettled), Since: start.Add(t.since), Urgent: t.urgent})
		}
	}
	fee := x.fees[now/feeStep]
	var cost settle.Cost
	if p := x.strategy.Policy; p != nil {
		batch, row := (*chain.Escrow)(nil).SettlementGas()
		cost = p.Costs(batch, row, fee)
	}
	for batch := range slices.Chunk(x.strategy.Due(x.waiting, start.Add(now), cost), settle.DefaultMaxBatch) {
		x.settle(batch, now, fee)
	}
}

func (x *run) settle(batch []settle.Waiting, now time.Duration, fee *big.Int) {
	for _, w := range batch {
		t := &x.tabs[binary.BigEndian.Uint32(w.ID[:])]
		x.result.Longest = max(x.result.Longest, now-t.since)
		t.unsettled, t.urgent = 0, false
	}
	fixed, row := (*chain.Escrow)(nil).SettlementGas()
	gas := fixed + row*uint64(len(batch))
	if len(batch) == 1 {
		gas = singleGas
	}
	wei := new(big.Int).Mul(fee, new(big.Int).SetUint64(gas))
	x.result.Gas += wei.Mul(wei, big.NewInt(coinPrice)).Div(wei, big.NewInt(1e18)).Uint64()
	x.result.Transactions++
	x.result.Rows += len(batch)
}

// note writes down what is at risk after a look, the credit of running leases included.
func (x *run) note(now time.Duration) {
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
	x.result.MostAtRisk = max(x.result.MostAtRisk, risk)
	x.result.Longest = max(x.result.Longest, oldest)
	x.sum, x.looks = x.sum+float64(risk), x.looks+1
	if now%time.Hour == 0 {
		x.result.AtRisk = append(x.result.AtRisk, risk)
	}
	if value, age := x.Bound(x.strategy); value > 0 && risk > value || age > 0 && oldest > age {
		x.result.Beyond++
	}
}

// Bound is what a strategy promises in this world: the most at risk, if it bounds that, and the longest wait. Between two
// looks as much comes in as all GPUs earn at the dearest price, and each lease may use its credit.
func (w World) Bound(s Strategy) (value uint64, age time.Duration) {
	if s.Policy == nil {
		return 0, 0
	}
	if !s.Policy.MinValue.IsZero() {
		value = s.Policy.MinValue.Uint64() + uint64(w.GPUs)*uint64(mostPrice*dollar)/3600*uint64((w.Every+credit)/time.Second)
	}
	return value, s.Policy.Age() + w.Every
}
