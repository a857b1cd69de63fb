package awake

import (
	"testing"
	"time"
)

// TestAwakeStandsStill: a tick that comes late because nobody looked counts as
// one tick.
func TestAwakeStandsStill(t *testing.T) {
	var c Clock
	began := c.Now()
	for _, passed := range []time.Duration{tick, 2 * time.Hour, tick} {
		c.Count(passed)
	}
	if got := c.Since(began); got != 2*tick+most {
		t.Errorf("%s counted", got)
	}
}
