package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// ErrInUse says that another program runs on a database file.
var ErrInUse = errors.New("another process has this database open: one program runs on it at a time")

// lockWait is how long a program waits for the one before it, which may be on its
// way out.
const lockWait = 500 * time.Millisecond

// OpenAlone is Open for a program that owns the database: while it is open no
// other OpenAlone opens the same file, in no process, since two that run the same
// leases or rentals would both sign and both pay. The lock lies beside the file,
// in path.lock, and ends with the process however that ends. Open takes no lock:
// tools may read meanwhile. A server's database is shared and is not locked.
func OpenAlone(ctx context.Context, address string) (*DB, error) {
	if isPostgres(address) {
		return Open(ctx, address)
	}
	lock, err := lockFile(ctx, address)
	if err != nil {
		return nil, err
	}
	db, err := Open(ctx, address)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	db.lock = lock
	return db, nil
}

// lockFile locks the file that a path leads to, whatever links are on the way.
func lockFile(ctx context.Context, path string) (io.Closer, error) {
	if err := makeFile(path); err != nil {
		return nil, err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	lock := flock.New(real+".lock", flock.SetPermissions(0o600))
	waiting, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	got, err := lock.TryLockContext(waiting, lockWait/10)
	switch {
	case got:
		// For people: the lock itself is the kernel's.
		_ = os.WriteFile(lock.Path(), fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600)
		return lock, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("store %s: %w%s: stop that one, or name another file", path, ErrInUse, holder(lock.Path()))
	}
	return nil, fmt.Errorf("store %s: its lock %s cannot be taken: keep the file in a directory that this user may write, on a local disk: %w", path, lock.Path(), err)
}

// holder is who wrote its number into a lock file last, in words.
func holder(path string) string {
	text, err := os.ReadFile(path)
	if pid := strings.TrimSpace(string(text)); err == nil && pid != "" {
		return fmt.Sprintf(" (process %.20s has it)", pid)
	}
	return ""
}
