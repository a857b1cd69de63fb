package tower

import (
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// TestMissingBeforeTheClockWasSetBack: that the chain did not know a channel counts for absentFor, also where the clock is set back by
// hours since.
func TestMissingBeforeTheClockWasSetBack(t *testing.T) {
	g, id := newGuard(Limits{}.withDefaults()), common.Hash{1}
	if g.missing(id) {
		t.Error("it is missing before anybody looked")
	}
	if g.miss(id); !g.missing(id) {
		t.Error("it is looked for again at once")
	}
	g.absent.Get(id.Hex(), newMoment).Add(int64(5 * time.Hour)) // by the clock of now
	if g.missing(id) {
		t.Error("it is missing for as long as the clock was set back")
	}
}
