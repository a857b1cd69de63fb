package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
)

const (
	payerColumns = "id, " + termsColumns + ", " +
		"deposit, settled, signed, signature, status, closed, close_requested_at, updated_at"
	payerSelect = "SELECT " + payerColumns + " FROM payer_channels "
	payerInsert = "INSERT INTO payer_channels (" + payerColumns + ") VALUES (" +
		":id, " + termsValues + ", " +
		":deposit, :settled, :signed, :signature, :status, :closed, :close_requested_at, :updated_at" +
		") ON CONFLICT (id) DO NOTHING"
	// The condition is the last guard: what was signed for never falls.
	payerUpdate = "UPDATE payer_channels SET deposit = ?, settled = ?, signed = ?, signature = ?, " +
		"status = ?, closed = ?, close_requested_at = ?, updated_at = ? WHERE id = ? AND signed <= ?"
	budgetSelect = "SELECT amount FROM payer_budgets WHERE token = ? AND scope = ?"
	budgetStart  = "INSERT INTO payer_budgets (token, scope, amount) VALUES (?, ?, ?) ON CONFLICT (token, scope) DO NOTHING"
	budgetRaise  = "INSERT INTO payer_budgets (token, scope, amount) VALUES (?, ?, ?) " +
		"ON CONFLICT (token, scope) DO UPDATE SET amount = excluded.amount WHERE payer_budgets.amount < excluded.amount"
)

// payerRow is a row of payer_channels.
type payerRow struct {
	ID common.Hash `db:"id"`
	terms
	Deposit          amount `db:"deposit"`
	Settled          amount `db:"settled"`
	Signed           amount `db:"signed"`
	Signature        []byte `db:"signature"`
	Status           uint8  `db:"status"`
	Closed           bool   `db:"closed"`
	CloseRequestedAt int64  `db:"close_requested_at"`
	UpdatedAt        int64  `db:"updated_at"`
}

func payerRowOf(s channel.PayerState) payerRow {
	return payerRow{s.ID, termsOf(s.Terms), amount(s.Deposit), amount(s.Settled), amount(s.Signed),
		blob(s.Signature), uint8(s.Status), s.Closed, int64(s.CloseRequestedAt), s.UpdatedAt.UnixNano()}
}

func (r payerRow) state() channel.PayerState {
	return channel.PayerState{ID: r.ID, Terms: r.terms.terms(),
		Deposit: uint256.Int(r.Deposit), Settled: uint256.Int(r.Settled), Signed: uint256.Int(r.Signed), Signature: r.Signature,
		Status: channel.Status(r.Status), Closed: r.Closed, CloseRequestedAt: uint64(r.CloseRequestedAt), UpdatedAt: time.Unix(0, r.UpdatedAt)}
}

// payerStore is the payer's part of a DB.
type payerStore struct{ db *DB }

var _ channel.PayerStore = payerStore{}

func (p payerStore) Create(ctx context.Context, s channel.PayerState) (channel.PayerState, error) {
	s.UpdatedAt = time.Now()
	var kept channel.PayerState
	err := p.db.Update(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.NamedExec(payerInsert, payerRowOf(s)); err != nil {
			return err
		}
		var err error
		kept, err = loadPayer(ctx, tx, s.ID)
		return err
	})
	return kept, err
}

func (p payerStore) Update(ctx context.Context, id common.Hash, day string, change func(*channel.PayerState, channel.Budget) error) (channel.PayerState, error) {
	var kept channel.PayerState
	err := p.db.Update(ctx, func(tx *sqlx.Tx) error {
		before, err := getPayer(ctx, tx, payerSelect+"WHERE id = ?"+forUpdate(tx), id)
		if err != nil {
			return err
		}
		spent, err := loadBudget(tx, before.Terms, day)
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
		return raiseBudget(tx, kept.Terms, day, spent, before.Signed, kept.Signed)
	})
	if err != nil {
		return channel.PayerState{}, err
	}
	return kept, nil
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
	done, err := tx.Exec(tx.Rebind(payerUpdate), r.Deposit, r.Settled, r.Signed, r.Signature,
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

func loadBudget(tx *sqlx.Tx, t channel.Terms, day string) (channel.Budget, error) {
	payee, err := loadAmount(tx, t, payeeScope(t))
	if err != nil {
		return channel.Budget{}, err
	}
	today, err := loadAmount(tx, t, dayScope(day))
	return channel.Budget{Payee: payee, Day: today}, err
}

func loadAmount(tx *sqlx.Tx, t channel.Terms, scope string) (uint256.Int, error) {
	if onPostgres(tx) { // a row to lock: two processes must not add to the same sum at once
		if _, err := tx.Exec(tx.Rebind(budgetStart), t.Token, scope, amount{}); err != nil {
			return uint256.Int{}, err
		}
	}
	var a amount
	err := tx.Get(&a, tx.Rebind(budgetSelect)+forUpdate(tx), t.Token, scope)
	if errors.Is(err, sql.ErrNoRows) {
		return uint256.Int{}, nil
	}
	return uint256.Int(a), err
}

// raiseBudget adds what a channel's signed amount grew by to both scopes.
func raiseBudget(tx *sqlx.Tx, t channel.Terms, day string, spent channel.Budget, before, after uint256.Int) error {
	if before == after {
		return nil
	}
	var growth uint256.Int
	growth.Sub(&after, &before)
	spent.Payee.Add(&spent.Payee, &growth)
	spent.Day.Add(&spent.Day, &growth)
	if _, err := tx.Exec(tx.Rebind(budgetRaise), t.Token, payeeScope(t), amount(spent.Payee)); err != nil {
		return err
	}
	_, err := tx.Exec(tx.Rebind(budgetRaise), t.Token, dayScope(day), amount(spent.Day))
	return err
}
