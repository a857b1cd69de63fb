package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
)

const (
	payerColumns = "id, " + termsColumns + ", " +
		"deposit, authorized, settled, signed, signature, status, closed, close_requested_at, updated_at"
	payerSelect = "SELECT " + payerColumns + " FROM payer_channels "
	payerInsert = "INSERT INTO payer_channels (" + payerColumns + ") VALUES (" +
		":id, " + termsValues + ", " +
		":deposit, :authorized, :settled, :signed, :signature, :status, :closed, :close_requested_at, :updated_at" +
		") ON CONFLICT (id) DO NOTHING"
	// The condition is the last guard: what was signed for never falls.
	payerUpdate = "UPDATE payer_channels SET deposit = ?, authorized = ?, settled = ?, signed = ?, signature = ?, " +
		"status = ?, closed = ?, close_requested_at = ?, updated_at = ? WHERE id = ? AND signed <= ?"
	lockedSelect = payerSelect + "WHERE token = ? AND id <> ? AND status <> ?"
	budgetSelect = "SELECT amount FROM payer_budgets WHERE token = ? AND scope = ?"
	unseenSelect = "SELECT scope, amount FROM payer_budgets WHERE token = ? AND scope LIKE ?"
	budgetStart  = "INSERT INTO payer_budgets (token, scope, amount) VALUES (?, ?, ?) ON CONFLICT (token, scope) DO NOTHING"
	budgetSet    = "INSERT INTO payer_budgets (token, scope, amount) VALUES (?, ?, ?) " +
		"ON CONFLICT (token, scope) DO UPDATE SET amount = excluded.amount"
	budgetRaise = "INSERT INTO payer_budgets (token, scope, amount) VALUES (?, ?, ?) " +
		"ON CONFLICT (token, scope) DO UPDATE SET amount = excluded.amount WHERE payer_budgets.amount < excluded.amount"
)

// payerRow is a row of payer_channels.
type payerRow struct {
	ID common.Hash `db:"id"`
	terms
	Deposit          amount `db:"deposit"`
	Authorized       amount `db:"authorized"`
	Settled          amount `db:"settled"`
	Signed           amount `db:"signed"`
	Signature        []byte `db:"signature"`
	Status           uint8  `db:"status"`
	Closed           bool   `db:"closed"`
	CloseRequestedAt int64  `db:"close_requested_at"`
	UpdatedAt        int64  `db:"updated_at"`
}

func payerRowOf(s channel.PayerState) payerRow {
	return payerRow{s.ID, termsOf(s.Terms), amount(s.Deposit), amount(s.Authorized), amount(s.Settled), amount(s.Signed),
		blob(s.Signature), uint8(s.Status), s.Closed, int64(s.CloseRequestedAt), s.UpdatedAt.UnixNano()}
}

func (r payerRow) state() channel.PayerState {
	return channel.PayerState{ID: r.ID, Terms: r.terms.terms(),
		Deposit: uint256.Int(r.Deposit), Authorized: uint256.Int(r.Authorized), Settled: uint256.Int(r.Settled), Signed: uint256.Int(r.Signed), Signature: r.Signature,
		Status: channel.Status(r.Status), Closed: r.Closed, CloseRequestedAt: uint64(r.CloseRequestedAt), UpdatedAt: time.Unix(0, r.UpdatedAt)}
}

// payerStore is the payer's part of a DB.
type payerStore struct{ db *DB }

var _ channel.PayerStore = payerStore{}

func (p payerStore) Create(ctx context.Context, s channel.PayerState, day string, allow func(channel.Budget) error) (channel.PayerState, error) {
	s.UpdatedAt = time.Now()
	var kept channel.PayerState
	err := p.db.Update(ctx, func(tx *sqlx.Tx) error {
		var err error
		if kept, err = loadPayer(ctx, tx, s.ID); !errors.Is(err, channel.ErrUnknown) {
			return err
		}
		spent, err := loadBudget(ctx, tx, s.ID, s.Terms, day)
		if err != nil {
			return err
		}
		if err := allow(spent); err != nil {
			return err
		}
		if _, err := tx.NamedExec(payerInsert, payerRowOf(s)); err != nil {
			return err
		}
		kept, err = loadPayer(ctx, tx, s.ID)
		return err
	})
	return kept, err
}

func (p payerStore) Budget(ctx context.Context, t channel.Terms, day string) (channel.PayerState, channel.Budget, error) {
	s, err := loadPayer(ctx, p.db.View(), t.ID())
	if errors.Is(err, channel.ErrUnknown) {
		s, err = channel.PayerState{ID: t.ID(), Terms: t}, nil
	}
	if err != nil {
		return s, channel.Budget{}, err
	}
	spent, err := readBudget(ctx, p.db.View(), s.ID, t, day)
	return s, spent, err
}

func (p payerStore) Update(ctx context.Context, id common.Hash, day string, change func(*channel.PayerState, channel.Budget) error) (channel.PayerState, error) {
	var kept channel.PayerState
	err := p.db.Update(ctx, func(tx *sqlx.Tx) error {
		before, err := getPayer(ctx, tx, payerSelect+"WHERE id = ?"+forUpdate(tx), id)
		if err != nil {
			return err
		}
		spent, err := loadBudget(ctx, tx, id, before.Terms, day)
		if err != nil {
			return err
		}
		kept = before
		if err := change(&kept, spent); err != nil {
			return err
		}
		kept.ID, kept.Terms, kept.UpdatedAt = before.ID, before.Terms, time.Now()
		if err := savePayer(tx, kept); err != nil {
			return err
		}
		return adjustBudget(tx, day, spent, before, kept)
	})
	if err != nil {
		return channel.PayerState{}, err
	}
	return kept, nil
}

func (p payerStore) Unseen(ctx context.Context, t channel.Terms, nonce common.Hash, a uint256.Int, day string) error {
	return p.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.Exec(tx.Rebind(budgetRaise), t.Token, unseenScope(day)+t.Payee.Hex()+" "+t.ID().Hex()+" "+nonce.Hex(), amount(a))
		return err
	})
}

func (p payerStore) Load(ctx context.Context, id common.Hash) (channel.PayerState, error) {
	s, err := loadPayer(ctx, p.db.reader, id)
	return s, p.db.explain(err)
}

func (p payerStore) List(ctx context.Context, statuses ...channel.Status) ([]channel.PayerState, error) {
	var rows []payerRow
	err := list(ctx, p.db, &rows, payerSelect, statuses)
	states := make([]channel.PayerState, 0, len(rows))
	for _, r := range rows {
		states = append(states, r.state())
	}
	return states, err
}

func loadPayer(ctx context.Context, q querier, id common.Hash) (channel.PayerState, error) {
	return getPayer(ctx, q, payerSelect+"WHERE id = ?", id)
}

func getPayer(ctx context.Context, q querier, query string, id common.Hash) (channel.PayerState, error) {
	var r payerRow
	err := sqlx.GetContext(ctx, q, &r, q.Rebind(query), id)
	if errors.Is(err, sql.ErrNoRows) {
		return channel.PayerState{}, unknown(id)
	}
	return r.state(), err
}

func savePayer(tx *sqlx.Tx, s channel.PayerState) error {
	r := payerRowOf(s)
	done, err := tx.Exec(tx.Rebind(payerUpdate), r.Deposit, r.Authorized, r.Settled, r.Signed, r.Signature,
		r.Status, r.Closed, r.CloseRequestedAt, r.UpdatedAt, r.ID, r.Signed)
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("channel %s: %w: signed %s would fall", s.ID, channel.ErrLower, s.Signed.Dec())
	}
	return nil
}

func payeeScope(t channel.Terms) string { return "payee " + t.Payee.Hex() }
func dayScope(day string) string        { return "day " + day }
func unseenScope(day string) string     { return "unseen " + day + " " }

// loadBudget reads what readBudget does, and on a server holds its rows: two
// processes must not add to the same sum at once.
func loadBudget(ctx context.Context, tx *sqlx.Tx, id common.Hash, t channel.Terms, day string) (channel.Budget, error) {
	if onPostgres(tx) {
		for _, scope := range scopes(t, day) {
			if _, err := tx.Exec(tx.Rebind(budgetStart), t.Token, scope, amount{}); err != nil {
				return channel.Budget{}, err
			}
		}
	}
	return readBudget(ctx, tx, id, t, day)
}

// scopes are the payee's and, unless the day is empty, the day's.
func scopes(t channel.Terms, day string) []string {
	if day == "" {
		return []string{payeeScope(t)}
	}
	return []string{payeeScope(t), dayScope(day)}
}

func readBudget(ctx context.Context, q querier, id common.Hash, t channel.Terms, day string) (channel.Budget, error) {
	sums := [2]uint256.Int{} // of the payee and the day
	for i, scope := range scopes(t, day) {
		var err error
		if sums[i], err = readAmount(ctx, q, t, scope); err != nil {
			return channel.Budget{}, err
		}
	}
	locked := func() (own, payee, all uint256.Int, err error) { return readLocked(ctx, q, id, t, day) }
	return channel.Budget{Payee: sums[0], Day: sums[1], Locked: locked}, nil
}

func readAmount(ctx context.Context, q querier, t channel.Terms, scope string) (uint256.Int, error) {
	query := budgetSelect
	if tx, ok := q.(*sqlx.Tx); ok {
		query += forUpdate(tx)
	}
	var a amount
	err := sqlx.GetContext(ctx, q, &a, q.Rebind(query), t.Token, scope)
	if errors.Is(err, sql.ErrNoRows) {
		return uint256.Int{}, nil
	}
	return uint256.Int(a), err
}

// readLocked sums what the other channels of a token have locked, and what of a day
// ended unseen.
func readLocked(ctx context.Context, q querier, id common.Hash, t channel.Terms, day string) (own, payee, all uint256.Int, err error) {
	if own, payee, all, err = readUnseen(ctx, q, id, t, day); err != nil {
		return own, payee, all, err
	}
	var rows []payerRow
	if err := sqlx.SelectContext(ctx, q, &rows, q.Rebind(lockedSelect), t.Token, id, uint8(channel.Finalized)); err != nil {
		return own, payee, all, err
	}
	for _, r := range rows {
		s := r.state()
		locked, unsigned := s.Locked(), s.Unsigned()
		all.Add(&all, &unsigned)
		if s.Terms.Payee == t.Payee {
			payee.Add(&payee, &locked)
		}
	}
	return own, payee, all, nil
}

func readUnseen(ctx context.Context, q querier, id common.Hash, t channel.Terms, day string) (own, payee, all uint256.Int, err error) {
	var rows []struct {
		Scope  string `db:"scope"`
		Amount amount `db:"amount"`
	}
	err = sqlx.SelectContext(ctx, q, &rows, q.Rebind(unseenSelect), t.Token, unseenScope(day)+"%")
	for _, r := range rows {
		sum := uint256.Int(r.Amount)
		all.Add(&all, &sum)
		if strings.Contains(r.Scope, t.Payee.Hex()) {
			payee.Add(&payee, &sum)
		}
		if strings.Contains(r.Scope, id.Hex()) {
			own.Add(&own, &sum)
		}
	}
	return own, payee, all, err
}

// adjustBudget has the payee's sum follow what a channel costs, and adds to the day's
// what more was signed for. What was signed for never falls. What the chain alone says
// was settled counts while it says so: an endpoint that says it now and again would
// else use the cap up.
func adjustBudget(tx *sqlx.Tx, day string, spent channel.Budget, before, after channel.PayerState) error {
	token, sum := after.Terms.Token, spent.Payee
	if was, is := before.Cost(), after.Cost(); was != is {
		if sum.Lt(&was) {
			sum = was
		}
		sum.Add(sum.Sub(&sum, &was), &is)
		if _, err := tx.Exec(tx.Rebind(budgetSet), token, payeeScope(after.Terms), amount(sum)); err != nil {
			return err
		}
	}
	if day == "" {
		return nil
	}
	return raiseSum(tx, token, dayScope(day), spent.Day, before.Signed, after.Signed)
}

// raiseSum adds what a figure grew by to the sum of a scope.
func raiseSum(tx *sqlx.Tx, token common.Address, scope string, sum, before, after uint256.Int) error {
	if !after.Gt(&before) {
		return nil
	}
	sum.Add(&sum, after.Sub(&after, &before))
	_, err := tx.Exec(tx.Rebind(budgetRaise), token, scope, amount(sum))
	return err
}
