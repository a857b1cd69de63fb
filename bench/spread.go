package bench

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Spread is the median of the rounds, and the least and the most of them.
type Spread struct {
	Median, Low, High float64
}

// SpreadOf returns the spread of values, at least one.
func SpreadOf(values []float64) Spread {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return Spread{(sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[0], sorted[n-1]}
}

// Ratio returns the spread of a over b, round by round.
func Ratio(a, b Series) Spread {
	ratios := make([]float64, 0, len(a.Rates))
	for i, rate := range a.Rates {
		ratios = append(ratios, rate/b.Rates[i])
	}
	return SpreadOf(ratios)
}

// Times writes a ratio, as in "3.2x (2.9-3.6)".
func (s Spread) Times() string {
	return fmt.Sprintf("%sx (%s-%s)", Number(s.Median), Number(s.Low), Number(s.High))
}

// String writes the spread, as in "12,300 (11,900-12,800)".
func (s Spread) String() string {
	return fmt.Sprintf("%s (%s-%s)", Number(s.Median), Number(s.Low), Number(s.High))
}

// Count writes a whole number.
func Count(n int) string { return thousands(fmt.Sprint(n)) }

// Number writes three significant digits.
func Number(x float64) string {
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return fmt.Sprint(x)
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(x))))
	if digits >= 0 {
		return fmt.Sprintf("%.*f", min(digits, 4), x)
	}
	scale := math.Pow10(-digits)
	return thousands(fmt.Sprintf("%.0f", math.Round(x/scale)*scale))
}

func thousands(s string) string {
	head := (len(s)-1)%3 + 1
	parts := []string{s[:head]}
	for ; head < len(s); head += 3 {
		parts = append(parts, s[head:head+3])
	}
	return strings.Join(parts, ",")
}
