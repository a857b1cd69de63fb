package sdk

import (
	"context"
	"database/sql"
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

// leaderPause is between two tries to lead.
const leaderPause = time.Second

// leader does what only one of several processes over a database may do: watch
// the chain, work the outbox and settle. Who leads is a row that runs out by the
// server's clock (see restamp for one that was set back). It is renewed only after a look at what the work needs: a
// process that is stopped, or whose endpoint is dead, leads no longer than ttl,
// whatever connections its kernel keeps open. A term that grows with each change
// of leader is checked in the transaction of every write: a process that does not
// know yet that it leads no more writes nothing.
type leader struct {
	db    *store.DB
	name  string
	owner string
	ttl   time.Duration // how long it leads without a look
	log   *slog.Logger
	// look fails where the work cannot be done from here now.
	look func(ctx context.Context) error
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
	vacant, err := l.vacant(ctx)
	if err != nil || !vacant {
		return err
	}
	if err := l.looked(ctx, time.Now().Add(l.ttl)); err != nil {
		return fmt.Errorf("nobody leads, and this process cannot: %w", err)
	}
	until := time.Now().Add(l.ttl) // before the row's time begins: it never ends after ours
	term, err := l.elect(ctx)
	if err != nil || term == 0 {
		return err
	}
	l.log.Info("this process leads", "name", l.name, "term", term)
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- l.work(work, l.db.Guard(l.guard(term))) }()
	held := make(chan error, 1)
	go func() { held <- l.hold(work, term, until, cancel) }()
	select {
	case err = <-done:
		cancel()
		<-held
	case err = <-held:
		cancel()
		err = errors.Join(err, run.Ended(<-done))
	}
	l.resign(ctx, term)
	return err
}

// looked is look, with an end.
func (l *leader) looked(ctx context.Context, until time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	return l.look(ctx)
}

// hold renews the row for as long as there is a look before each time. The work is
// told to end when our time is up, also while a look or the database keeps us.
func (l *leader) hold(ctx context.Context, term int64, until time.Time, cancel func()) error {
	expiry := time.AfterFunc(time.Until(until), func() {
		l.log.Warn("this process leads no more: it could not look in time, or not say so", "name", l.name, "term", term, "within", l.ttl)
		cancel()
	})
	defer expiry.Stop()
	var failed error
	for chain.Pause(ctx, l.ttl/4) == nil {
		began := time.Now()
		if failed = l.looked(ctx, until); failed == nil {
			failed = l.renew(ctx, term)
		}
		switch {
		case errors.Is(failed, errDeposed):
			return failed
		case failed == nil && expiry.Stop():
			until = began.Add(l.ttl)
			expiry.Reset(time.Until(until))
		}
	}
	if failed != nil {
		return fmt.Errorf("%s: leads no more: %w", l.name, failed)
	}
	return nil
}

// lapsed is a row of leaders whose time is up.
const lapsed = `leaders.expires <= ` + serverNow

// vacant reports whether nobody leads.
func (l *leader) vacant(ctx context.Context) (bool, error) {
	var held int
	view := l.db.View()
	err := view.GetContext(ctx, &held, view.Rebind(`SELECT count(*) FROM leaders WHERE name = ? AND NOT `+lapsed), l.name)
	return held == 0, err
}

// elect begins a term. From here on the guard of every earlier one refuses. It is
// 0 if another process was faster.
func (l *leader) elect(ctx context.Context) (term int64, err error) {
	err = l.db.Update(ctx, func(tx *sqlx.Tx) error {
		return tx.GetContext(ctx, &term, tx.Rebind(`INSERT INTO leaders (name, owner, term, expires, ttl) VALUES (?, ?, 1, `+serverNow+` + ?, ?)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, term = leaders.term + 1, expires = excluded.expires, ttl = excluded.ttl
			WHERE `+lapsed+` RETURNING term`), l.name, l.owner, l.ttl.Milliseconds(), l.ttl.Milliseconds())
	})
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return term, err
}

// renew has the term go on for another ttl.
func (l *leader) renew(ctx context.Context, term int64) error { return l.setExpiry(ctx, term, l.ttl) }

// resign lets another process lead at once.
func (l *leader) resign(ctx context.Context, term int64) {
	err := l.setExpiry(context.WithoutCancel(ctx), term, 0)
	if err != nil && !errors.Is(err, errDeposed) {
		l.log.Warn("others will notice only after a while that nobody leads", "name", l.name, "error", err)
	}
}

func (l *leader) setExpiry(ctx context.Context, term int64, ttl time.Duration) error {
	return l.db.Update(ctx, func(tx *sqlx.Tx) error {
		done, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leaders SET expires = `+serverNow+` + ?, ttl = ? WHERE name = ? AND term = ?`),
			ttl.Milliseconds(), ttl.Milliseconds(), l.name, term)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(fmt.Errorf("%s: %w: our term was %d", l.name, errDeposed, term), err)
		}
		return nil
	})
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
