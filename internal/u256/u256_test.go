package u256

import (
	"testing"
	"testing/quick"

	"github.com/holiman/uint256"
)

// TestLikeIntegers holds each function to what Go's own integers do.
func TestLikeIntegers(t *testing.T) {
	like := func(a, b uint64) bool {
		x, y := *uint256.NewInt(a), *uint256.NewInt(b)
		least, most, left := Min(x, y), Max(x, y), SaturatingSub(x, y)
		return least.Uint64() == min(a, b) && most.Uint64() == max(a, b) && left.Uint64() == a-min(a, b) &&
			x.Uint64() == a && y.Uint64() == b
	}
	if err := quick.Check(like, nil); err != nil {
		t.Error(err)
	}
	if !like(7, 7) {
		t.Error("equal operands")
	}
}
