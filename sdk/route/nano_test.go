package route

import (
	"errors"
	"math"
	"math/big"
	"testing"
	"time"
)

// FuzzNano: sums and products are those of integers without bounds, but at the most where they pass 128 bits.
func FuzzNano(f *testing.F) {
	f.Add(uint64(0), uint64(20_833_333_334), uint64(3_600_000_000_000), uint64(1_000_000_000), true)
	f.Add(uint64(math.MaxUint64), uint64(math.MaxUint64), uint64(math.MaxUint64), uint64(1), true)
	f.Add(uint64(1), uint64(0), uint64(3), uint64(2), false)
	f.Fuzz(func(t *testing.T, hi, lo, m, d uint64, up bool) {
		n, divisor := Nano{hi, lo}, new(big.Int).SetUint64(max(d, 1))
		want, rest := new(big.Int).Mul(n.big(), new(big.Int).SetUint64(m)), new(big.Int)
		want.QuoRem(want, divisor, rest)
		if up && rest.Sign() > 0 {
			want.Add(want, big.NewInt(1))
		}
		if want.BitLen() > 128 {
			want = most.big()
		}
		if got := n.mulDiv(m, max(d, 1), up); got.big().Cmp(want) != 0 {
			t.Fatalf("%v * %d / %d = %s, want %s", n, m, d, got.big(), want)
		}
		other := Nano{m, d}
		sum := new(big.Int).Add(n.big(), other.big())
		if sum.BitLen() > 128 {
			sum = most.big()
		}
		if got := n.Add(other); got.big().Cmp(sum) != 0 || n.Cmp(other) != n.big().Cmp(other.big()) {
			t.Fatalf("%v + %v = %s, want %s; Cmp %d", n, other, got.big(), sum, n.Cmp(other))
		}
		difference := new(big.Int).Sub(n.big(), other.big())
		if difference.Sign() < 0 {
			difference.SetInt64(0)
		}
		if got := n.sub(other); got.big().Cmp(difference) != 0 {
			t.Fatalf("%v - %v = %s, want %s", n, other, got.big(), difference)
		}
	})
}

// FuzzSlotSecond: what a slot's price comes to in up to an hour and a half covers the bill, which is floor(amount * floor(ns * gpus / slots) / unit), and
// is over the exact price by less than a base unit.
func FuzzSlotSecond(f *testing.F) {
	f.Add(uint64(2_400_000), uint64(3600), uint32(1), uint32(32), uint64(12_345_678_901))
	f.Add(uint64(math.MaxUint64), uint64(1), uint32(64), uint32(1), uint64(90*time.Minute))
	f.Add(uint64(1), uint64(3600), uint32(1), uint32(1024), uint64(1))
	f.Fuzz(func(t *testing.T, amount, unit uint64, gpus, slots uint32, ns uint64) {
		unit, ns = min(max(unit, 1), 3600), ns%uint64(90*time.Minute)
		price, err := SlotSecond(new(big.Int).SetUint64(amount), time.Duration(unit)*time.Second, gpus, slots)
		if gpus == 0 || slots == 0 || gpus > 64 || slots > 1024 {
			if !errors.Is(err, ErrAmount) {
				t.Fatalf("%d GPUs in %d slots: %v, want ErrAmount", gpus, slots, err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		held := new(big.Int).Mul(new(big.Int).SetUint64(ns), big.NewInt(int64(gpus)))
		bill := new(big.Int).Quo(held, big.NewInt(int64(slots)))
		bill.Mul(bill, new(big.Int).SetUint64(amount)).Quo(bill, new(big.Int).SetUint64(unit*1e9))
		covers := price.forTime(time.Duration(ns))
		if covers.RoundUp().Cmp(bill) < 0 {
			t.Fatalf("%d ns at %d per %d s: %s reserved, %s billed", ns, amount, unit, covers, bill)
		}
		exact := new(big.Rat).SetFrac(new(big.Int).Mul(held, new(big.Int).SetUint64(amount)), new(big.Int).Mul(big.NewInt(int64(slots)), new(big.Int).SetUint64(unit*1e9)))
		over := new(big.Rat).Sub(new(big.Rat).SetFrac(covers.big(), big.NewInt(perBase)), exact)
		if over.Sign() < 0 || over.Cmp(big.NewRat(1, 1)) >= 0 {
			t.Fatalf("%d ns at %d per %d s: over by %s", ns, amount, unit, over.FloatString(12))
		}
	})
}

func TestNanoOfAmounts(t *testing.T) {
	largest := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 96), big.NewInt(1))
	for _, amount := range []*big.Int{big.NewInt(0), big.NewInt(1), largest} {
		if n, err := FromBig(amount); err != nil || n.RoundUp().Cmp(amount) != 0 || n.String() != amount.String() {
			t.Errorf("FromBig(%s) = %s, %v", amount, n, err)
		}
	}
	for _, amount := range []*big.Int{nil, big.NewInt(-1), new(big.Int).Add(largest, big.NewInt(1))} {
		if _, err := FromBig(amount); !errors.Is(err, ErrAmount) {
			t.Errorf("FromBig(%s): %v, want ErrAmount", amount, err)
		}
	}
	if _, err := SlotSecond(largest, time.Nanosecond, 64, 1); !errors.Is(err, ErrAmount) {
		t.Errorf("a price over 128 bits: %v, want ErrAmount", err)
	}
	if n := Nanos(20_833_333_334); n.String() != "20.833333334" || n.RoundUp().Int64() != 21 || Base(7).String() != "7" {
		t.Errorf("%s, %s", n, Base(7))
	}
}
