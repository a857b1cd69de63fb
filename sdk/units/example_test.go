package units_test

import (
	"fmt"

	"github.com/gpupay/gpupay/sdk/units"
)

// A price as a person writes it is an integer per unit of time, and back again without a rounding.
func Example() {
	const decimals = 6 // the token's
	deposit, err := units.Parse("2.50", decimals)
	if err != nil {
		panic(err)
	}
	price, err := units.PerHour("3.60", decimals)
	if err != nil {
		panic(err)
	}
	fmt.Println("deposit, base units:", deposit.Dec(), "which is", units.Format(deposit, decimals))
	fmt.Println("price:", price.Amount.Dec(), "per", price.Unit, "which is", units.PricePerGPUHour(price, decimals), "per GPU-hour")
	_, err = units.Parse("0.0000001", decimals)
	fmt.Println(err)
	// Output:
	// deposit, base units: 2500000 which is 2.50
	// price: 1000 per gpu_second which is 3.60 per GPU-hour
	// invalid amount: "0.0000001" has more than the token's 6 decimals
}
