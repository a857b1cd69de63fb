package pace

import (
	"errors"
	"testing"
	"time"
)

// TestTroublesHoldUpEachAlone: what failed rests, longer each time, until a look at it succeeds; the others do not.
func TestTroublesHoldUpEachAlone(t *testing.T) {
	var all Troubles[string]
	failed := errors.New("no answer")
	if first := all.Note("a", failed); first < 500*time.Millisecond || first > time.Second || !all.Rests("a") || all.Why("a") == nil {
		t.Errorf("it rests for %s", first)
	}
	if second := all.Note("a", failed); second < time.Second {
		t.Errorf("then it rests for %s", second)
	}
	if all.Rests("b") || all.Why("b") != nil {
		t.Error("another one rests")
	}
	if all.Note("a", nil); all.Rests("a") || all.Why("a") != nil {
		t.Error("it rests after a success")
	}
	all.Note("a", failed)
	if all.Keep(func(string) bool { return false }); all.Why("a") != nil {
		t.Error("it is kept")
	}
}
