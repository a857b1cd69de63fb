package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/units"
)

// mostPrice is what nobody asks for an hour of a GPU, in units of a token: more is
// taken for a price in base units.
const mostPrice = 1_000_000

// checkPrice refuses a price that is hardly meant. What a GPU earns depends on it, so
// nothing is given away without a word for it.
func checkPrice(price string, free bool) error {
	amount, err := units.Parse(price, 18)
	if err != nil {
		return fmt.Errorf("--price: %w: say units of the token for one GPU and one hour", err)
	}
	most := new(uint256.Int).Mul(uint256.NewInt(mostPrice), uint256.NewInt(1e18))
	switch {
	case amount.IsZero() && !free:
		return errors.New("--price is 0: whoever asks would have the GPUs for nothing: say --free if that is meant")
	case !amount.IsZero() && free:
		return fmt.Errorf("--free and --price %s contradict each other", price)
	case amount.Gt(most):
		return fmt.Errorf("--price %s is over %d an hour: it is in units of the token, not in base units", price, mostPrice)
	}
	return nil
}

// classesOf are the classes of a --price that names some, as NAME=PRICE with commas between them; the price alone of one that names none.
// A class is named as its GPUs are, in small letters and with - for what is no letter or digit. Those of slices begin with MIG.
func classesOf(text string) ([]provider.Class, string, error) {
	if !strings.Contains(text, "=") {
		return nil, text, nil
	}
	var all []provider.Class
	for part := range strings.SplitSeq(text, ",") {
		name, price, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" || price == "" {
			return nil, "", fmt.Errorf("--price: %q is not NAME=PRICE, such as H100=2.50", part)
		}
		id := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return '-'
		}, strings.ToLower(name))
		all = append(all, provider.Class{ID: id, Model: name, MIG: strings.HasPrefix(id, "mig-"), PricePerGPUHour: price})
	}
	return all, "", nil
}
