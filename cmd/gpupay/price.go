package main

import (
	"errors"
	"fmt"

	"github.com/holiman/uint256"

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
