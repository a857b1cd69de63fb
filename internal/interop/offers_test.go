package interop

import (
	"strings"
	"testing"
)

// TestViemSignsOffers: what wire/testdata/offers.json says of classes and shares, viem says too.
func TestViemSignsOffers(t *testing.T) {
	var checked int
	node(t, &checked, map[string]string{"key": "0x" + strings.Repeat("01", 32)}, "offers.mjs")
	if checked < 30 {
		t.Errorf("%d offers are checked", checked)
	}
}
