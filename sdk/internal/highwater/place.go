package highwater

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ethereum/go-ethereum/common"
)

// OpenFor opens the file of a metering key: where it was configured, else where it is by default.
func OpenFor(ctx context.Context, configured, database string, key common.Address) (*Marks, error) {
	path := configured
	if path == "" {
		var err error
		if path, err = marksPath(database, key); err != nil {
			return nil, err
		}
	}
	return Open(ctx, path)
}

// marksPath is where the file is by default: beside a database that is a file, and
// in this user's state directory where the database is a server's.
func marksPath(database string, key common.Address) (string, error) {
	if !strings.Contains(database, "://") {
		return database + ".signed", nil
	}
	dir := os.Getenv("STATE_DIRECTORY") // systemd's
	if dir == "" {
		state := os.Getenv("XDG_STATE_HOME")
		if state == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("HighWater is empty and this user has no home: give the path of a file on this host that remembers which records were signed: %w", err)
			}
			state = filepath.Join(home, ".local", "state")
		}
		dir = filepath.Join(state, "gpupay")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("HighWater is empty and the default directory cannot be made: give the path of a file on this host that remembers which records were signed: %w", err)
	}
	return filepath.Join(dir, key.Hex()+".signed"), nil
}
