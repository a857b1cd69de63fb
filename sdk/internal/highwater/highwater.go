// Package highwater remembers, outside the database, the newest usage record that
// a metering key has signed for each lease, as a validator's slashing protection
// does (EIP-3076), the highest nonce of a key's transactions, and the newest term of each lease's commands on this host. A database that was restored from a backup does not know what
// was signed since; this file does, and refuses a second signature of a number.
package highwater

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/redact"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ErrBehind says that a record was about to be signed whose number was signed
// before: two records of one number are a fork, which convicts the key.
var ErrBehind = errors.New("a record of this number, or a later one, was signed before: the database is older than what was signed from it")

// keep is how long the mark of a lease outlives its last record. A database that
// is older than this is not found out by the file.
const keep = 400 * 24 * time.Hour

// Mark is a record by its number and its digest.
type Mark struct {
	Sequence uint64
	Digest   common.Hash
}

// Marks is the file. Programs that sign with one key on one host may share it.
// It is safe for concurrent use.
type Marks struct {
	path string
	db   *store.DB

	mu      sync.Mutex
	checked time.Time // see Check
	failed  error     // what it found then

	lateMu sync.Mutex
	late   map[common.Hash]lateMark // that commands here wait for, by the lease
}

// Open opens the file, makes it if there is none, and forgets the marks of leases
// that ended more than 400 days ago.
func Open(ctx context.Context, path string) (*Marks, error) {
	if strings.Contains(path, "://") {
		return nil, fmt.Errorf("high-water mark %s: it must be a file of its own on this host: beside what it guards it would be restored with it", redact.Database(path))
	}
	db, err := store.OpenBare(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("high-water mark: %w", err)
	}
	files, err := fs.Sub(migrations, "migrations")
	if err == nil {
		err = db.Migrate(ctx, "high water", files)
	}
	if err == nil {
		err = db.Update(ctx, func(tx *sqlx.Tx) error {
			before := time.Now().Add(-keep).Unix()
			_, err := tx.ExecContext(ctx, `DELETE FROM high_water WHERE at < ?`, before)
			if err == nil {
				_, err = tx.ExecContext(ctx, `DELETE FROM owed WHERE at < ?`, before)
			}
			if err == nil {
				_, err = tx.ExecContext(ctx, `DELETE FROM terms WHERE at < ?`, before)
			}
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("high-water mark %s: %w", path, err), db.Close())
	}
	return &Marks{path: path, db: db, late: make(map[common.Hash]lateMark)}, nil
}

// Raise puts on disk that a record is about to be signed; all that wait share one
// fsync. Sign only after it returned nil. The same record again is allowed, so
// that what a crash cut off can be signed; another one of its number, or an
// earlier one, is ErrBehind. What the record says is owed is kept with it.
func (m *Marks) Raise(ctx context.Context, key common.Address, lease common.Hash, next Mark, states Total) error {
	return m.db.Update(ctx, func(tx *sqlx.Tx) error {
		done, err := tx.Exec(`INSERT INTO high_water (key, lease, sequence, digest, at) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (key, lease) DO UPDATE SET sequence = excluded.sequence, digest = excluded.digest, at = excluded.at
			WHERE high_water.sequence < excluded.sequence`,
			key.Hex(), lease.Hex(), int64(next.Sequence), next.Digest.Hex(), time.Now().Unix())
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 1 {
			return errors.Join(err, raiseOwed(ctx, tx, states))
		}
		known, err := get(ctx, tx, key, lease)
		if err == nil && known != next {
			err = fmt.Errorf("lease %s, record %d: %w (%s has record %d)", lease, next.Sequence, ErrBehind, m.path, known.Sequence)
		}
		return err
	})
}

// Get returns the mark of a lease; the zero Mark if nothing was signed.
func (m *Marks) Get(ctx context.Context, key common.Address, lease common.Hash) (Mark, error) {
	mark, err := get(ctx, m.db.View(), key, lease)
	if err != nil {
		return mark, fmt.Errorf("high-water mark %s: lease %s: %w", m.path, lease, err)
	}
	return mark, nil
}

func get(ctx context.Context, q sqlx.QueryerContext, key common.Address, lease common.Hash) (Mark, error) {
	var row struct {
		Sequence int64  `db:"sequence"`
		Digest   string `db:"digest"`
	}
	err := sqlx.GetContext(ctx, q, &row, `SELECT sequence, digest FROM high_water WHERE key = ? AND lease = ?`, key.Hex(), lease.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return Mark{}, nil
	}
	return Mark{Sequence: uint64(row.Sequence), Digest: common.HexToHash(row.Digest)}, err
}

// RaiseNonce puts on disk that a transaction of a key is about to be signed.
func (m *Marks) RaiseNonce(ctx context.Context, key common.Address, chain, nonce uint64) error {
	err := m.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`INSERT INTO nonce_mark (key, chain, nonce) VALUES (?, ?, ?)
			ON CONFLICT (key, chain) DO UPDATE SET nonce = excluded.nonce WHERE nonce_mark.nonce < excluded.nonce`, key.Hex(), int64(chain), int64(nonce))
		return err
	})
	if err != nil {
		return fmt.Errorf("high-water mark %s: nonce %d of %s: %w", m.path, nonce, key, err)
	}
	return nil
}

// NextNonce is one above the highest nonce that a key has signed for on a chain, 0 if it has for none.
func (m *Marks) NextNonce(ctx context.Context, key common.Address, chain uint64) (uint64, error) {
	var next uint64
	err := m.db.View().GetContext(ctx, &next, `SELECT COALESCE(max(nonce) + 1, 0) FROM nonce_mark WHERE key = ? AND chain = ?`, key.Hex(), int64(chain))
	if err != nil {
		return 0, fmt.Errorf("high-water mark %s: nonces of %s: %w", m.path, key, err)
	}
	return next, nil
}

// Close closes the file.
func (m *Marks) Close() error { return m.db.Close() }

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
// in this user's state directory where the database is a server's. There it has the name of the metering key with which it was made, and is
// the same one with another key: it knows who has the devices, and the nonces of the payee's transactions.
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
	path := filepath.Join(dir, key.Hex()+".signed")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, nil // if it cannot be read Open says why
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("HighWater is empty and the default directory cannot be read: %w", err)
	}
	var made []string
	for _, file := range files {
		if name := file.Name(); strings.HasPrefix(name, "0x") && strings.HasSuffix(name, ".signed") {
			made = append(made, filepath.Join(dir, name))
		}
	}
	switch len(made) {
	case 0:
		return path, nil
	case 1:
		return made[0], nil
	default:
		return "", fmt.Errorf("HighWater is empty, this metering key has no file in %s, and other keys have several: one knows which leases this database's GPUs are in. Give the path of the one that was in use before the key was changed, or of a new one for a provider that is new: %s", dir, strings.Join(made, ", "))
	}
}
