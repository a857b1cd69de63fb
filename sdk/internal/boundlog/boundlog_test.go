package boundlog

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
)

// TestLogCountsByTheMinute: what is said of one channel takes no lines of another, and the next minute has its own.
func TestLogCountsByTheMinute(t *testing.T) {
	var log testrig.Log
	now := time.Unix(600, 0)
	bounded := New(slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return now }).With("renter", 1)
	say := func(channel string) int {
		before := strings.Count(log.String(), "\n")
		for range 100 {
			bounded.Warn("no", "channel", channel, "error", fmt.Errorf("%s", strings.Repeat("z", 1<<16)))
		}
		return strings.Count(log.String(), "\n") - before
	}
	for i, channel := range []string{"a", "b"} {
		if n := say(channel); n != MaxLines {
			t.Errorf("channel %d: %d lines", i, n)
		}
	}
	if n := say("a"); n != 0 {
		t.Errorf("%d lines more in this minute", n)
	}
	now = now.Add(-time.Minute) // as after a clock was set back
	if n := say("a"); n != MaxLines {
		t.Errorf("%d lines in another minute", n)
	}
	if most := 3 * MaxLines * 2 * MaxValue; len(log.String()) > most {
		t.Errorf("%d bytes, %d at most", len(log.String()), most)
	}
}
