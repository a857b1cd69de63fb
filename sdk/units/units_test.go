package units

import (
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

func TestParse(t *testing.T) {
	tests := []struct {
		text     string
		decimals uint8
		want     string // empty: refused
	}{
		{"2.50", 6, "2500000"},
		{"2.5", 6, "2500000"},
		{"0", 6, "0"},
		{"0.000001", 6, "1"},
		{"0.0000010", 6, "1"},
		{"0.0000001", 6, ""},
		{"007", 0, "7"},
		{"7.0", 0, "7"},
		{"7.1", 0, ""},
		{"79228162514.264337593543950335", 18, "79228162514264337593543950335"},
		{"79228162514.264337593543950336", 18, ""},
		{"1", 29, ""},
		{"1", 78, ""},
		{"", 6, ""}, {".", 6, ""}, {".5", 6, ""}, {"5.", 6, ""}, {"-1", 6, ""}, {"+1", 6, ""},
		{"1e3", 6, ""}, {" 1", 6, ""}, {"1.2.3", 6, ""}, {"1,5", 6, ""}, {"0x1", 6, ""}, {"١", 6, ""},
		{strings.Repeat("9", 1000), 6, ""},
	}
	for _, test := range tests {
		got, err := Parse(test.text, test.decimals)
		if test.want == "" {
			if !errors.Is(err, channel.ErrAmount) {
				t.Errorf("Parse(%.20q, %d) = %s, %v; want ErrAmount", test.text, test.decimals, got.Dec(), err)
			}
			continue
		}
		if err != nil || got.Dec() != test.want {
			t.Errorf("Parse(%q, %d) = %s, %v; want %s", test.text, test.decimals, got.Dec(), err, test.want)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, test := range []struct {
		base     uint64
		decimals uint8
		want     string
	}{
		{0, 6, "0.00"}, {1, 6, "0.000001"}, {2500000, 6, "2.50"}, {1234567, 6, "1.234567"},
		{7, 0, "7"}, {7, 1, "0.7"}, {70, 1, "7.0"}, {1000000000, 6, "1000.00"},
	} {
		if got := Format(*uint256.NewInt(test.base), test.decimals); got != test.want {
			t.Errorf("Format(%d, %d) = %s, want %s", test.base, test.decimals, got, test.want)
		}
	}
}

// FuzzParse holds every accepted text to math/big: what a person wrote is
// exactly what is paid, and what is printed reads back the same.
func FuzzParse(f *testing.F) {
	f.Add("2.50", uint8(6))
	f.Add("0.000000000000000001", uint8(18))
	f.Fuzz(func(t *testing.T, text string, decimals uint8) {
		got, err := Parse(text, decimals)
		if err != nil {
			return
		}
		want, ok := new(big.Rat).SetString(text)
		if !ok {
			t.Fatalf("accepted %q", text)
		}
		scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(decimals)), nil)
		want.Mul(want, new(big.Rat).SetInt(scale))
		if !want.IsInt() || want.Num().Cmp(got.ToBig()) != 0 {
			t.Fatalf("Parse(%q, %d) = %s, want %s", text, decimals, got.Dec(), want)
		}
		back, err := Parse(Format(got, decimals), decimals)
		if err != nil || back != got {
			t.Fatalf("%s prints as %s, which reads as %s, %v", got.Dec(), Format(got, decimals), back.Dec(), err)
		}
	})
}
