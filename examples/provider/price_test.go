package main

import (
	"strings"
	"testing"
)

// TestPriceIsMeant: no GPUs are given away, and none are offered at a price in base
// units, unless somebody said so.
func TestPriceIsMeant(t *testing.T) {
	for _, c := range []struct {
		price, says string
		free        bool
	}{
		{"2.50", "", false}, {"0.000001", "", false}, {"1000000", "", false}, {"0", "", true}, {"0.00", "", true},
		{"0", "--free", false}, {"0.00", "--free", false}, {"2.50", "contradict", true}, {"-1", "-1", false}, {"-0", "-0", false},
		{"", "--price", false}, {"1e3", "1e3", false}, {"cheap", "cheap", false}, {"2500000", "base units", false},
		{"99999999999999999999999999", "more than", false},
	} {
		err := checkPrice(c.price, c.free)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("--price %q, --free %t: %v", c.price, c.free, err)
		}
		t.Setenv("GPUPAY_PRICE", "")
		args := []string{"--price=" + c.price}
		if c.free {
			args = append(args, "--free")
		}
		if _, err := parse(args); c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
