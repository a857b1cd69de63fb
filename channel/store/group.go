package store

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
)

// maxGroup bounds a transaction, and so how long the last writer in it waits.
const maxGroup = 1024

// op is one writer that waits for its part in a group.
type op struct {
	ctx  context.Context
	id   common.Hash // of the channel it changes, if that is all it does
	run  func(*group) error
	done chan struct{}
	err  error
}

// group is one transaction for all writers that wait.
type group struct {
	db       *shared
	ctx      context.Context // of the transaction
	tx       *sqlx.Tx
	channels map[common.Hash]*entry // payee channels read or changed in it
	touched  []common.Hash          // those changed by the writer that runs
	broken   error                  // the transaction is gone, by the writer that runs
}

// Update runs fn in a transaction that it shares with other writers, and returns
// when it is on disk. If fn returns an error, what it wrote is undone, and that
// of the others is not. fn may run more than once. It must use tx only, must not
// end it, and must not call the DB, which would wait for itself; but for Charge,
// through which alone it changes a channel.
//
// On PostgreSQL each call has a transaction of its own.
func (db *DB) Update(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	if db.guard != nil {
		guarded := fn
		fn = func(tx *sqlx.Tx) error {
			if err := db.guard(tx); err != nil {
				return err
			}
			return guarded(tx)
		}
	}
	if db.dialect == postgres {
		return db.alone(ctx, fn)
	}
	return db.submit(&op{ctx: ctx, run: func(g *group) error { return g.sql(fn) }})
}

// submit queues a writer and waits for its group. One whose context ends while
// it is queued is not run. Once it runs its answer is awaited: nobody is told
// that a write failed which is on disk.
func (db *shared) submit(o *op) error {
	if err := o.ctx.Err(); err != nil {
		return err
	}
	o.done = make(chan struct{})
	db.mu.RLock()
	if db.closed {
		db.mu.RUnlock()
		return fmt.Errorf("store %s: %w", db.path, ErrClosed)
	}
	db.queue <- o
	db.mu.RUnlock()
	<-o.done
	return o.err
}

// loop commits one group after the other. While one is being synced the next one
// gathers.
func (db *shared) loop() {
	defer close(db.idle)
	for first := range db.queue {
		ops := append(make([]*op, 0, 1+len(db.queue)), first)
		for len(ops) < maxGroup && len(db.queue) > 0 {
			ops = append(ops, <-db.queue)
		}
		db.commit(ops)
	}
}

// commit answers all ops. A writer that broke the transaction for all (its
// context ended in the middle of a statement, say) is answered with its error,
// and the others are run again without it.
func (db *shared) commit(ops []*op) {
	for tries := 0; len(ops) > 0; tries++ {
		culprit, err := db.try(ops)
		if culprit < 0 && tries < retries && transient(err) {
			continue // another process was in the way: nothing was kept
		}
		if culprit < 0 {
			answer(ops, err)
			return
		}
		answer(ops[culprit:culprit+1], err)
		ops = append(ops[:culprit], ops[culprit+1:]...)
	}
}

// answer releases writers. An error goes also to those that failed by
// themselves: they may have seen what is not kept.
func answer(ops []*op, err error) {
	for _, o := range ops {
		if err != nil {
			o.err = err
		}
		close(o.done)
	}
}

// try runs the group and syncs it. With an error nothing is kept; the error is
// the culprit's, or everyone's if that is negative.
func (db *shared) try(ops []*op) (culprit int, err error) {
	ctx, cancel := db.span()
	defer cancel()
	tx, err := db.writer.BeginTxx(ctx, nil)
	if err != nil {
		return -1, db.explain(err)
	}
	g := &group{db: db, ctx: ctx, tx: tx, channels: make(map[common.Hash]*entry, len(ops))}
	if db.dialect == sqlite {
		db.running = g
		defer func() { db.running = nil }()
		err = db.cache.check(tx)
	} else {
		err = g.prefetch(ops)
	}
	if err != nil {
		tx.Rollback()
		return -1, db.explain(err)
	}
	for i, o := range ops {
		if o.err = o.ctx.Err(); o.err == nil {
			o.err = db.explain(g.guard(o.run))
		}
		if g.broken != nil {
			tx.Rollback() // the cause says more than its failure could
			return i, db.explain(g.broken)
		}
	}
	if err := g.flush(); err != nil {
		tx.Rollback()
		return -1, db.explain(err)
	}
	if err := tx.Commit(); err != nil {
		return -1, db.explain(err)
	}
	if db.dialect == sqlite {
		db.cache.keep(g.channels)
	}
	return -1, nil
}

// span bounds a transaction where somebody else's server may not answer.
func (db *shared) span() (context.Context, context.CancelFunc) {
	if db.dialect == postgres {
		return context.WithTimeout(context.Background(), patience)
	}
	return context.Background(), func() {}
}

// guard keeps one writer's panic from the others: it becomes that writer's
// error.
func (g *group) guard(run func(*group) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("store: a write panicked: %v\n%s", r, debug.Stack())
		}
	}()
	return run(g)
}

// sql runs fn between savepoints. A savepoint that is gone means that SQLite
// rolled the whole transaction back (a full disk, say): then nobody's work stands.
func (g *group) sql(fn func(tx *sqlx.Tx) error) error {
	if err := g.flush(); err != nil {
		g.broken = err
		return err
	}
	if _, err := g.tx.Exec("SAVEPOINT writer"); err != nil {
		g.broken = err
		return err
	}
	g.touched = nil
	failure := g.guard(func(g *group) error { return fn(g.tx) })
	end := "RELEASE writer"
	if failure != nil {
		end = "ROLLBACK TO writer; RELEASE writer"
	}
	_, err := g.tx.Exec(end)
	if err == nil && failure != nil {
		err = g.reload()
	}
	if err != nil {
		g.broken = err
		if failure != nil {
			g.broken = failure
		}
		return g.broken
	}
	return failure
}

// reload reads again the channels whose changes were undone.
func (g *group) reload() error {
	for _, id := range g.touched {
		s, err := lockPayee(g.tx, id)
		if err != nil {
			return err
		}
		g.channels[id] = &entry{state: s}
	}
	return nil
}
