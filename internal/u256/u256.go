// Package u256 has the arithmetic of amounts that uint256 leaves out. Values are passed, so
// that no operand is changed.
package u256

import "github.com/holiman/uint256"

// Min returns the smaller of a and b.
func Min(a, b uint256.Int) uint256.Int {
	if a.Lt(&b) {
		return a
	}
	return b
}

// Max returns the larger of a and b.
func Max(a, b uint256.Int) uint256.Int {
	if a.Gt(&b) {
		return a
	}
	return b
}

// SaturatingSub returns a-b, or zero where b is larger.
func SaturatingSub(a, b uint256.Int) (d uint256.Int) {
	if a.Gt(&b) {
		d.Sub(&a, &b)
	}
	return d
}
