package highwater

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
)

// TestFileOfAnotherKey: by default a server's host has one file, whichever metering key it was made with: a key's own where there is one, else
// that of the only other key. Of several nobody is chosen: the error names them and the setting.
func TestFileOfAnotherKey(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("STATE_DIRECTORY", dir)
	keys := []common.Address{{1}, {2}, {3}}
	at := func(i int) string { return filepath.Join(dir, keys[i].Hex()+".signed") }
	for _, c := range []struct{ made, key, want int }{{-1, 0, 0}, {0, 0, 0}, {-1, 1, 0}, {1, 1, 1}, {-1, 0, 0}, {-1, 2, -1}, {2, 2, 2}} {
		if c.made >= 0 {
			if err := os.WriteFile(at(c.made), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		path, err := marksPath("postgres://h/db", keys[c.key])
		switch {
		case c.want >= 0 && (err != nil || path != at(c.want)):
			t.Errorf("%+v: %s, %v", c, path, err)
		case c.want < 0 && (err == nil || !strings.Contains(err.Error(), at(0)) || !strings.Contains(err.Error(), at(1)) || !strings.Contains(err.Error(), "HighWater")):
			t.Errorf("%+v: %s, %v", c, path, err)
		}
	}
}
