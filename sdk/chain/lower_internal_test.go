package chain

import (
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/ethereum/go-ethereum/core/types"
)

// A lower version offers at least an eighth more than what somebody may have, at most three quarters of what was refused and what a
// new transaction would, and what a block takes; and fees that go down for long take no many versions.
func TestLowerFees(t *testing.T) {
	version := func(fee, tip int64) *types.Transaction {
		return types.NewTx(&types.DynamicFeeTx{GasFeeCap: big.NewInt(fee), GasTipCap: big.NewInt(tip)})
	}
	random := rand.New(rand.NewPCG(1, 2))
	signed := 0
	for range 20_000 {
		base, tip := 1+random.Int64N(300*gwei), random.Int64N(3*gwei)
		f := fees{tip: big.NewInt(tip), cap: big.NewInt(2*base + tip), most: big.NewInt(500 * gwei), leastTip: big.NewInt(tip), leastCap: big.NewInt(2*base + tip),
			head: sight{baseFee: big.NewInt(base), leastFee: big.NewInt(base)}}
		f.cap = smaller(f.cap, f.most)
		f.tip, f.leastCap = smaller(f.tip, f.cap), smaller(f.leastCap, f.cap)
		old := version(1+random.Int64N(500*gwei), 0)
		var held *types.Transaction
		if random.IntN(2) == 0 {
			held = version(1+random.Int64N(500*gwei), random.Int64N(3*gwei))
		}
		next, ok := f.lower(old, held)
		if !ok {
			continue
		}
		signed++
		limit := new(big.Int).Sub(old.GasFeeCap(), new(big.Int).Rsh(old.GasFeeCap(), 2))
		switch {
		case next.cap.Cmp(limit) > 0, next.cap.Cmp(f.cap) > 0, next.tip.Cmp(next.cap) > 0, next.leastCap.Cmp(next.cap) > 0:
			t.Fatalf("%s of a refused %s, today %s, tip %s", next.cap, old.GasFeeCap(), f.cap, next.tip)
		case next.cap.Cmp(big.NewInt(base)) <= 0:
			t.Fatalf("%s, and the base fee is %d", next.cap, base)
		case held != nil && (next.cap.Cmp(raise(held.GasFeeCap())) < 0 || next.tip.Cmp(raise(held.GasTipCap())) < 0 || next.leastCap.Cmp(next.cap) != 0):
			t.Fatalf("%s, tip %s, is to replace %s, tip %s", next.cap, next.tip, held.GasFeeCap(), held.GasTipCap())
		}
	}
	if signed < 1000 {
		t.Errorf("%d of 20000 are signed", signed)
	}
}
