// Package units turns amounts as people write them, in units of a token or of a
// chain's coin, into the base units that are paid, and back, and prices of a
// GPU-hour into those that are metered.
package units

import (
	"fmt"
	"strings"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// maxDecimals is the most decimals whose unit still fits 256 bits.
const maxDecimals = 77

// Parse reads an amount that a person wrote in units of a token, such as
// "2.50", as base units of a token with that many decimals. It is exact or an
// error: no rounding, no sign, no exponent, at most 2^96-1 base units.
func Parse(text string, decimals uint8) (uint256.Int, error) {
	if decimals > maxDecimals {
		return uint256.Int{}, fmt.Errorf("%w: a token with %d decimals", channel.ErrAmount, decimals)
	}
	whole, fraction, point := strings.Cut(text, ".")
	if whole == "" || (point && fraction == "") || !digits(whole) || !digits(fraction) {
		return uint256.Int{}, fmt.Errorf("%w: %.40q is not a decimal number such as 2.50", channel.ErrAmount, text)
	}
	fraction = strings.TrimRight(fraction, "0")
	if len(fraction) > int(decimals) {
		return uint256.Int{}, fmt.Errorf("%w: %.40q has more than the token's %d decimals", channel.ErrAmount, text, decimals)
	}
	base := strings.TrimLeft(whole+fraction+strings.Repeat("0", int(decimals)-len(fraction)), "0")
	if base == "" {
		return uint256.Int{}, nil
	}
	amount, err := channel.ParseAmount(base)
	if err != nil {
		return uint256.Int{}, fmt.Errorf("%w: %.40q is more than a channel can hold", channel.ErrAmount, text)
	}
	return amount, nil
}

func digits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// Format writes base units of a token in units for a person: exact, with
// at least two places where the token has them.
func Format(amount uint256.Int, decimals uint8) string {
	text := amount.Dec()
	if decimals == 0 {
		return text
	}
	if pad := int(decimals) + 1 - len(text); pad > 0 {
		text = strings.Repeat("0", pad) + text
	}
	whole, fraction := text[:len(text)-int(decimals)], text[len(text)-int(decimals):]
	for len(fraction) > 2 && fraction[len(fraction)-1] == '0' {
		fraction = fraction[:len(fraction)-1]
	}
	return whole + "." + fraction
}
