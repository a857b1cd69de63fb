package tower

import (
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// A leave is over after an hour and 32 blocks of looks that all say so.
func TestEndings(t *testing.T) {
	var e endings
	id, other, began := common.Hash{1}, common.Hash{2}, time.Now()
	for _, step := range []struct {
		after time.Duration
		block uint64
		over  bool
		goes  bool // a look before it says that it goes on
	}{
		{0, 100, false, false},
		{2 * time.Hour, 131, false, false},
		{59 * time.Minute, 1000, false, false},
		{2 * time.Hour, 200, false, true},
		{150 * time.Minute, 300, false, false},
		{4 * time.Hour, 190, false, false}, // another chain, or a deep re-org
		{4*time.Hour + time.Minute, 300, false, false},
		{5 * time.Hour, 222, true, false},
		{5 * time.Hour, 500, false, false}, // ended
	} {
		if step.goes {
			e.goesOn(id)
		}
		if got := e.lasts(id, began.Add(step.after), step.block); got != step.over {
			t.Errorf("after %s at block %d: over %t", step.after, step.block, got)
		}
	}
	if e.lasts(other, began.Add(9*time.Hour), 9000) {
		t.Error("another leave is over at once")
	}
}
