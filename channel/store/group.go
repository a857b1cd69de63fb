package store

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
)

// maxGroup bounds a transaction, and so how long the last writer in it waits, and
// how many of them do nothing meanwhile.
const maxGroup = 512

// soon is how long a writer that nobody waits for waits for others.
const soon = 5 * time.Millisecond

// op is one writer that waits for its part in a group: a change of one payee's
// channel, or anything else.
type op struct {
	ctx    context.Context
	id     common.Hash
	terms  channel.Terms // PostgreSQL: of the channel
	change func(*channel.State) error
	kept   channel.State      // after the change
	run    func(*group) error // nil: it is a change
	soon   bool               // it waits for the next one that does not
	held   bool               // PostgreSQL: it was not run, because somebody else has its row locked
	done   chan struct{}
	err    error
}

// opPool: there is an op for each voucher.
var opPool = sync.Pool{New: func() any { return &op{done: make(chan struct{}, 1)} }}

func (o *op) release() {
	*o = op{done: o.done}
	opPool.Put(o)
}

// group is one transaction for all writers that wait. A store has one, and what
// it is made of, for all its groups.
type group struct {
	db       *shared
	tx       *sqlx.Tx
	conn     *sqlx.Conn             // SQLite: what tx is on
	waits    bool                   // PostgreSQL: for rows that somebody else has locked
	held     []*op                  // PostgreSQL: those that were not run, because their rows are
	channels map[common.Hash]*entry // payee channels read or changed in it
	dirty    []*entry               // those to be written
	spare    []*entry
	next     scratch
	row      rowArgs
	touched  []common.Hash // those changed by the writer that runs
	broken   error         // the transaction is gone, by the writer that runs
}

// Update runs fn in a transaction that it shares with other writers, and returns
// when it is on disk. If fn returns an error, what it wrote is undone, and that
// of the others is not. fn may run more than once. It must use tx only, must not
// end it, and must not call the DB, which would wait for itself; but for Charge,
// through which alone it changes a channel.
//
// On PostgreSQL each call has a transaction of its own.
func (db *DB) Update(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	return db.update(ctx, fn, false)
}

// UpdateSoon is Update for what nobody waits for: it joins the group of the next
// writer, and is a group of its own only if there is none for 5 ms.
func (db *DB) UpdateSoon(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	return db.update(ctx, fn, true)
}

func (db *DB) update(ctx context.Context, fn func(tx *sqlx.Tx) error, soon bool) error {
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
	o := opPool.Get().(*op)
	defer o.release()
	o.ctx, o.soon, o.run = ctx, soon, func(g *group) error { return g.sql(fn) }
	return db.submit(o)
}

// submit queues a writer and waits for its group. One whose context ends while
// it is queued is not run. Once it runs its answer is awaited: nobody is told
// that a write failed which is on disk.
func (db *shared) submit(o *op) error {
	if err := o.ctx.Err(); err != nil {
		return err
	}
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

// unlessClosed returns ErrClosed instead of what a closed database says.
func (db *shared) unlessClosed(err error) error {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if db.closed {
		return fmt.Errorf("store %s: %w", db.path, ErrClosed)
	}
	return err
}

// loop commits one group after the other. While one is being synced the next one
// gathers.
func (db *shared) loop() {
	defer close(db.idle)
	g := &group{db: db, channels: make(map[common.Hash]*entry)}
	commit := g.commit
	if db.dialect == postgres {
		commit = g.commitServer
	}
	waiting := make([]*op, 0, maxGroup)
	for first := range db.queue {
		waiting = db.company(append(waiting[:0], first))
		// Those that check a voucher just now join: a commit costs as much for few as
		// for many. Where nobody else has work, this returns at once.
		runtime.Gosched()
		for len(waiting) < maxGroup && len(db.queue) > 0 {
			waiting = append(waiting, <-db.queue)
		}
		commit(waiting)
	}
}

// company waits, with writers that can, for one that cannot.
func (db *shared) company(waiting []*op) []*op {
	if !waiting[0].soon {
		return waiting
	}
	late := time.NewTimer(soon)
	defer late.Stop()
	for len(waiting) < maxGroup {
		select {
		case o, open := <-db.queue:
			if !open {
				return waiting
			}
			if waiting = append(waiting, o); !o.soon {
				return waiting
			}
		case <-late.C:
			return waiting
		}
	}
	return waiting
}

// commit answers all ops. A writer that broke the transaction for all (its
// context ended in the middle of a statement, say) is answered with its error,
// and the others are run again without it.
func (g *group) commit(ops []*op) {
	for tries := 0; len(ops) > 0; tries++ {
		culprit, err := g.try(ops)
		g.clear()
		if culprit < 0 && tries < retries && transient(err) {
			continue // another process was in the way: nothing was kept
		}
		if culprit < 0 {
			if err == nil {
				ops = g.served(ops)
			}
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
		o.done <- struct{}{} // from here on it is somebody else's
	}
}

// try runs the group and syncs it. With an error nothing is kept; the error is
// the culprit's, or everyone's if that is negative.
func (g *group) try(ops []*op) (culprit int, err error) {
	if g.db.dialect == postgres {
		return -1, g.db.explain(g.tryServer(ops))
	}
	culprit, err = g.tryFile(ops)
	return culprit, g.db.explain(err)
}

func (g *group) tryFile(ops []*op) (culprit int, err error) {
	ctx := context.Background()
	if g.conn, err = g.db.writer.Connx(ctx); err != nil {
		return -1, err
	}
	defer g.conn.Close()
	if g.tx, err = g.conn.BeginTxx(ctx, nil); err != nil {
		return -1, err
	}
	g.db.running = g
	defer func() { g.db.running = nil }()
	if err := g.db.cache.check(g.tx); err != nil {
		g.tx.Rollback()
		return -1, err
	}
	for i, o := range ops {
		g.serve(o)
		if g.broken != nil {
			g.tx.Rollback() // the cause says more than its failure could
			return i, g.broken
		}
	}
	if err := g.flush(); err != nil {
		g.tx.Rollback()
		return -1, err
	}
	if err := g.tx.Commit(); err != nil {
		return -1, err
	}
	g.db.cache.keep(g.channels)
	return -1, nil
}

// clear makes the group ready for the next one.
func (g *group) clear() {
	for _, e := range g.channels {
		*e = entry{}
		g.spare = append(g.spare, e)
	}
	clear(g.channels)
	g.dirty = g.dirty[:0]
	g.tx, g.conn, g.touched, g.broken = nil, nil, nil, nil
}

// serve runs one writer.
func (g *group) serve(o *op) {
	if o.err = o.ctx.Err(); o.err == nil {
		o.err = g.db.explain(g.do(o))
	}
}

func (g *group) do(o *op) (err error) {
	defer contain(&err)
	if o.run != nil {
		return o.run(g)
	}
	return g.change(o)
}

// contain is deferred: one writer's panic becomes that writer's error, and the
// others do not notice.
func contain(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("store: a write panicked: %v\n%s", r, debug.Stack())
	}
}

// contained runs fn, a stranger's.
func contained(tx *sqlx.Tx, fn func(*sqlx.Tx) error) (err error) {
	defer contain(&err)
	return fn(tx)
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
	failure := contained(g.tx, fn)
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
		s, err := lockPayee(context.Background(), g.tx, id)
		if err != nil {
			return err
		}
		g.keep(id, s)
	}
	return nil
}
