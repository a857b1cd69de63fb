package policy

import (
	"math"
	"math/big"
	"math/rand/v2"
	"time"
)

// A Regime is a chain's fees over the year.
type Regime struct {
	Name   string
	Median float64 // gwei per gas, in quiet times
	Sigma  float64 // of the walk's logarithm, in the long run
	Spikes float64 // a day
}

// Regimes are the three chains of the report: what gas costs on an optimistic rollup on most days, on the same when an
// event fills it for days on end, and on Ethereum itself.
var Regimes = []Regime{
	{Name: "L2, cheap", Median: 0.01, Sigma: 0.5, Spikes: 0.2},
	{Name: "L2, congested", Median: 0.5, Sigma: 1.0, Spikes: 2},
	{Name: "L1", Median: 5, Sigma: 0.7, Spikes: 1},
}

// coinPrice is what a coin is worth, in base units.
const coinPrice = 3_000 * dollar

const (
	feeStep    = 10 * time.Minute
	feeHalf    = 6 * time.Hour // of the walk
	spikeHalf  = time.Hour
	spikeAlpha = 1.2
	spikeMost  = 100
)

// fees is the fee of every ten minutes, in wei per gas. The same seed gives the same ones.
func (r Regime) fees(seed uint64, span time.Duration) []*big.Int {
	random := rand.New(rand.NewPCG(seed, 2))
	back := math.Exp2(-float64(feeStep) / float64(feeHalf))
	fade := math.Exp2(-float64(feeStep) / float64(spikeHalf))
	push := r.Sigma * math.Sqrt(1-back*back)
	walk, spike := 0.0, 0.0
	fees := make([]*big.Int, int(span/feeStep)+1)
	for i := range fees {
		walk = walk*back + push*random.NormFloat64()
		spike *= fade
		if random.Float64() < r.Spikes*float64(feeStep)/float64(24*time.Hour) {
			spike += min(math.Pow(1-random.Float64(), -1/spikeAlpha), spikeMost)
		}
		hour := float64(time.Duration(i)*feeStep%(24*time.Hour)) / float64(time.Hour)
		wave := 1 + 0.3*math.Sin((hour-9)/24*2*math.Pi)
		wei := r.Median * 1e9 * wave * math.Exp(walk) * (1 + spike)
		fees[i] = big.NewInt(max(int64(wei), 1))
	}
	return fees
}
