package route

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"strings"
	"time"
)

// ErrAmount says that an amount or a price is none: negative, over 96 bits, or for no time.
var ErrAmount = errors.New("invalid amount")

// Nano is money in billionths of the token's base unit, 128 bits without a sign. A slot-second costs some 20 base units of a
// stablecoin, a token 0.1: whole base units lose a price. 128 bits hold each amount of a channel (96 bits) exactly, and sums that
// would pass them stay at the most.
type Nano struct{ hi, lo uint64 }

// perBase is how many Nano a base unit has.
const perBase = 1_000_000_000

// most is the largest Nano, at which sums and products stay.
var most = Nano{math.MaxUint64, math.MaxUint64}

// Nanos is n billionths of a base unit.
func Nanos(n uint64) Nano { return Nano{lo: n} }

// Base is n base units.
func Base(n uint64) Nano { return Nanos(n).mulDiv(perBase, 1, false) }

// FromBig is an amount of base units, from 0 to 2^96-1, as channels hold them.
func FromBig(base *big.Int) (Nano, error) {
	if base == nil || base.Sign() < 0 || base.BitLen() > 96 {
		return Nano{}, fmt.Errorf("%w: not from 0 to 2^96-1 base units", ErrAmount)
	}
	low := new(big.Int).And(base, new(big.Int).SetUint64(math.MaxUint64))
	whole := Nano{new(big.Int).Rsh(base, 64).Uint64(), low.Uint64()}
	return whole.mulDiv(perBase, 1, false), nil
}

// SlotSecond is the price of a second in one of slots that share gpus, where one GPU costs amount base units each per. It is
// rounded up by less than one Nano, so that what it reserves is never less than the bill.
func SlotSecond(amount *big.Int, per time.Duration, gpus, slots uint32) (Nano, error) {
	price, err := FromBig(amount)
	if err != nil {
		return Nano{}, fmt.Errorf("price of a slot: %w", err)
	}
	if per <= 0 || gpus == 0 || slots == 0 || gpus > 64 || slots > 1024 || per > time.Hour {
		return Nano{}, fmt.Errorf("%w: a price of %d GPUs in %d slots for %s; from 1 to 64, from 1 to 1024 and up to an hour are known", ErrAmount, gpus, slots, per)
	}
	// per is at most 3.6e12 and slots 1024, so that the product is within 52 bits. A second first: 64e9 is within 36.
	wide := new(big.Int).Mul(price.big(), big.NewInt(int64(time.Second)*int64(gpus)))
	part := big.NewInt(int64(per) * int64(slots))
	wide.Add(wide, new(big.Int).Sub(part, big.NewInt(1))).Quo(wide, part)
	if wide.BitLen() > 128 {
		return Nano{}, fmt.Errorf("%w: a price of more than 128 bits", ErrAmount)
	}
	low := new(big.Int).And(wide, new(big.Int).SetUint64(math.MaxUint64))
	return Nano{new(big.Int).Rsh(wide, 64).Uint64(), low.Uint64()}, nil
}

// RoundUp is the whole base units that cover n.
func (n Nano) RoundUp() *big.Int { return n.mulDiv(1, perBase, true).big() }

// Add is the sum, or the largest Nano if it is more.
func (n Nano) Add(m Nano) Nano {
	lo, carry := bits.Add64(n.lo, m.lo, 0)
	hi, carry := bits.Add64(n.hi, m.hi, carry)
	if carry > 0 {
		return most
	}
	return Nano{hi, lo}
}

// Cmp is -1, 0 or 1 as n is less than, equal to or more than m.
func (n Nano) Cmp(m Nano) int {
	switch {
	case n == m:
		return 0
	case n.hi < m.hi || n.hi == m.hi && n.lo < m.lo:
		return -1
	}
	return 1
}

// IsZero reports whether n is no money.
func (n Nano) IsZero() bool { return n == Nano{} }

// BaseUnits is n in base units, for display: what is paid is never taken from it.
func (n Nano) BaseUnits() float64 { return n.float() / perBase }

// String is n in base units, exactly, such as 20.833333334.
func (n Nano) String() string {
	whole, rest := new(big.Int).QuoRem(n.big(), big.NewInt(perBase), new(big.Int))
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%s.%09d", whole, rest.Uint64()), "0"), ".")
}

func (n Nano) float() float64 { return float64(n.hi)*0x1p64 + float64(n.lo) }

func (n Nano) big() *big.Int {
	b := new(big.Int).SetUint64(n.hi)
	return b.Lsh(b, 64).Or(b, new(big.Int).SetUint64(n.lo))
}

// sub is the difference, or nothing if m is more.
func (n Nano) sub(m Nano) Nano {
	lo, borrow := bits.Sub64(n.lo, m.lo, 0)
	hi, borrow := bits.Sub64(n.hi, m.hi, borrow)
	if borrow > 0 {
		return Nano{}
	}
	return Nano{hi, lo}
}

// mulDiv is n*m/d, over 192 bits in between; rounded up or down, and the largest Nano if it is more. d is not 0.
func (n Nano) mulDiv(m, d uint64, up bool) Nano {
	carry, low := bits.Mul64(n.lo, m)
	if n.hi == 0 && carry == 0 { // all usual amounts
		whole, rest := low/d, low%d
		if up && rest > 0 {
			return Nano{lo: whole}.Add(Nanos(1))
		}
		return Nano{lo: whole}
	}
	high, middle := bits.Mul64(n.hi, m)
	middle, over := bits.Add64(middle, carry, 0)
	high += over
	if high >= d {
		return most
	}
	hi, rest := bits.Div64(high, middle, d)
	lo, rest := bits.Div64(rest, low, d)
	if up && rest > 0 {
		return Nano{hi, lo}.Add(Nanos(1))
	}
	return Nano{hi, lo}
}

// forTime is what a price per second comes to in a time, rounded up. A time below 0 is none.
func (n Nano) forTime(t time.Duration) Nano {
	return n.mulDiv(uint64(max(t, 0)), uint64(time.Second), true)
}
