package highwater

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
)

// ErrNewerTerm refuses a command of a term when one of a later term has run on this host: another gateway has the lease.
var ErrNewerTerm = errors.New("a command of a later term has run on this host")

// ErrLate asks a command to wait for one of an earlier term that still runs: whichever ends last decides what the renter has.
var ErrLate = errors.New("a command of an earlier term still runs on this host")

// Enter puts on disk that a command of a term is about to run on a lease's devices. A late one is of a gateway that let go of the lease
// and runs until then at most, or until Leave: commands of later terms get ErrLate meanwhile, see lasts. Zero: it is not late.
func (m *Marks) Enter(ctx context.Context, lease common.Hash, term int64, late time.Time) error {
	known, err := m.term(ctx, m.db.View(), lease)
	if err == nil && known.Term == term && late.IsZero() {
		return nil // each write is one of the disk
	}
	if err == nil {
		err = m.db.Update(ctx, func(tx *sqlx.Tx) error {
			known, err := m.term(ctx, tx, lease)
			switch {
			case err != nil:
				return err
			case known.Term > term:
				return ErrNewerTerm
			case known.Term < term && m.lasts(lease, known):
				return ErrLate
			}
			until := int64(0)
			if !late.IsZero() {
				until = late.UnixNano()
			}
			return put(tx, lease, term, until)
		})
	}
	if err == nil {
		m.lateMu.Lock()
		delete(m.late, lease)
		m.lateMu.Unlock()
	}
	return m.explain(lease, err)
}

// lateMark is a late command's mark, and when this process saw it first, by its monotonic clock.
type lateMark struct {
	row  termRow
	seen time.Time
}

// lasts reports whether a late command may still run. Its mark is in wall time, which may have been set back since, before a restart of
// the host or after it: from when this process first sees it, it lasts no longer than it was given when it was written. Renters would
// have what they do not pay for meanwhile.
func (m *Marks) lasts(lease common.Hash, known termRow) bool {
	if time.Now().UnixNano() >= known.Late {
		return false
	}
	m.lateMu.Lock()
	defer m.lateMu.Unlock()
	mark := m.late[lease]
	if mark.row != known {
		mark = lateMark{known, time.Now()}
		m.late[lease] = mark
	}
	return time.Since(mark.seen) < time.Duration(known.Late-known.At*int64(time.Second))
}

// Leave puts on disk that a late command has ended.
func (m *Marks) Leave(ctx context.Context, lease common.Hash, term int64) error {
	return m.explain(lease, m.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`UPDATE terms SET late = 0 WHERE lease = ? AND term = ?`, lease.Hex(), term)
		return err
	}))
}

// SetTerm has a lease be in a term, lower or higher than the file's.
func (m *Marks) SetTerm(ctx context.Context, lease common.Hash, term int64) error {
	return m.explain(lease, m.db.Update(ctx, func(tx *sqlx.Tx) error { return put(tx, lease, term, 0) }))
}

func put(tx *sqlx.Tx, lease common.Hash, term, late int64) error {
	_, err := tx.Exec(`INSERT INTO terms (lease, term, late, at) VALUES (?, ?, ?, ?)
		ON CONFLICT (lease) DO UPDATE SET term = excluded.term, late = excluded.late, at = excluded.at`, lease.Hex(), term, late, time.Now().Unix())
	return err
}

// Term is the newest term in which a command of a lease ran on this host; 0: none is known.
func (m *Marks) Term(ctx context.Context, lease common.Hash) (int64, error) {
	known, err := m.term(ctx, m.db.View(), lease)
	return known.Term, m.explain(lease, err)
}

// Above is a term of a lease, or the one above all in which a command of it ran on this host where that is the same or later. A lease that is
// Reclaimed has none.
func (m *Marks) Above(ctx context.Context, lease common.Hash, term int64) (int64, error) {
	ran, err := m.Term(ctx, lease)
	if err == nil && ran >= term && ran < Reclaimed {
		term = ran + 1
	}
	return term, err
}

// Reclaimed is the term, above all others, of a lease that a database had forgotten and whose devices were taken back for that.
const Reclaimed = math.MaxInt64

// Reclaim puts on disk that no command of a lease is run any more, and that a database that knows it again does not go on with it.
func (m *Marks) Reclaim(ctx context.Context, lease common.Hash) error {
	return m.SetTerm(ctx, lease, Reclaimed)
}

// Ran reports whether a command of a term, or of a later one, has run on this host.
func (m *Marks) Ran(ctx context.Context, lease common.Hash, term int64) (bool, error) {
	known, err := m.term(ctx, m.db.View(), lease)
	return known.Term >= term, m.explain(lease, err)
}

type termRow struct {
	Term int64 `db:"term"`
	Late int64 `db:"late"` // unix nanoseconds
	At   int64 `db:"at"`   // unix seconds, when it was written
}

func (m *Marks) term(ctx context.Context, q sqlx.QueryerContext, lease common.Hash) (row termRow, err error) {
	err = sqlx.GetContext(ctx, q, &row, `SELECT term, late, at FROM terms WHERE lease = ?`, lease.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return row, err
}

func (m *Marks) explain(lease common.Hash, err error) error {
	if err != nil {
		err = fmt.Errorf("high-water mark %s: term of lease %s: %w", m.path, lease, err)
	}
	return err
}

// How long what Check found counts: whoever asks for the health of a gateway costs it no write of the disk each time.
const (
	goodFor = 5 * time.Second
	badFor  = time.Second
)

// checkTimeout is how long the file may take to be written.
const checkTimeout = 2 * time.Second

// Check writes to the file, unless it did so a moment ago, and says why that cannot be done.
func (m *Marks) Check(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	valid := goodFor
	if m.failed != nil {
		valid = badFor
	}
	if !m.checked.IsZero() && time.Since(m.checked) < valid {
		return m.failed
	}
	done := make(chan error, 1)
	go func() { // the store waits longer than who asks
		done <- m.db.Update(context.WithoutCancel(ctx), func(tx *sqlx.Tx) error {
			_, err := tx.Exec(`INSERT INTO probe (id, at) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET at = excluded.at`, time.Now().UnixNano())
			return err
		})
	}()
	var err error
	select {
	case err = <-done:
	case <-time.After(checkTimeout):
		err = fmt.Errorf("it could not be written for %s", checkTimeout)
	case <-ctx.Done():
		return ctx.Err() // which says nothing of the file
	}
	if m.failed = nil; err != nil {
		m.failed = fmt.Errorf("high-water mark %s: nothing can be signed before this file can be written: %w", m.path, err)
	}
	m.checked = time.Now()
	return m.failed
}
