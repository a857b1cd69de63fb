package audit

import (
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
)

// TestCarriesOnlyWhatWasLeft: a lease may begin with so many base units more than the
// one before ended with as rounding has left, once.
func TestCarriesOnlyWhatWasLeft(t *testing.T) {
	v := &verifier{carried: 2*metering.Fractions + 5}
	amount := func(n uint64) uint256.Int { return *uint256.NewInt(n) }
	for _, c := range []struct {
		before, begins uint64
		ok             bool
	}{{10, 9, false}, {10, 13, false}, {10, 11, true}, {11, 12, true}, {12, 13, false}} {
		if got := v.carries(amount(c.before), amount(c.begins)); got != c.ok {
			t.Errorf("%d after %d: %t", c.begins, c.before, got)
		}
	}
	if v.carried != 5 {
		t.Errorf("%d parts are left", v.carried)
	}
}
