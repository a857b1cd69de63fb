package settle

import (
	"testing"

	"github.com/gpupay/gpupay/sdk/chain"
)

// What one endpoint says was settled in a block counts while the other stands still, and no longer than that takes to come far.
func TestAheadOfAnEndpointThatGoesOn(t *testing.T) {
	a := ahead{block: 1000, known: 100}
	for known, want := range map[uint64]bool{100: false, 100 + chain.FarBehind: false, 101 + chain.FarBehind: true} {
		if a.over(known) != want {
			t.Errorf("at block %d: over %t", known, !want)
		}
	}
	if near := (ahead{block: 110, known: 100}); near.over(109) || !near.over(110) {
		t.Error("it is over once the other has the block")
	}
}
