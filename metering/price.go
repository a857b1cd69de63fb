package metering

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/holiman/uint256"
)

// ErrPrice says that an amount is not what the price and the time make.
var ErrPrice = errors.New("wrong price")

// maxAmount is 2^96-1, the most a channel can hold.
var maxAmount = new(uint256.Int).Sub(new(uint256.Int).Lsh(uint256.NewInt(1), 96), uint256.NewInt(1))

// Unit is the stretch of GPU time that a price is for. A price below one base
// unit a second is stated for a longer unit, never as a fraction.
type Unit string

const (
	Second Unit = "gpu_second"
	Minute Unit = "gpu_minute"
	Hour   Unit = "gpu_hour"
)

// ParseUnit parses the wire form of a unit.
func ParseUnit(s string) (Unit, error) {
	u := Unit(s)
	if u.Nanos() == 0 {
		return "", fmt.Errorf("%w: unit %q is not %s, %s or %s", ErrPrice, s, Second, Minute, Hour)
	}
	return u, nil
}

// Nanos is the unit's length, or 0 if there is no such unit.
func (u Unit) Nanos() uint64 {
	switch u {
	case Second:
		return 1e9
	case Minute:
		return 60e9
	case Hour:
		return 3600e9
	}
	return 0
}

// Price is what one unit of one device's time costs, in base units of the
// channel's token.
type Price struct {
	Amount uint256.Int
	Unit   Unit
}

// Validate refuses an unknown unit and an amount that no channel can hold. A
// price of zero is allowed: somebody may give GPU time away.
func (p Price) Validate() error {
	if _, err := ParseUnit(string(p.Unit)); err != nil {
		return err
	}
	if p.Amount.Gt(maxAmount) {
		return fmt.Errorf("%w: amount %s is over 96 bits", ErrPrice, p.Amount.Dec())
	}
	return nil
}

// Charge is what nanos of device time cost in all: floor(nanos * amount /
// unit). Give it the cumulative total of the lease, over all its devices.
// Charging a difference would round down at every step, and lose money at each.
func (p Price) Charge(nanos uint64) (uint256.Int, error) {
	if err := p.Validate(); err != nil {
		return uint256.Int{}, err
	}
	var owed uint256.Int // 64 + 96 bits do not overflow 256
	owed.Mul(&p.Amount, uint256.NewInt(nanos))
	owed.Div(&owed, uint256.NewInt(p.Unit.Nanos()))
	if owed.Gt(maxAmount) {
		return uint256.Int{}, fmt.Errorf("%w: %d ns at %s per %s is over 96 bits", ErrPrice, nanos, p.Amount.Dec(), p.Unit)
	}
	return owed, nil
}

// Fractions is how many parts of a base unit Fraction counts in: so many that
// what any price and time leave over is a whole number of them.
const Fractions = 3_600_000_000_000

// Fraction is what Charge rounds off, in parts of which Fractions make a base
// unit. Who charges pieces of time one by one carries it to the next piece, or
// many small ones would cost nothing.
func (p Price) Fraction(nanos uint64) (uint64, error) {
	if err := p.Validate(); err != nil {
		return 0, err
	}
	var rest uint256.Int // as in Charge
	rest.Mul(&p.Amount, uint256.NewInt(nanos))
	rest.Mod(&rest, uint256.NewInt(p.Unit.Nanos()))
	return rest.Uint64() * (Fractions / p.Unit.Nanos()), nil
}

type priceJSON struct {
	Amount string `json:"amount"`
	Unit   string `json:"unit"`
}

// MarshalJSON writes the amount as a decimal string.
func (p Price) MarshalJSON() ([]byte, error) {
	return json.Marshal(priceJSON{Amount: p.Amount.Dec(), Unit: string(p.Unit)})
}

// UnmarshalJSON accepts only what MarshalJSON writes for a valid price.
func (p *Price) UnmarshalJSON(b []byte) error {
	var w priceJSON
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	amount, err := parseAmount(w.Amount)
	if err != nil {
		return fmt.Errorf("price: %w", err)
	}
	unit, err := ParseUnit(w.Unit)
	if err != nil {
		return err
	}
	*p = Price{Amount: amount, Unit: unit}
	return nil
}

// parseAmount parses a canonical decimal of at most 96 bits: no sign, no
// leading zero, no second way to write the same money.
func parseAmount(s string) (uint256.Int, error) {
	if len(s) == 0 || len(s) > 29 || (s[0] == '0' && s != "0") {
		return uint256.Int{}, fmt.Errorf("%w: %.32q is not a canonical decimal amount", ErrPrice, s)
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return uint256.Int{}, fmt.Errorf("%w: %q is not a canonical decimal amount", ErrPrice, s)
		}
	}
	amount, err := uint256.FromDecimal(s)
	if err != nil || amount.Gt(maxAmount) {
		return uint256.Int{}, fmt.Errorf("%w: amount %s is over 96 bits", ErrPrice, s)
	}
	return *amount, nil
}
