package channel

import (
	"errors"
	"fmt"

	"github.com/holiman/uint256"
)

// ErrAmount marks an amount that is not money here: zero where some is needed,
// over 96 bits, or not a canonical decimal.
var ErrAmount = errors.New("invalid amount")

// maxDigits is the number of decimal digits of MaxAmount.
const maxDigits = 29

// MaxAmount returns 2^96-1 base units, the most that a channel can hold: the
// escrow keeps a channel in one slot. As a cap it means "no cap".
func MaxAmount() uint256.Int { return uint256.Int{^uint64(0), 1<<32 - 1} }

// ParseAmount reads base units from a canonical decimal: digits only, no sign,
// no leading zeros, 0 to MaxAmount. One amount has one spelling, so that what
// was signed over and what was parsed cannot differ.
func ParseAmount(decimal string) (uint256.Int, error) {
	var amount uint256.Int
	if !canonical(decimal) {
		return amount, fmt.Errorf("%w: %s is not a whole number of base units", ErrAmount, quote(decimal))
	}
	if err := amount.SetFromDecimal(decimal); err != nil {
		return uint256.Int{}, fmt.Errorf("%w: %s is not a whole number of base units", ErrAmount, quote(decimal))
	}
	return amount, checkAmount(amount)
}

func canonical(s string) bool {
	if s == "" || len(s) > maxDigits || (len(s) > 1 && s[0] == '0') {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// quote shows the beginning of what a stranger sent.
func quote(s string) string {
	if len(s) > 40 {
		return fmt.Sprintf("%q...", s[:40])
	}
	return fmt.Sprintf("%q", s)
}

func checkAmount(a uint256.Int) error {
	if limit := MaxAmount(); a.Gt(&limit) {
		return fmt.Errorf("%w: %s is over 96 bits", ErrAmount, a.Dec())
	}
	return nil
}
