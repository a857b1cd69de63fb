package metering_test

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// TestSystemClock: the host's clocks run, forwards, and close together.
func TestSystemClock(t *testing.T) {
	a := metering.System.Now()
	b := metering.System.Now()
	if b.Mono < a.Mono || b.Boot < a.Boot || a.Boot < a.Mono-int64(time.Millisecond) {
		t.Errorf("%+v then %+v", a, b)
	}
	if drift := (b.Boot - b.Mono) - (a.Boot - a.Mono); drift > int64(10*time.Millisecond) || drift < -int64(10*time.Millisecond) {
		t.Errorf("boottime runs from monotonic time by %d ns", drift)
	}
}
