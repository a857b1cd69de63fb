package leasestore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/database"
)

// lockTTL is how long a lock outlives the gateway that died with it.
const lockTTL = 30 * time.Second

// ErrLockLost is what a write gets whose lock ran out while its gateway was stopped, and that another gateway may have taken since.
var ErrLockLost = errors.New("this gateway was stopped for so long that another gateway took this request's place: nothing was written or sent, send the same request again")

// A Lock makes who holds it the only gateway to do what it names, for as long as it renews it. Its owner is drawn anew each time
// that it is taken and serves as a fencing token: whoever was stopped for longer than lockTTL still believes that it holds its
// claim, so what it does under it is written in one transaction with Check. nil is the lock of a lone provider, which nobody takes.
type Lock struct {
	store       Locks
	name, owner string
	log         *slog.Logger
	life        context.Context // ends with its gateway
	stop        context.CancelFunc
}

// NewName draws a name that no other gateway, request or lock has.
func NewName() string {
	var name [8]byte
	_, _ = rand.Read(name[:]) // crypto/rand.Read never fails: it ends the program instead
	return hex.EncodeToString(name[:])
}

// Locks keeps the locks that gateways take: see Lock.
type Locks struct{ db *store.DB }

// Take waits for a lock and renews it until it is released, or life ends.
func (s Locks) Take(ctx, life context.Context, name string, poll time.Duration, log *slog.Logger) (*Lock, error) {
	c := &Lock{store: s, name: name, owner: NewName(), log: log, life: life}
	for {
		ok, err := s.Try(ctx, name, c.owner, lockTTL)
		if err != nil {
			return nil, err
		}
		if ok {
			break
		}
		if err := chain.Pause(ctx, poll); err != nil {
			return nil, err
		}
	}
	renewing, stop := context.WithCancel(life)
	c.stop = stop
	go c.renew(renewing)
	return c, nil
}

// Try is true for the one owner of a lock, until it is given back or ttl is up, by the server's clock.
func (s Locks) Try(ctx context.Context, name, owner string, ttl time.Duration) (ok bool, err error) {
	err = s.db.Update(ctx, func(tx *sqlx.Tx) error {
		done, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO claims (name, owner, expires, ttl) VALUES (?, ?, `+database.ServerNow+` + ?, ?)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires = excluded.expires, ttl = excluded.ttl WHERE claims.expires < `+database.ServerNow),
			name, owner, ttl.Milliseconds(), ttl.Milliseconds())
		if err != nil {
			return err
		}
		n, err := done.RowsAffected()
		ok = n == 1
		return err
	})
	return ok, err
}

// renew keeps a lock that is still held.
func (s Locks) renew(ctx context.Context, name, owner string, ttl time.Duration) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE claims SET expires = `+database.ServerNow+` + ? WHERE name = ? AND owner = ?`), ttl.Milliseconds(), name, owner)
		return err
	})
}

// Drop gives a lock back that owner has.
func (s Locks) Drop(ctx context.Context, name, owner string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM claims WHERE name = ? AND owner = ?`), name, owner)
		return err
	})
}

// Taken reports whether somebody has a lock.
func (s Locks) Taken(ctx context.Context, name string) (bool, error) {
	var n int
	db := s.db.View()
	err := db.GetContext(ctx, &n, db.Rebind(`SELECT count(*) FROM claims WHERE name = ? AND expires > `+database.ServerNow), name)
	return n > 0, err
}

// renew keeps the lock while it is held.
func (c *Lock) renew(ctx context.Context) {
	for chain.Pause(ctx, lockTTL/4) == nil {
		if err := c.store.renew(ctx, c.name, c.owner, lockTTL); err != nil && ctx.Err() == nil {
			c.log.Warn("a claim was not renewed", "claim", c.name, "error", err)
		}
	}
}

// Check fails with ErrLockLost where the lock is not held any more. It keeps others from taking it until tx ends.
func (c *Lock) Check(tx *sqlx.Tx) error {
	if c == nil {
		return nil
	}
	var one int
	err := tx.Get(&one, tx.Rebind(`SELECT 1 FROM claims WHERE name = ? AND owner = ? FOR SHARE`), c.name, c.owner)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s: %w", c.name, ErrLockLost)
	}
	return err
}

// Guard is Check, nil where there is nothing to check.
func (c *Lock) Guard() func(*sqlx.Tx) error {
	if c == nil {
		return nil
	}
	return c.Check
}

// Held is Check for what is not written to the database.
func (c *Lock) Held(ctx context.Context) error {
	if c == nil {
		return nil
	}
	return c.store.db.Update(ctx, c.Check)
}

// Release lets others take the lock.
func (c *Lock) Release(ctx context.Context) {
	if c == nil {
		return
	}
	c.stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := c.store.Drop(ctx, c.name, c.owner); err != nil && c.life.Err() == nil {
		c.log.Warn("a claim was not given back: it ends by itself", "claim", c.name, "error", err)
	}
}

// All is a condition that holds where all of some do; nil ones always do.
func All(all ...func(*sqlx.Tx) error) func(*sqlx.Tx) error {
	all = slices.DeleteFunc(all, func(g func(*sqlx.Tx) error) bool { return g == nil })
	if len(all) == 0 {
		return nil
	}
	return func(tx *sqlx.Tx) error {
		for _, holds := range all {
			if err := holds(tx); err != nil {
				return err
			}
		}
		return nil
	}
}
