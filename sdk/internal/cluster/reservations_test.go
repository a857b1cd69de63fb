package cluster

import (
	"slices"
	"testing"

	"github.com/ethereum/go-ethereum/common"
)

// TestKeptBesideItsLease: what a channel keeps counts beside what its lease has, whichever of its requests began that.
func TestKeptBesideItsLease(t *testing.T) {
	one, two := common.Hash{1}, common.Hash{2}
	for _, c := range []struct {
		all  []Kept
		want []int
	}{
		{nil, nil},
		{[]Kept{{1, []common.Hash{one}}}, nil},
		{[]Kept{{2, []common.Hash{one}}, {3, []common.Hash{two}}}, []int{3, 1}},
		{[]Kept{{1, []common.Hash{two, one}}}, nil},
		{[]Kept{{0, []common.Hash{two}}, {2, []common.Hash{two}}}, []int{2}},
	} {
		if got := Beside(c.all, map[string]common.Hash{"a": one}); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v are kept, not %v", c.all, got, c.want)
		}
	}
}
