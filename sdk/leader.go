package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/run"
)

// errDeposed is what a write gets that was begun by a process which leads no
// more.
var errDeposed = errors.New("another process leads now; nothing was written")

const (
	// leaderPause is between two tries to lead: the next leader is there about
	// this long after the last one died.
	leaderPause = time.Second
	// leaderTimeout is how long the database may take to say that we still lead.
	leaderTimeout = 3 * time.Second
)

// leader does what only one of several processes over a database may do: watch
// the chain, work the outbox and settle. Two things make sure of it. A lock that
// ends with its holder's connection says who may begin. A term that grows with
// each change of leader is checked in the transaction of every write: a process
// that was stopped, or cut off, and does not know yet that it leads no more,
// writes nothing.
type leader struct {
	db    *store.DB
	name  string
	owner string
	log   *slog.Logger
	// work runs while we lead, until its context ends. It writes through the DB
	// that it is given, and no other.
	work func(ctx context.Context, db *store.DB) error
}

// run leads whenever it can, until the context ends.
func (l *leader) run(ctx context.Context) error {
	var pace chain.Backoff
	for {
		wait := leaderPause
		if err := l.lead(ctx); err != nil && ctx.Err() == nil {
			wait = max(wait, pace.Next())
			l.log.Warn("leading failed", "name", l.name, "error", err, "retry", wait)
		} else {
			pace.Reset()
		}
		if err := chain.Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// lead returns nil where another process leads.
func (l *leader) lead(ctx context.Context) error {
	lock, err := l.db.TryLock(ctx, l.name)
	if err != nil || lock == nil {
		return err
	}
	defer lock.Close()
	term, err := l.elect(ctx)
	if err != nil {
		return err
	}
	l.log.Info("this process leads", "name", l.name, "term", term)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- l.work(ctx, l.db.Guard(l.guard(term))) }()
	select {
	case err = <-done:
		return err
	case err = <-l.hold(ctx, lock):
		cancel()
		return errors.Join(err, run.Ended(<-done))
	}
}

// hold tells when the lock is lost.
func (l *leader) hold(ctx context.Context, lock *store.Lock) <-chan error {
	lost := make(chan error, 1)
	go func() {
		for {
			if chain.Pause(ctx, leaderPause) != nil {
				lost <- nil
				return
			}
			check, cancel := context.WithTimeout(ctx, leaderTimeout)
			err := lock.Check(check)
			cancel()
			if err != nil && ctx.Err() == nil {
				lost <- fmt.Errorf("%s: the lock is lost: %w", l.name, err)
				return
			}
		}
	}()
	return lost
}

// elect begins a term. From here on the guard of every earlier one refuses.
func (l *leader) elect(ctx context.Context) (term int64, err error) {
	err = l.db.Update(ctx, func(tx *sqlx.Tx) error {
		return tx.GetContext(ctx, &term, tx.Rebind(`INSERT INTO leaders (name, owner, term) VALUES (?, ?, 1)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, term = leaders.term + 1 RETURNING term`), l.name, l.owner)
	})
	return term, err
}

// guard holds the term's row until the write is over, so that no write of an old
// term comes after the first of a new one.
func (l *leader) guard(term int64) func(tx *sqlx.Tx) error {
	return func(tx *sqlx.Tx) error {
		var now int64
		if err := tx.Get(&now, tx.Rebind(`SELECT term FROM leaders WHERE name = ? FOR SHARE`), l.name); err != nil {
			return err
		}
		if now != term {
			return fmt.Errorf("%s: %w: our term is %d, the newest %d", l.name, errDeposed, term, now)
		}
		return nil
	}
}
