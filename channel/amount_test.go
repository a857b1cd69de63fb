package channel_test

import (
	"errors"
	"math/big"
	"regexp"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/channel"
)

const maxDecimal = "79228162514264337593543950335"

func TestParseAmount(t *testing.T) {
	for text, want := range map[string]string{"0": "0", "1": "1", "1000000": "1000000", maxDecimal: maxDecimal} {
		if got, err := channel.ParseAmount(text); err != nil || got.Dec() != want {
			t.Errorf("%q: %s, %v", text, got.Dec(), err)
		}
	}
	for _, text := range []string{"", "-1", "+1", "00", "01", " 1", "1 ", "1.0", "1e3", "0x1", "1_000", "１", "\x00",
		"79228162514264337593543950336", "99999999999999999999999999999", strings.Repeat("9", 1<<16), "-0"} {
		if got, err := channel.ParseAmount(text); !errors.Is(err, channel.ErrAmount) {
			t.Errorf("%.40q: parsed to %s, %v", text, got.Dec(), err)
		} else if len(err.Error()) > 200 {
			t.Errorf("%.40q: the error repeats all of it", text)
		}
	}
}

var canonical = regexp.MustCompile(`\A(0|[1-9][0-9]*)\z`)

func FuzzParseAmount(f *testing.F) {
	for _, s := range []string{"0", "1", maxDecimal, "-1", "01", "1e9", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, ok := new(big.Int).SetString(s, 10)
		valid := ok && canonical.MatchString(s) && want.BitLen() <= 96
		got, err := channel.ParseAmount(s)
		if (err == nil) != valid {
			t.Fatalf("%q: %v, want valid %v", s, err, valid)
		}
		if valid && got.Dec() != s {
			t.Fatalf("%q read as %s", s, got.Dec())
		}
	})
}

func TestMaxAmountCannotBeChanged(t *testing.T) {
	limit := channel.MaxAmount()
	limit.Clear()
	if again := channel.MaxAmount(); again.Dec() != maxDecimal {
		t.Errorf("MaxAmount is now %s", again.Dec())
	}
}
