// Package budget keeps a daily budget on disk, for requests whose cost is known when they are over.
//
// A Books is an SQLite file. Reserve counts a request at the most that it may cost, before it is sent, and refuses it where the budget
// of the day, or that of its local key, does not hold it: both are asked and changed in one transaction. Dispatch names the request
// before it is sent, Done corrects what it counts at, and Correct does once a provider's record says what was billed. What a killed
// process left counts at its most until a record names it, or Settle says that no record will.
//
// Days are UTC, by the time that Reserve is given; what is corrected later counts in the day in which it was reserved. A clock that is
// set back finds what was counted in that day before. Amounts are [route.Nano]; a Books never lets one pass 2^256 of them.
package budget

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/route"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ErrUnknown says that a reservation is none, or is over: nothing may be sent for it any more.
var ErrUnknown = errors.New("reservation is over, or was never made")

// ExceededError says that a budget does not hold what a request may cost. Nothing was reserved, and nothing may be sent.
type ExceededError struct {
	Key   string     // of whom the budget is; empty: of all together
	Limit route.Nano // of the day
	Left  route.Nano // of it
	Most  route.Nano // that the request may cost
	Ends  time.Time  // when the day does, and the next budget begins
}

func (e *ExceededError) Error() string {
	whose := "today's budget"
	if e.Key != "" {
		whose = fmt.Sprintf("today's budget of key %.64q", e.Key)
	}
	return fmt.Sprintf("%s of %s base units has %s left, and this may cost %s: nothing was sent; the day ends at %s: wait until then, or raise it",
		whose, e.Limit, e.Left, e.Most, e.Ends.Format(time.RFC3339))
}

// Limits are the budgets of a UTC day.
type Limits struct {
	All route.Nano  // of all together
	Key *route.Nano // of a reservation's local key; nil: it has none of its own
}

// Books is the file. It is safe for concurrent use; one process has it open.
type Books struct{ db *store.DB }

// Open opens the file, and makes it if there is none. Another process that has it open is store.ErrInUse. What a process that ended had
// reserved and sent nothing for is free again; what it had sent counts at its most.
func Open(ctx context.Context, path string) (*Books, error) {
	if strings.Contains(path, "://") {
		return nil, fmt.Errorf("budget: %s is not a file on this host: on a server two processes could have one budget each", redact.Database(path))
	}
	db, err := database.Open(ctx, path, "budget", migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("budget: %w", err)
	}
	b := &Books{db: db}
	if err := b.update(ctx, b.freeUnsent); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return b, nil
}

// Close closes the file.
func (b *Books) Close() error { return b.db.Close() }

func (b *Books) update(ctx context.Context, change func(ctx context.Context, tx *sqlx.Tx) error) error {
	return b.db.Update(ctx, func(tx *sqlx.Tx) error { return change(ctx, tx) })
}

// The states of a hold.
const (
	held  = "held"  // at its most: it may be sent, and may run
	done  = "done"  // at what its caller measured
	aside = "aside" // kept for what a channel's records may come to more
	final = "final" // at what was billed, or nothing
)

// hold is a row of budget_holds.
type hold struct {
	ID      int64  `db:"id"`
	Day     string `db:"day"`
	Key     string `db:"key"`
	State   string `db:"state"`
	Counted string `db:"counted"`
	Billed  string `db:"billed"`
	Channel string `db:"channel"`
	Request int64  `db:"request"`
}

const selectHold = `SELECT id, day, key, state, counted, billed, channel, request FROM budget_holds `

// freeUnsent frees what an earlier process reserved and sent nothing for: each request is named here before it is sent.
func (b *Books) freeUnsent(ctx context.Context, tx *sqlx.Tx) error {
	return each(ctx, tx, func(h hold) error { return count(ctx, tx, h, route.Nano{}, final) }, `WHERE state = ? AND channel = ''`, held)
}

// each runs a change on the holds of a condition.
func each(ctx context.Context, tx *sqlx.Tx, change func(hold) error, where string, args ...any) error {
	var rows []hold
	if err := tx.SelectContext(ctx, &rows, selectHold+where, args...); err != nil {
		return err
	}
	for _, h := range rows {
		if err := change(h); err != nil {
			return err
		}
	}
	return nil
}

// Reserve counts a request of a local key at the most that it may cost, on disk when it returns, or refuses it by an *ExceededError.
// The id is for Dispatch and Done.
func (b *Books) Reserve(ctx context.Context, at time.Time, key string, limits Limits, most route.Nano) (id int64, err error) {
	if len(key) > 256 {
		return 0, fmt.Errorf("budget: a key's name has %d bytes, at most 256 are kept", len(key))
	}
	err = b.update(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		id, err = reserve(ctx, tx, hold{Day: Day(at), Key: key, State: held}, limits, most)
		return err
	})
	return id, err
}

// Aside reserves, once for each day, key and channel of a reservation, over: what the channel's records may come to more than its requests
// measured. The reservation counts at most from then on: where it was made at both together this always fits. An *ExceededError leaves it
// as it is.
func (b *Books) Aside(ctx context.Context, id int64, channel string, limits Limits, most, over route.Nano) error {
	return b.update(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		h, err := get(ctx, tx, `WHERE id = ? AND state = ?`, id, held)
		if err != nil {
			return err
		}
		if err := count(ctx, tx, h, most, held); err != nil {
			return err
		}
		_, err = get(ctx, tx, `WHERE channel = ? AND state = ? AND day = ? AND key = ?`, channel, aside, h.Day, h.Key)
		if errors.Is(err, ErrUnknown) {
			_, err = reserve(ctx, tx, hold{Day: h.Day, Key: h.Key, State: aside, Channel: channel}, limits, over)
		}
		return err
	})
}

// reserve asks both budgets and makes a hold.
func reserve(ctx context.Context, tx *sqlx.Tx, h hold, limits Limits, most route.Nano) (int64, error) {
	if err := fits(ctx, tx, h.Day, "", limits.All, most); err != nil {
		return 0, err
	}
	if h.Key != "" && limits.Key != nil {
		if err := fits(ctx, tx, h.Day, h.Key, *limits.Key, most); err != nil {
			return 0, err
		}
	}
	if err := move(ctx, tx, h, route.Nano{}, most); err != nil {
		return 0, err
	}
	made, err := tx.ExecContext(ctx, `INSERT INTO budget_holds (day, key, state, counted, channel) VALUES (?, ?, ?, ?, ?)`, h.Day, h.Key, h.State, most.String(), h.Channel)
	if err != nil {
		return 0, err
	}
	return made.LastInsertId()
}

// fits refuses what a budget does not hold.
func fits(ctx context.Context, tx *sqlx.Tx, day, key string, limit, most route.Nano) error {
	counted, err := countedIn(ctx, tx, day, key)
	if err != nil {
		return err
	}
	limit = bounded(limit)
	if total := counted.Add(most); total.Cmp(limit) <= 0 {
		return nil
	}
	begins, err := time.Parse(time.DateOnly, day)
	if err != nil {
		return err
	}
	return &ExceededError{Key: key, Limit: limit, Left: limit.Sub(counted), Most: most, Ends: begins.AddDate(0, 0, 1)}
}

// bounded is an amount, or the most that a channel can hold if that is less: no sum of what is kept passes 256 bits.
func bounded(n route.Nano) route.Nano {
	var all uint256.Int
	most, err := route.Amount(*all.Sub(all.Lsh(uint256.NewInt(1), 96), uint256.NewInt(1)))
	if err != nil || n.Cmp(most) < 0 {
		return n
	}
	return most
}

// Dispatch names a request of a channel that is about to be sent for a reservation. Nothing may be sent before it returned nil.
func (b *Books) Dispatch(ctx context.Context, id int64, channel string, request uint64) error {
	return b.update(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		done, err := tx.ExecContext(ctx, `UPDATE budget_holds SET channel = ?, request = ? WHERE id = ? AND state = ?`, channel, int64(request), id, held)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n != 1 {
			return errors.Join(err, fmt.Errorf("reservation %d: %w", id, ErrUnknown))
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO budget_requests (channel, request, hold) VALUES (?, ?, ?)`, channel, int64(request), id)
		return err
	})
}

// Done corrects what a reservation counts at to what its request cost by its sender's measure. One that a record has corrected stays as
// it is, and so does one that is done.
func (b *Books) Done(ctx context.Context, id int64, cost route.Nano) error {
	return b.update(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		h, err := get(ctx, tx, `WHERE id = ?`, id)
		if err != nil || h.State != held {
			return err
		}
		if h.Channel == "" { // nothing was sent
			return count(ctx, tx, h, route.Nano{}, final)
		}
		return count(ctx, tx, h, bounded(cost), done)
	})
}

// Bill is what a record says of one request.
type Bill struct {
	Request uint64
	Cost    route.Nano
}

// Record is what one usage record bills, in the order of their sequence.
type Record struct {
	Channel, Lease string
	Sequence       uint64
	Bills          []Bill
	Unnamed        bool // it bills requests that it does not name
}

// Correct corrects what reservations count at to what a record bills for their requests. The same record again changes nothing. A request
// of nobody here is none of ours. What is billed over a sender's measure is taken from what Aside kept for it.
func (b *Books) Correct(ctx context.Context, r Record) error {
	return b.update(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		read, err := sequence(ctx, tx, r.Channel, r.Lease)
		if err != nil || r.Sequence <= read {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO budget_records (channel, lease, sequence, unnamed) VALUES (?, ?, ?, ?)
			ON CONFLICT (channel, lease) DO UPDATE SET sequence = excluded.sequence, unnamed = max(unnamed, excluded.unnamed)`,
			r.Channel, r.Lease, int64(r.Sequence), r.Unnamed)
		for i := 0; err == nil && i < len(r.Bills); i++ {
			err = bill(ctx, tx, r.Channel, r.Bills[i])
		}
		return err
	})
}

func bill(ctx context.Context, tx *sqlx.Tx, channel string, b Bill) error {
	h, err := get(ctx, tx, `WHERE id = (SELECT hold FROM budget_requests WHERE channel = ? AND request = ?)`, channel, int64(b.Request))
	if errors.Is(err, ErrUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	billed, err := route.ParseNano(h.Billed)
	if err != nil {
		return err
	}
	billed = bounded(billed.Add(bounded(b.Cost)))
	if _, err := tx.ExecContext(ctx, `UPDATE budget_holds SET billed = ? WHERE id = ?`, billed.String(), h.ID); err != nil {
		return err
	}
	if h.State != final && int64(b.Request) != h.Request { // the newest one of it may still run
		return nil
	}
	counted, err := route.ParseNano(h.Counted)
	if err != nil {
		return err
	}
	if over := billed.Sub(counted); !over.IsZero() {
		if err := draw(ctx, tx, h, over); err != nil {
			return err
		}
	}
	return count(ctx, tx, h, billed, final)
}

// draw takes from what is kept aside for a hold's channel, as far as that goes.
func draw(ctx context.Context, tx *sqlx.Tx, h hold, over route.Nano) error {
	kept, err := get(ctx, tx, `WHERE channel = ? AND state = ? AND day = ? AND key = ?`, h.Channel, aside, h.Day, h.Key)
	if errors.Is(err, ErrUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	left, err := route.ParseNano(kept.Counted)
	if err != nil {
		return err
	}
	return count(ctx, tx, kept, left.Sub(over), aside)
}

// Settle says that no further record of a channel bills anything: it is closed on the chain. What no record named costs nothing, unless
// one billed requests without their names: then that stays as it is.
func (b *Books) Settle(ctx context.Context, channel string) error {
	return b.update(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		var unnamed bool
		if err := tx.GetContext(ctx, &unnamed, `SELECT COALESCE(max(unnamed), 0) FROM budget_records WHERE channel = ?`, channel); err != nil {
			return err
		}
		return each(ctx, tx, func(h hold) error {
			text := h.Billed
			if unnamed && h.State != aside {
				text = h.Counted
			}
			to, err := route.ParseNano(text)
			if err != nil {
				return err
			}
			return count(ctx, tx, h, to, final)
		}, `WHERE channel = ? AND state <> ?`, channel, final)
	})
}

// Channels are those of which a record may still correct something.
func (b *Books) Channels(ctx context.Context) (all []string, err error) {
	err = b.db.View().SelectContext(ctx, &all, `SELECT DISTINCT channel FROM budget_holds WHERE state <> ? AND channel <> ''`, final)
	return all, err
}

// Pending is what reservations count for requests of each channel that run, or of which no record says anything yet.
func (b *Books) Pending(ctx context.Context) (map[string]route.Nano, error) {
	var rows []hold
	if err := b.db.View().SelectContext(ctx, &rows, selectHold+`WHERE state IN (?, ?) AND channel <> ''`, held, done); err != nil {
		return nil, err
	}
	all := make(map[string]route.Nano)
	for _, h := range rows {
		counted, err := route.ParseNano(h.Counted)
		if err != nil {
			return nil, err
		}
		all[h.Channel] = bounded(all[h.Channel].Add(counted))
	}
	return all, nil
}

// Sequence is how far the records of a lease were read; 0: none of them was.
func (b *Books) Sequence(ctx context.Context, channel, lease string) (uint64, error) {
	return sequence(ctx, b.db.View(), channel, lease)
}

func sequence(ctx context.Context, q sqlx.QueryerContext, channel, lease string) (uint64, error) {
	var read int64
	err := sqlx.GetContext(ctx, q, &read, `SELECT sequence FROM budget_records WHERE channel = ? AND lease = ?`, channel, lease)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return uint64(read), err
}

// Counted is what counts in a day: of a key, or with the empty one of all together.
func (b *Books) Counted(ctx context.Context, at time.Time, key string) (route.Nano, error) {
	return countedIn(ctx, b.db.View(), Day(at), key)
}

// Prune forgets the reservations of days before the given one that nothing can correct any more. What the days came to stays.
func (b *Books) Prune(ctx context.Context, before time.Time) error {
	return b.update(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM budget_requests WHERE hold IN (SELECT id FROM budget_holds WHERE state = ? AND day < ?)`, final, Day(before))
		if err == nil {
			_, err = tx.ExecContext(ctx, `DELETE FROM budget_holds WHERE state = ? AND day < ?`, final, Day(before))
		}
		return err
	})
}

// Day is the UTC day of a time.
func Day(at time.Time) string { return at.UTC().Format(time.DateOnly) }

// get is one hold; ErrUnknown: there is none.
func get(ctx context.Context, tx *sqlx.Tx, where string, args ...any) (h hold, err error) {
	err = tx.GetContext(ctx, &h, selectHold+where, args...)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrUnknown
	}
	return h, err
}

// count has a hold count at an amount, in its day too.
func count(ctx context.Context, tx *sqlx.Tx, h hold, to route.Nano, state string) error {
	from, err := route.ParseNano(h.Counted)
	if err != nil {
		return err
	}
	if err := move(ctx, tx, h, from, to); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `UPDATE budget_holds SET counted = ?, state = ? WHERE id = ?`, to.String(), state, h.ID)
	return err
}

// move has a day, and its key's part of it, count a hold at another amount.
func move(ctx context.Context, tx *sqlx.Tx, h hold, from, to route.Nano) error {
	keys := []string{""}
	if h.Key != "" {
		keys = append(keys, h.Key)
	}
	for _, key := range keys {
		counted, err := countedIn(ctx, tx, h.Day, key)
		if err != nil {
			return err
		}
		if counted.Cmp(from) < 0 {
			return fmt.Errorf("budget of %s: %s base units count, and reservation %d of them is %s: the file is not what was written to it, restore it", h.Day, counted, h.ID, from)
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO budget_days (day, key, counted) VALUES (?, ?, ?)
			ON CONFLICT (day, key) DO UPDATE SET counted = excluded.counted`, h.Day, key, counted.Sub(from).Add(to).String())
		if err != nil {
			return err
		}
	}
	return nil
}

func countedIn(ctx context.Context, q sqlx.QueryerContext, day, key string) (route.Nano, error) {
	var text string
	err := sqlx.GetContext(ctx, q, &text, `SELECT counted FROM budget_days WHERE day = ? AND key = ?`, day, key)
	if errors.Is(err, sql.ErrNoRows) {
		return route.Nano{}, nil
	}
	if err != nil {
		return route.Nano{}, err
	}
	return route.ParseNano(text)
}
