package policy

import (
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/sdk/settle"
)

func small(seed uint64) World {
	w := Year(seed)
	w.Span = 10 * 24 * time.Hour
	return w
}

// The same seed gives the same figures, another seed others.
func TestSameSeedSameFigures(t *testing.T) {
	a, b, c := Run(small(1)), Run(small(1)), Run(small(2))
	if !reflect.DeepEqual(a, b) {
		t.Error("the same world came out differently")
	}
	if reflect.DeepEqual(a.Results, c.Results) {
		t.Error("another world came out the same")
	}
}

// All strategies earn the same, and whatever is earned is settled or at risk.
func TestRevenueIsTheWorlds(t *testing.T) {
	r := Run(small(3))
	for _, x := range r.Results {
		if x.Revenue != r.Results[0].Revenue || x.Revenue == 0 || x.Leases == 0 || x.Transactions == 0 || x.Gas == 0 {
			t.Errorf("%s, %s: %+v", x.Regime, x.Strategy, x)
		}
	}
}

// Whatever the policy and the fees, no more is at risk, and nothing waits longer, than the policy promises.
func TestNothingIsBeyondTheBound(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	for i := range uint64(40) {
		w := small(i)
		w.Every = time.Duration(1+random.IntN(10)) * time.Minute
		p := settle.Policy{
			MinValue: *uint256.NewInt(random.Uint64N(500) * dollar), MaxAge: time.Duration(1+random.IntN(100)) * time.Hour,
			MaxFeeShare: uint32(random.IntN(3) * 50), CoinPrice: *uint256.NewInt(coinPrice),
		}
		regime := Regime{Name: "wild", Median: 20, Sigma: 2, Spikes: 10}
		x := w.Simulate(driven("any", p), regime)
		value, age := w.Bound(driven("any", p))
		if x.Beyond > 0 || value > 0 && x.MostAtRisk > value || x.Longest > age {
			t.Errorf("%+v: %d looks beyond %d and %s: at most %d at risk, at most %s", p, x.Beyond, value, age, x.MostAtRisk, x.Longest)
		}
	}
}

// A policy that breaks its promise is found out.
func TestBeyondTheBoundIsCounted(t *testing.T) {
	s := driven("asleep", settle.Policy{MinValue: *uint256.NewInt(dollar)})
	s.Due = urgentOnly
	if x := small(1).Simulate(s, Regimes[0]); x.Beyond == 0 {
		t.Error("nothing is settled, and nothing is beyond the bound")
	}
}

// Every row has a cell for each column, every strategy its line, and no aim is marked met that is not.
func TestPage(t *testing.T) {
	r := Run(small(1))
	page := r.page()
	for _, row := range page.Tables[0].Rows {
		if len(row) != len(page.Tables[0].Head) {
			t.Errorf("%d cells: %v", len(row), row)
		}
	}
	if n := len(page.Plots[0].Lines); n != len(Strategies()) {
		t.Errorf("%d lines", n)
	}
	if err := page.Plots[0].Draw(filepath.Join(t.TempDir(), "plot.svg")); err != nil {
		t.Error(err)
	}
	n := len(r.Results)
	naive, last := &r.Results[n-len(Strategies())], &r.Results[n-1]
	naive.Gas, last.Gas, last.Beyond = naive.Revenue/10, last.Revenue/50, 1
	aims := r.aims()
	for _, a := range aims[len(aims)-2:] {
		if a.Result != bench.Missed {
			t.Errorf("%+v", a)
		}
	}
}
