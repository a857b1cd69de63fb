package sdk

import (
	"fmt"
	"strings"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
)

// maxDecimals is the most decimals whose unit still fits 256 bits.
const maxDecimals = 77

// ParseUnits reads an amount that a person wrote in units of a token, such as
// "2.50", as base units of a token with that many decimals. It is exact or an
// error: no rounding, no sign, no exponent, at most 2^96-1 base units.
func ParseUnits(text string, decimals uint8) (uint256.Int, error) {
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

// FormatUnits writes base units of a token in units for a person: exact, with
// at least two places where the token has them.
func FormatUnits(amount uint256.Int, decimals uint8) string {
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

// PerHour returns the price of one GPU for an hour, given in units of a token,
// as an integer per the shortest unit that states it exactly: "3.60" of six
// decimals is 1000 base units per gpu_second, "2.50" is 2500000 per gpu_hour.
func PerHour(text string, decimals uint8) (metering.Price, error) {
	hourly, err := ParseUnits(text, decimals)
	if err != nil {
		return metering.Price{}, fmt.Errorf("price per GPU-hour: %w", err)
	}
	for _, unit := range []metering.Unit{metering.Second, metering.Minute} {
		var amount, rest uint256.Int
		amount.DivMod(&hourly, unitsPerHour(unit), &rest)
		if rest.IsZero() {
			return metering.Price{Amount: amount, Unit: unit}, nil
		}
	}
	return metering.Price{Amount: hourly, Unit: metering.Hour}, nil
}

// PricePerGPUHour writes a price as people compare prices: units of the token
// for one GPU and one hour. It is exact for every unit.
func PricePerGPUHour(price metering.Price, decimals uint8) string {
	return FormatUnits(hourlyAmount(price), decimals)
}

// hourlyAmount is the price of one GPU for an hour in base units. An amount of
// 96 bits times 3600 does not overflow.
func hourlyAmount(price metering.Price) uint256.Int {
	var hourly uint256.Int
	hourly.Mul(&price.Amount, unitsPerHour(price.Unit))
	return hourly
}

// unitsPerHour is 0 for a unit that does not exist.
func unitsPerHour(unit metering.Unit) *uint256.Int {
	if unit.Nanos() == 0 {
		return new(uint256.Int)
	}
	return uint256.NewInt(metering.Hour.Nanos() / unit.Nanos())
}
