package route

import (
	"errors"
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/holiman/uint256"
)

// FuzzNano: sums and products are those of integers without bounds, but at the most where they pass 256 bits.
func FuzzNano(f *testing.F) {
	f.Add(uint64(0), uint64(20_833_333_334), uint64(3_600_000_000_000), uint64(1_000_000_000), true)
	f.Add(uint64(math.MaxUint64), uint64(math.MaxUint64), uint64(math.MaxUint64), uint64(1), true)
	f.Add(uint64(1), uint64(0), uint64(3), uint64(2), false)
	big256 := func(n Nano) *big.Int { return n.n.ToBig() }
	f.Fuzz(func(t *testing.T, hi, lo, m, d uint64, up bool) {
		n, divisor := Nano{uint256.Int{lo, m, d, hi}}, new(big.Int).SetUint64(max(d, 1))
		if hi == 0 {
			n = Nano{uint256.Int{lo, m & 1}}
		}
		want, rest := new(big.Int).Mul(big256(n), new(big.Int).SetUint64(m)), new(big.Int)
		if want.BitLen() > 256 {
			want = big256(most)
		} else if want.QuoRem(want, divisor, rest); up && rest.Sign() > 0 {
			want.Add(want, big.NewInt(1))
		}
		if got := n.mulDiv(m, max(d, 1), up); big256(got).Cmp(want) != 0 {
			t.Fatalf("%v * %d / %d = %s, want %s", n, m, d, big256(got), want)
		}
		other := Nano{uint256.Int{m, d, lo, hi}}
		sum := new(big.Int).Add(big256(n), big256(other))
		if sum.BitLen() > 256 {
			sum = big256(most)
		}
		if got := n.Add(other); big256(got).Cmp(sum) != 0 || n.Cmp(other) != big256(n).Cmp(big256(other)) {
			t.Fatalf("%v + %v = %s, want %s; Cmp %d", n, other, big256(got), sum, n.Cmp(other))
		}
		difference := new(big.Int).Sub(big256(n), big256(other))
		if difference.Sign() < 0 {
			difference.SetInt64(0)
		}
		if got := n.Sub(other); big256(got).Cmp(difference) != 0 {
			t.Fatalf("%v - %v = %s, want %s", n, other, big256(got), difference)
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
		price, err := SlotSecond(*uint256.NewInt(amount), time.Duration(unit)*time.Second, gpus, slots)
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
		if whole := covers.RoundUp(); whole.ToBig().Cmp(bill) < 0 {
			t.Fatalf("%d ns at %d per %d s: %s reserved, %s billed", ns, amount, unit, covers, bill)
		}
		exact := new(big.Rat).SetFrac(new(big.Int).Mul(held, new(big.Int).SetUint64(amount)), new(big.Int).Mul(big.NewInt(int64(slots)), new(big.Int).SetUint64(unit*1e9)))
		over := new(big.Rat).Sub(new(big.Rat).SetFrac(covers.n.ToBig(), big.NewInt(perBase)), exact)
		if over.Sign() < 0 || over.Cmp(big.NewRat(1, 1)) >= 0 {
			t.Fatalf("%d ns at %d per %d s: over by %s", ns, amount, unit, over.FloatString(12))
		}
	})
}

func TestNanoOfAmounts(t *testing.T) {
	largest := *new(uint256.Int).SubUint64(new(uint256.Int).Lsh(uint256.NewInt(1), 96), 1)
	for _, amount := range []uint256.Int{{}, *uint256.NewInt(1), largest} {
		if n, err := Amount(amount); err != nil || n.RoundUp() != amount || n.String() != amount.Dec() {
			t.Errorf("Amount(%s) = %s, %v", amount.Dec(), n, err)
		}
	}
	if _, err := Amount(*new(uint256.Int).AddUint64(&largest, 1)); !errors.Is(err, ErrAmount) {
		t.Errorf("2^96: %v, want ErrAmount", err)
	}
	if _, err := SlotSecond(*new(uint256.Int).AddUint64(&largest, 1), time.Second, 1, 1); !errors.Is(err, ErrAmount) {
		t.Errorf("a price of 2^96: %v, want ErrAmount", err)
	}
	n := Nanos(20_833_333_334)
	if up := n.RoundUp(); n.String() != "20.833333334" || up.Uint64() != 21 || Base(7).String() != "7" {
		t.Errorf("%s, %s", n, Base(7))
	}
}

// TestNanoText: an amount is read as it was written, to the billionth, and nothing else is read.
func TestNanoText(t *testing.T) {
	for _, n := range []Nano{{}, Nanos(1), Nanos(999_999_999), Base(1), Base(20).Add(Nanos(833_333_334)), most, most.Sub(Nanos(1))} {
		if got, err := ParseNano(n.String()); err != nil || got != n {
			t.Errorf("%s is read as %s: %v", n, got, err)
		}
	}
	for _, text := range []string{"", ".", ".5", "1.", "01", "1.0", "1.0000000001", "-1", "+1", " 1", "1e9", "0x1", most.String() + "0", "1_0"} {
		if got, err := ParseNano(text); !errors.Is(err, ErrAmount) {
			t.Errorf("%q is read as %s: %v", text, got, err)
		}
	}
}

// TestTimeFor: a time that an amount pays for costs no more than it, and a nanosecond more does.
func TestTimeFor(t *testing.T) {
	for _, price := range []Nano{Nanos(1), Nanos(20_833_333_334), Base(2500), Base(1 << 60)} {
		for _, n := range []Nano{{}, Nanos(1), Nanos(7), Base(3), Base(50_000_000)} {
			runs := n.TimeFor(price)
			if price.forTime(runs).Cmp(n) > 0 || runs < math.MaxInt64 && price.forTime(runs+1).Cmp(n) <= 0 {
				t.Errorf("%s pays for %s at %s", n, runs, price)
			}
		}
	}
	if Base(1).TimeFor(Nano{}) != math.MaxInt64 || most.TimeFor(Nanos(1)) != math.MaxInt64 {
		t.Error("what is free ends")
	}
}
