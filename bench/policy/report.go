package policy

import (
	"context"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/bench"
)

// Section is the simulation's part of the page.
type Section struct{}

// Name is the section's name.
func (Section) Name() string { return "settlement" }

// Measure simulates a year, or ten days where less work is asked for than a year takes.
func (Section) Measure(_ context.Context, s bench.Settings) (bench.Report, error) {
	w := Year(1)
	if s.Most < renters {
		w.Span = 10 * 24 * time.Hour
	}
	return Run(w).page(), nil
}

// A Report is every strategy under every regime, over one world.
type Report struct {
	World   World
	Results []Result // by regime, then by strategy
}

// Run simulates every strategy under every regime.
func Run(w World) Report {
	r := Report{World: w}
	for _, regime := range Regimes {
		for _, s := range Strategies() {
			r.Results = append(r.Results, w.Simulate(s, regime))
		}
	}
	return r
}

var about = []string{
	"A year of a provider with 64 GPUs, simulated: settle.Policy.Due decides, which is what a Provider's Settler asks; leases and " +
		"fees are drawn, with one seed, from the distributions that the comment of bench/policy says. What a settlement costs is " +
		"docs/contracts.md's figures times the fee of the moment; a coin is 3,000 dollars.",
	"*Every hour* settles all there is on the hour, *once per lease* when a lease ends. *default policy* is settle.Policy's zero value. " +
		"*MaxFeeShare* is half a percent, with at most 2,000 dollars (MinValue) and a week (MaxAge). At risk is what was vouchered and not " +
		"settled, and a minute's credit of every running lease; what is promised adds to MinValue what all GPUs earn between two looks and " +
		"on credit, at the dearest price.",
}

func (r Report) page() bench.Report {
	first := r.Results[0]
	return bench.Report{
		Title: "Settlement over a year", About: about, Aims: r.aims(), Plots: r.plots(),
		Tables: []bench.Table{{
			Title: fmt.Sprintf("%d days, %s leases, %s dollars of revenue. Dollars:", int(r.World.Span.Hours()/24), bench.Count(first.Leases), dollars(first.Revenue)),
			Head:  []string{"fees", "strategy", "gas", "of revenue", "transactions", "mean at risk", "most at risk", "promised", "longest wait"},
			Rows:  r.rows(),
		}},
		Notes: []string{"Where gas is cheap, the policy with MaxFeeShare settles about every hour; what a channel holds that is not worth its own " +
			"row waits for MaxAge. A rollup's charge for data is in the fee here, and is not in what a Settler reads from its endpoint. Closes " +
			"are left out: they are the renters' choice, and the same under every strategy."},
	}
}

func (r Report) rows() [][]string {
	var rows [][]string
	strategies := Strategies()
	for i, x := range r.Results {
		value, _ := r.World.Bound(strategies[i%len(strategies)])
		promised := "-"
		if value > 0 {
			promised = dollars(value)
		}
		rows = append(rows, []string{x.Regime, x.Strategy, dollars(x.Gas), fmt.Sprintf("%.3f %%", 100*x.Share()), bench.Count(x.Transactions),
			dollars(x.MeanAtRisk), dollars(x.MostAtRisk), promised, x.Longest.Round(time.Hour).String()})
	}
	return rows
}

func dollars(v uint64) string { return bench.Count(int((v + dollar/2) / dollar)) }

// The aims: under this share of the revenue where settling every hour takes more than that.
const (
	aimShare   = 0.01
	naiveShare = 0.05
)

// aims holds the policy with MaxFeeShare against its aims. Where settling every hour is not dear, the share is no aim.
func (r Report) aims() []bench.Aim {
	var aims []bench.Aim
	n := len(Strategies())
	for i := 0; i < len(r.Results); i += n {
		naive, patient := r.Results[i], r.Results[i+n-1]
		if naive.Share() > naiveShare {
			aims = append(aims, bench.Judge(
				fmt.Sprintf("%s: gas takes less than 1 %% of the revenue where settling every hour takes more than 5 %%", patient.Regime),
				patient.Share() < aimShare, fmt.Sprintf("%.2f %%, every hour %.2f %%", 100*patient.Share(), 100*naive.Share())))
		}
		aims = append(aims, bench.Judge(
			fmt.Sprintf("%s: never more at risk, and nothing longer, than the policy promises", patient.Regime), patient.Beyond == 0,
			fmt.Sprintf("%s looks beyond it; at most %s dollars and %s", bench.Count(patient.Beyond), dollars(patient.MostAtRisk), patient.Longest.Round(time.Minute))))
	}
	return aims
}

// plots draws what is at risk: the most of each day, for the regime in which strategies differ most.
func (r Report) plots() []bench.Plot {
	regime := Regimes[len(Regimes)-1].Name
	p := bench.Plot{Name: "at-risk", Title: "At risk over the year, fees of " + regime, X: "day", Y: "dollars, the most of the day", Linear: true}
	for _, x := range r.Results {
		if x.Regime != regime {
			continue
		}
		line := bench.Line{Name: x.Strategy}
		for day, most := range perDay(x.AtRisk) {
			line.Points = append(line.Points, bench.Point{X: float64(day + 1), Y: bench.SpreadOf([]float64{float64(most) / dollar})})
		}
		p.Lines = append(p.Lines, line)
	}
	return []bench.Plot{p}
}

func perDay(hours []uint64) []uint64 {
	days := make([]uint64, (len(hours)+23)/24)
	for i, v := range hours {
		days[i/24] = max(days[i/24], v)
	}
	return days
}
