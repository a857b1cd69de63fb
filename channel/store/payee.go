package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
)

const (
	payeeColumns = "id, " + termsColumns + ", " +
		"deposit, settled, accepted, spent, signature, status, close_requested_at, updated_at"
	payeeSelect = "SELECT " + payeeColumns + " FROM payee_channels "
	payeeInsert = "INSERT INTO payee_channels (" + payeeColumns + ") VALUES (" +
		":id, " + termsValues + ", " +
		":deposit, :settled, :accepted, :spent, :signature, :status, :close_requested_at, :updated_at" +
		") ON CONFLICT (id) DO NOTHING"
	// The condition is the last guard: whoever writes, what was accepted and
	// charged never falls.
	payeeUpdate = "UPDATE payee_channels SET deposit = ?, settled = ?, accepted = ?, spent = ?, signature = ?, " +
		"status = ?, close_requested_at = ?, updated_at = ? WHERE id = ? AND accepted <= ? AND spent <= ?"
)

// payeeRow is a row of payee_channels.
type payeeRow struct {
	ID common.Hash `db:"id"`
	terms
	Deposit          amount `db:"deposit"`
	Settled          amount `db:"settled"`
	Accepted         amount `db:"accepted"`
	Spent            amount `db:"spent"`
	Signature        []byte `db:"signature"`
	Status           uint8  `db:"status"`
	CloseRequestedAt int64  `db:"close_requested_at"`
	UpdatedAt        int64  `db:"updated_at"`
}

func payeeRowOf(s channel.State) payeeRow {
	return payeeRow{s.ID, termsOf(s.Terms), amount(s.Deposit), amount(s.Settled), amount(s.Accepted), amount(s.Spent),
		blob(s.Signature), uint8(s.Status), int64(s.CloseRequestedAt), s.UpdatedAt.UnixNano()}
}

func (r payeeRow) state() channel.State {
	return channel.State{ID: r.ID, Terms: r.terms.terms(),
		Deposit: uint256.Int(r.Deposit), Settled: uint256.Int(r.Settled),
		Accepted: uint256.Int(r.Accepted), Spent: uint256.Int(r.Spent), Signature: r.Signature,
		Status: channel.Status(r.Status), CloseRequestedAt: uint64(r.CloseRequestedAt), UpdatedAt: time.Unix(0, r.UpdatedAt)}
}

// blob is never NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func unknown(id common.Hash) error {
	return fmt.Errorf("channel %s: %w: open it, or check the id", id, channel.ErrUnknown)
}

// payeeStore is the payee's part of a DB.
type payeeStore struct{ db *DB }

var _ channel.Store = payeeStore{}

func (p payeeStore) Create(ctx context.Context, s channel.State) (channel.State, error) {
	s.UpdatedAt = time.Now()
	var kept channel.State
	err := p.db.Update(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.NamedExec(payeeInsert, payeeRowOf(s)); err != nil {
			return err
		}
		var err error
		kept, err = loadPayee(ctx, tx, s.ID)
		return err
	})
	if err == nil {
		p.db.terms.keep(kept.ID, kept.Terms)
	}
	return kept, err
}

func (p payeeStore) Update(ctx context.Context, id common.Hash, change func(*channel.State) error) (channel.State, error) {
	if p.db.guard != nil {
		return p.updateAlone(ctx, id, change)
	}
	o := opPool.Get().(*op)
	defer o.release()
	o.ctx, o.id, o.change = ctx, id, change
	if p.db.dialect == postgres {
		var err error
		if o.terms, err = p.Terms(ctx, id); err != nil {
			return channel.State{}, p.db.unlessClosed(err)
		}
	}
	if err := p.db.submit(o); err != nil {
		return channel.State{}, err
	}
	return o.kept, nil
}

// updateAlone is an Update with a guard before it.
func (p payeeStore) updateAlone(ctx context.Context, id common.Hash, change func(*channel.State) error) (channel.State, error) {
	var kept channel.State
	err := p.db.Update(ctx, func(tx *sqlx.Tx) (err error) {
		kept, err = p.db.changeIn(ctx, tx, id, change)
		return err
	})
	if err != nil {
		return channel.State{}, err
	}
	return kept, nil
}

// changeIn is a change in a transaction of somebody's own writes.
func (db *shared) changeIn(ctx context.Context, tx *sqlx.Tx, id common.Hash, change func(*channel.State) error) (channel.State, error) {
	if g := db.running; g != nil && g.tx == tx {
		return g.changeNow(id, change)
	}
	s, err := lockPayee(ctx, tx, id)
	if err != nil {
		return channel.State{}, err
	}
	var n scratch
	if err := n.run(&s, change); err != nil {
		return channel.State{}, err
	}
	if same(&s, &n.state) {
		return s, nil
	}
	return n.state, savePayee(tx, n.state)
}

func (p payeeStore) Terms(ctx context.Context, id common.Hash) (channel.Terms, error) {
	if t, ok := p.db.terms.get(id); ok {
		return t, nil
	}
	s, err := p.Load(ctx, id)
	if err == nil {
		p.db.terms.keep(id, s.Terms)
	}
	return s.Terms, err
}

func (p payeeStore) Load(ctx context.Context, id common.Hash) (channel.State, error) {
	if s, ok := p.db.cache.get(id); ok {
		return s, nil
	}
	s, err := loadPayee(ctx, p.db.reader, id)
	return s, p.db.explain(err)
}

func (p payeeStore) List(ctx context.Context, statuses ...channel.Status) ([]channel.State, error) {
	var rows []payeeRow
	err := list(ctx, p.db, &rows, payeeSelect, statuses)
	return payeeStates(rows), err
}

func (p payeeStore) Unsettled(ctx context.Context) ([]channel.State, error) {
	var rows []payeeRow
	err := p.db.reader.SelectContext(ctx, &rows,
		p.db.reader.Rebind(payeeSelect+"WHERE settled < accepted AND status <> ? ORDER BY id"), channel.Finalized)
	states := slices.DeleteFunc(payeeStates(rows), func(s channel.State) bool {
		left := s.Unsettled() // less than the row says in a scheme that pays what was charged
		return left.IsZero()
	})
	return states, p.db.explain(err)
}

// States returns the payee's channels of these ids, those that are known.
func (db *DB) States(ctx context.Context, ids []common.Hash) ([]channel.State, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	query, args, err := sqlx.In(payeeSelect+"WHERE id IN (?)", ids)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", db.path, err)
	}
	var rows []payeeRow
	err = db.reader.SelectContext(ctx, &rows, db.reader.Rebind(query), args...)
	return payeeStates(rows), db.explain(err)
}

// Owing returns the payee's channels of some payers on which more was charged
// than settled, whatever became of them, and vouchered or not.
func (db *DB) Owing(ctx context.Context, payers ...common.Address) ([]channel.State, error) {
	if len(payers) == 0 {
		return nil, nil
	}
	query, args, err := sqlx.In(payeeSelect+"WHERE payer IN (?) AND spent > settled ORDER BY id", payers)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", db.path, err)
	}
	var rows []payeeRow
	err = db.reader.SelectContext(ctx, &rows, db.reader.Rebind(query), args...)
	return payeeStates(rows), db.explain(err)
}

func payeeStates(rows []payeeRow) []channel.State {
	states := make([]channel.State, 0, len(rows))
	for _, r := range rows {
		states = append(states, r.state())
	}
	return states
}

// list selects the rows of some statuses, or all.
func list(ctx context.Context, db *DB, rows any, query string, statuses []channel.Status) error {
	if len(statuses) == 0 {
		return db.explain(db.reader.SelectContext(ctx, rows, query+"ORDER BY id"))
	}
	numbers := make([]int, 0, len(statuses)) // a []uint8 would be taken for bytes
	for _, s := range statuses {
		numbers = append(numbers, int(s))
	}
	query, args, err := sqlx.In(query+"WHERE status IN (?) ORDER BY id", numbers)
	if err != nil {
		return fmt.Errorf("store %s: %w", db.path, err)
	}
	return db.explain(db.reader.SelectContext(ctx, rows, db.reader.Rebind(query), args...))
}

// querier is a transaction, or a database to read from.
type querier interface {
	sqlx.QueryerContext
	Rebind(query string) string
	DriverName() string
}

func loadPayee(ctx context.Context, q querier, id common.Hash) (channel.State, error) {
	return getPayee(ctx, q, payeeSelect+"WHERE id = ?", id)
}

// lockPayee loads a channel that is about to be changed: until the transaction
// ends nobody else changes it.
func lockPayee(ctx context.Context, tx *sqlx.Tx, id common.Hash) (channel.State, error) {
	return getPayee(ctx, tx, payeeSelect+"WHERE id = ?"+forUpdate(tx), id)
}

func getPayee(ctx context.Context, q querier, query string, id common.Hash) (channel.State, error) {
	var r payeeRow
	err := sqlx.GetContext(ctx, q, &r, q.Rebind(query), id)
	if errors.Is(err, sql.ErrNoRows) {
		return channel.State{}, unknown(id)
	}
	return r.state(), err
}

func savePayee(tx *sqlx.Tx, s channel.State) error {
	words := make([]byte, 0, 4*16) // plain bytes: database/sql would ask each amount for its value, twice
	deposit := appendAmount(&words, s.Deposit)
	settled := appendAmount(&words, s.Settled)
	accepted := appendAmount(&words, s.Accepted)
	spent := appendAmount(&words, s.Spent)
	done, err := tx.Exec(tx.Rebind(payeeUpdate), deposit, settled, accepted, spent, blob(s.Signature),
		int64(s.Status), int64(s.CloseRequestedAt), s.UpdatedAt.UnixNano(), s.ID[:], accepted, spent)
	if err != nil {
		return err
	}
	return saved(done, &s)
}

// saved reports a row that the last guard kept as it was.
func saved(done driver.Result, s *channel.State) error {
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("channel %s: %w: accepted %s or spent %s would fall", s.ID, channel.ErrLower, s.Accepted.Dec(), s.Spent.Dec())
	}
	return nil
}

// Charge charges a channel in the caller's transaction (see DB.Update), so that
// the usage record and what it charges are on disk together or not at all. The end
// of ctx ends the wait for a channel that somebody else has locked.
func (db *DB) Charge(ctx context.Context, tx *sqlx.Tx, id common.Hash, spent uint256.Int) error {
	_, err := db.changeIn(ctx, tx, id, func(s *channel.State) error { return s.Charge(spent) })
	return err
}
