package route

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
	"time"

	"github.com/holiman/uint256"
)

// ErrAmount says that an amount or a price is none: over 96 bits, or for no time.
var ErrAmount = errors.New("invalid amount")

// Nano is money in billionths of the token's base unit. A slot-second costs some 20 base units of a stablecoin, a token 0.1: whole base
// units lose a price, and a day's budget in a token of 18 decimals does not fit 64 bits. Sums and products that pass 256 bits stay at the most.
type Nano struct{ n uint256.Int }

// perBase is how many Nano a base unit has.
const perBase = 1_000_000_000

// most is the largest Nano, at which sums and products stay.
var most = Nano{*new(uint256.Int).SetAllOne()}

// Nanos is n billionths of a base unit.
func Nanos(n uint64) Nano { return Nano{uint256.Int{n}} }

// Base is n base units.
func Base(n uint64) Nano { return Nanos(n).mulDiv(perBase, 1, false) }

// Amount is an amount of base units, from 0 to 2^96-1, as channels hold them.
func Amount(base uint256.Int) (Nano, error) {
	if base.BitLen() > 96 {
		return Nano{}, fmt.Errorf("%w: more than 2^96-1 base units", ErrAmount)
	}
	return Nano{base}.mulDiv(perBase, 1, false), nil
}

// SlotSecond is the price of a second in one of slots that share gpus, where one GPU costs amount base units each per. It is
// rounded up by less than one Nano, so that what it reserves is never less than the bill.
func SlotSecond(amount uint256.Int, per time.Duration, gpus, slots uint32) (Nano, error) {
	price, err := Amount(amount)
	if err != nil {
		return Nano{}, fmt.Errorf("price of a slot: %w", err)
	}
	if per <= 0 || gpus == 0 || slots == 0 || gpus > 64 || slots > 1024 || per > time.Hour {
		return Nano{}, fmt.Errorf("%w: a price of %d GPUs in %d slots for %s; from 1 to 64, from 1 to 1024 and up to an hour are known", ErrAmount, gpus, slots, per)
	}
	return price.mulDiv(uint64(time.Second)*uint64(gpus), uint64(per)*uint64(slots), true), nil // 36 and 52 bits
}

// RoundUp is the whole base units that cover n.
func (n Nano) RoundUp() uint256.Int { return n.mulDiv(1, perBase, true).n }

// Add is the sum, or the largest Nano if it is more.
func (n Nano) Add(m Nano) Nano {
	if _, over := n.n.AddOverflow(&n.n, &m.n); over {
		return most
	}
	return n
}

// Cmp is -1, 0 or 1 as n is less than, equal to or more than m.
func (n Nano) Cmp(m Nano) int { return n.n.Cmp(&m.n) }

// IsZero reports whether n is no money.
func (n Nano) IsZero() bool { return n.n.IsZero() }

// BaseUnits is n in base units, for display: what is paid is never taken from it.
func (n Nano) BaseUnits() float64 { return n.float() / perBase }

// String is n in base units, exactly, such as 20.833333334.
func (n Nano) String() string {
	var whole, rest uint256.Int
	whole.DivMod(&n.n, uint256.NewInt(perBase), &rest)
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%s.%09d", whole.Dec(), rest.Uint64()), "0"), ".")
}

// ParseNano reads what String writes, exactly. ErrAmount is anything else.
func ParseNano(text string) (Nano, error) {
	whole, part, _ := strings.Cut(text, ".")
	if len(part) > 9 {
		return Nano{}, fmt.Errorf("%w: %.100q has more than nine digits of a base unit", ErrAmount, text)
	}
	n, err := uint256.FromDecimal(whole + part + strings.Repeat("0", 9-len(part)))
	if err != nil || whole == "" {
		return Nano{}, fmt.Errorf("%w: %.100q", ErrAmount, text)
	}
	if got := (Nano{*n}).String(); got != text { // one amount has one text
		return Nano{}, fmt.Errorf("%w: %.100q, which is written %s", ErrAmount, text, got)
	}
	return Nano{*n}, nil
}

func (n Nano) float() float64 { return n.n.Float64() }

// Sub is the difference, or nothing if m is more.
func (n Nano) Sub(m Nano) Nano {
	if _, under := n.n.SubOverflow(&n.n, &m.n); under {
		return Nano{}
	}
	return n
}

// mulDiv is n*m/d, rounded up or down, and the largest Nano if that is more, or n*m is. d is not 0.
func (n Nano) mulDiv(m, d uint64, up bool) Nano {
	if high, low := bits.Mul64(n.n[0], m); n.n.IsUint64() && high < d { // all usual amounts
		whole, rest := bits.Div64(high, low, d)
		if up && rest > 0 {
			return Nanos(whole).Add(Nanos(1))
		}
		return Nanos(whole)
	}
	var rest uint256.Int
	if _, over := n.n.MulOverflow(&n.n, uint256.NewInt(m)); over {
		return most
	}
	if n.n.DivMod(&n.n, uint256.NewInt(d), &rest); up && !rest.IsZero() {
		return n.Add(Nanos(1))
	}
	return n
}

// TimeFor is the longest time that n pays at a price per second, down to the nanosecond; the longest Duration where that is more, or
// the price is nothing.
func (n Nano) TimeFor(perSecond Nano) time.Duration {
	if perSecond.IsZero() {
		return math.MaxInt64
	}
	var pays uint256.Int
	if _, over := pays.MulDivOverflow(&n.n, uint256.NewInt(uint64(time.Second)), &perSecond.n); over || !pays.IsUint64() || pays.Uint64() > math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(pays.Uint64())
}

// forTime is what a price per second comes to in a time, rounded up. A time below 0 is none.
func (n Nano) forTime(t time.Duration) Nano {
	return n.mulDiv(uint64(max(t, 0)), uint64(time.Second), true)
}
