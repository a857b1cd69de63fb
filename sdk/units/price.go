package units

import (
	"fmt"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
)

// PerHour returns the price of one GPU for an hour, given in units of a token,
// as an integer per the shortest unit that states it exactly: "3.60" of six
// decimals is 1000 base units per gpu_second, "2.50" is 2500000 per gpu_hour.
func PerHour(text string, decimals uint8) (metering.Price, error) {
	hourly, err := Parse(text, decimals)
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
	return Format(Hourly(price), decimals)
}

// Hourly is the price of one GPU for an hour in base units. An amount of
// 96 bits times 3600 does not overflow.
func Hourly(price metering.Price) uint256.Int {
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
