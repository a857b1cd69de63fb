package cluster

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
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/run"
)

// ErrDeposed is what a write gets that was begun by a process which leads no more.
var ErrDeposed = errors.New("another process leads now; nothing was written")

// leaderPause is between two tries to lead.
const leaderPause = time.Second

// Leader is one process's part in the election of the one of several over a database that may watch the chain, work the outbox and
// settle. The lead is a row that runs out by the server's clock (see restamp for one that was set back). It is renewed only after a
// check of what the work needs: a process that is stopped, or whose endpoint is dead, leads no longer than TTL, whatever connections
// its kernel keeps open. The term grows with each change of leader and is the fencing token: it is checked in the transaction of
// every write, so that a process which does not know yet that it leads no more writes nothing.
type Leader struct {
	DB    *store.DB
	Name  string
	Owner string
	TTL   time.Duration // how long it leads without a check
	Log   *slog.Logger
	// Check fails where the work cannot be done from here now.
	Check func(ctx context.Context) error
	// Work runs while we lead, until its context ends. It writes through the DB
	// that it is given, and no other.
	Work func(ctx context.Context, db *store.DB) error
}

// Run leads whenever it can, until the context ends.
func (l *Leader) Run(ctx context.Context) error {
	var pace chain.Backoff
	for {
		wait := leaderPause
		if err := l.campaign(ctx); err != nil && ctx.Err() == nil {
			wait = max(wait, pace.Next())
			l.Log.Warn("leading failed", "name", l.Name, "error", err, "retry", wait)
		} else {
			pace.Reset()
		}
		if err := chain.Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// campaign leads until the context ends or the lead is lost. It returns nil where another process leads.
func (l *Leader) campaign(ctx context.Context) error {
	vacant, err := l.vacant(ctx)
	if err != nil || !vacant {
		return err
	}
	if err := l.check(ctx, time.Now().Add(l.TTL)); err != nil {
		return fmt.Errorf("nobody leads, and this process cannot: %w", err)
	}
	until := time.Now().Add(l.TTL) // before the row's time begins: it never ends after ours
	term, err := l.elect(ctx)
	if err != nil || term == 0 {
		return err
	}
	l.Log.Info("this process leads", "name", l.Name, "term", term)
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- l.Work(work, l.DB.Guard(l.withFence(term))) }()
	held := make(chan error, 1)
	go func() { held <- l.watchLock(work, term, until, cancel) }()
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

// check is Check, with an end.
func (l *Leader) check(ctx context.Context, until time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	return l.Check(ctx)
}

// watchLock renews the row, after a check each time. cancel tells the work to end when the time is up, also while a check or the database
// keeps us.
func (l *Leader) watchLock(ctx context.Context, term int64, until time.Time, cancel func()) error {
	expiry := time.AfterFunc(time.Until(until), func() {
		l.Log.Warn("this process leads no more: it could not look in time, or not say so", "name", l.Name, "term", term, "within", l.TTL)
		cancel()
	})
	defer expiry.Stop()
	var failed error
	for chain.Pause(ctx, l.TTL/4) == nil {
		began := time.Now()
		if failed = l.check(ctx, until); failed == nil {
			failed = l.renew(ctx, term)
		}
		switch {
		case errors.Is(failed, ErrDeposed):
			return failed
		case failed == nil && expiry.Stop():
			until = began.Add(l.TTL)
			expiry.Reset(time.Until(until))
		}
	}
	if failed != nil {
		return fmt.Errorf("%s: leads no more: %w", l.Name, failed)
	}
	return nil
}

// expired is a row of leaders whose time is over.
const expired = `leaders.expires <= ` + database.ServerNow

// vacant reports whether nobody leads.
func (l *Leader) vacant(ctx context.Context) (bool, error) {
	var held int
	view := l.DB.View()
	err := view.GetContext(ctx, &held, view.Rebind(`SELECT count(*) FROM leaders WHERE name = ? AND NOT `+expired), l.Name)
	return held == 0, err
}

// elect begins a term: from here on the fence of every earlier one refuses. It is 0 if another process was faster.
func (l *Leader) elect(ctx context.Context) (term int64, err error) {
	err = l.DB.Update(ctx, func(tx *sqlx.Tx) error {
		return tx.GetContext(ctx, &term, tx.Rebind(`INSERT INTO leaders (name, owner, term, expires, ttl) VALUES (?, ?, 1, `+database.ServerNow+` + ?, ?)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, term = leaders.term + 1, expires = excluded.expires, ttl = excluded.ttl
			WHERE `+expired+` RETURNING term`), l.Name, l.Owner, l.TTL.Milliseconds(), l.TTL.Milliseconds())
	})
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return term, err
}

// renew has the term go on for another ttl.
func (l *Leader) renew(ctx context.Context, term int64) error { return l.setExpiry(ctx, term, l.TTL) }

// resign lets another process lead at once.
func (l *Leader) resign(ctx context.Context, term int64) {
	err := l.setExpiry(context.WithoutCancel(ctx), term, 0)
	if err != nil && !errors.Is(err, ErrDeposed) {
		l.Log.Warn("others will notice only after a while that nobody leads", "name", l.Name, "error", err)
	}
}

func (l *Leader) setExpiry(ctx context.Context, term int64, ttl time.Duration) error {
	return l.DB.Update(ctx, func(tx *sqlx.Tx) error {
		done, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leaders SET expires = `+database.ServerNow+` + ?, ttl = ? WHERE name = ? AND term = ?`),
			ttl.Milliseconds(), ttl.Milliseconds(), l.Name, term)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(fmt.Errorf("%s: %w: our term was %d", l.Name, ErrDeposed, term), err)
		}
		return nil
	})
}

// withFence locks the term's row until a write is over, so that no write of an old term comes after the first of a new one.
func (l *Leader) withFence(term int64) func(tx *sqlx.Tx) error {
	return func(tx *sqlx.Tx) error {
		var now int64
		if err := tx.Get(&now, tx.Rebind(`SELECT term FROM leaders WHERE name = ? FOR SHARE`), l.Name); err != nil {
			return err
		}
		if now != term {
			return fmt.Errorf("%s: %w: our term is %d, the newest %d", l.Name, ErrDeposed, term, now)
		}
		return nil
	}
}
