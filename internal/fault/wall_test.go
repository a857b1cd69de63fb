//go:build faults && linux && amd64

package fault

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestWallClockIsStepped: time.Now follows the file, and what has passed does not.
func TestWallClockIsStepped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wall")
	set := func(d time.Duration) {
		if err := os.WriteFile(path, binary.NativeEndian.AppendUint64(nil, uint64(d)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set(0)
	before := time.Now()
	if err := stepWith(path); err != nil {
		t.Fatal(err)
	}
	for _, d := range []time.Duration{0, time.Hour, -time.Hour} {
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(d)), 0); err != nil {
			t.Fatal(err)
		}
		file.Close()
		now := time.Now()
		if got := now.Round(0).Sub(before.Round(0)) - d; got < -time.Minute || got > time.Minute {
			t.Errorf("the clock was set by %s, and is off that by %s", d, got)
		}
		if passed := now.Sub(before); passed < 0 || passed > time.Minute {
			t.Errorf("%s passed", passed)
		}
	}
}
