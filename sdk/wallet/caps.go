package wallet

import (
	"fmt"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/units"
)

// CapField is what a cap of the payer's is called in Caps.
func CapField(cap string) string {
	switch cap {
	case channel.CapPayee:
		return "Caps.PerPayee"
	case channel.CapDay:
		return "Caps.PerDay"
	}
	return "Caps.PerLease"
}

// Unlimited is a cap that does not cap.
const Unlimited = "unlimited"

// Caps are what a renter will put at stake, in units of the token ("2.50"). Each
// must be said: "unlimited" lifts one. PricePerGPUHour cannot be lifted. What is
// deposited, or signed to be deposited, counts until it is back or signed away. With
// one endpoint, a deposit that was signed and given away, and that it does not show
// in time, counts until that day (UTC) is over.
type Caps struct {
	PricePerGPUHour string // a dearer offer is refused
	PerLease        string // deposited and signed for in one rental
	PerDay          string // signed for in one UTC day, and deposited and not signed for now
	PerPayee        string // signed for to one provider, for ever, and deposited with it and not signed for now
}

// Limits are Caps in base units of the token.
type Limits struct {
	Hourly uint256.Int // of a GPU-hour
	channel.Caps
}

// base reads the caps as base units of a token.
func (c Caps) base(decimals uint8) (Limits, error) {
	var caps Limits
	for _, cap := range []struct {
		name, text string
		into       *uint256.Int
	}{
		{"PricePerGPUHour", c.PricePerGPUHour, &caps.Hourly},
		{"PerLease", c.PerLease, &caps.PerChannel},
		{"PerDay", c.PerDay, &caps.PerDay},
		{"PerPayee", c.PerPayee, &caps.PerPayee},
	} {
		if cap.text == "" {
			return caps, fmt.Errorf("renter: Caps.%s is empty: say how much, in units of the token, such as \"2.50\"", cap.name)
		}
		if cap.text == Unlimited && cap.into != &caps.Hourly {
			*cap.into = channel.MaxAmount()
			continue
		}
		amount, err := units.Parse(cap.text, decimals)
		if err != nil {
			return caps, fmt.Errorf("renter: Caps.%s: %w", cap.name, err)
		}
		*cap.into = amount
	}
	return caps, nil
}
