package units

import (
	"errors"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
)

func TestPerHour(t *testing.T) {
	for _, test := range []struct {
		text   string
		amount uint64
		unit   metering.Unit
	}{
		{"3.60", 1000, metering.Second},
		{"0.0036", 1, metering.Second},
		{"0.00006", 1, metering.Minute},
		{"2.50", 2500000, metering.Hour},
		{"0.000001", 1, metering.Hour},
		{"0", 0, metering.Second},
	} {
		got, err := PerHour(test.text, 6)
		if err != nil || got.Unit != test.unit || got.Amount != *uint256.NewInt(test.amount) {
			t.Errorf("PerHour(%s) = %s per %s, %v; want %d per %s", test.text, got.Amount.Dec(), got.Unit, err, test.amount, test.unit)
		}
	}
	if _, err := PerHour("0.0000001", 6); !errors.Is(err, channel.ErrAmount) {
		t.Errorf("a price below one base unit an hour: %v, want ErrAmount", err)
	}
}

// FuzzPerHour: an hour at the parsed price costs exactly what was written.
func FuzzPerHour(f *testing.F) {
	f.Add("2.50")
	f.Fuzz(func(t *testing.T, text string) {
		price, err := PerHour(text, 6)
		if err != nil {
			return
		}
		want, _ := Parse(text, 6)
		got, err := price.Charge(3600e9)
		if err != nil || got != want {
			t.Fatalf("an hour at %s costs %s, %v; want %s", text, got.Dec(), err, want.Dec())
		}
	})
}
