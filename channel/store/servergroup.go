package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/gpupay/gpupay/channel"
)

const (
	// The order of the ids: groups of several processes that want the same channels
	// wait for each other and do not deadlock.
	payeeLockRows = `SELECT id, deposit, settled, accepted, spent, signature, status, close_requested_at, updated_at
		FROM payee_channels WHERE id = ANY($1) ORDER BY id FOR UPDATE`
	// The condition is the last guard, as in payeeUpdate.
	payeeUpdateRows = `UPDATE payee_channels c SET deposit = n.deposit, settled = n.settled, accepted = n.accepted,
	spent = n.spent, signature = n.signature, status = n.status, close_requested_at = n.close_requested_at, updated_at = n.updated_at
	FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::int[], $8::bigint[], $9::bigint[])
		AS n (id, deposit, settled, accepted, spent, signature, status, close_requested_at, updated_at)
	WHERE c.id = n.id AND c.accepted <= n.accepted AND c.spent <= n.spent`
)

// tryServer runs the group on a server, where it holds changes of channels only.
// It speaks to the driver: database/sql and sqlx would make a dozen objects of
// each row. With an error nothing is kept.
func (g *group) tryServer(ops []*op) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := g.db.writer.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Raw(func(c any) error {
		return pgx.BeginFunc(ctx, c.(*stdlib.Conn).Conn(), func(tx pgx.Tx) error {
			if err := g.lockRows(ctx, tx, ops); err != nil {
				return err
			}
			for _, o := range ops {
				g.serve(o)
			}
			return g.flushRows(ctx, tx)
		})
	})
}

// lockRows locks and reads the channels of a group. Their terms are known.
func (g *group) lockRows(ctx context.Context, tx pgx.Tx, ops []*op) error {
	terms := make(map[common.Hash]*channel.Terms, len(ops))
	ids := make([][]byte, 0, len(ops))
	for _, o := range ops {
		if terms[o.id] == nil {
			terms[o.id] = &o.terms
			ids = append(ids, o.id[:])
		}
	}
	slices.SortFunc(ids, bytes.Compare)
	rows, err := tx.Query(ctx, payeeLockRows, ids)
	if err != nil {
		return err
	}
	var id, signature pgtype.DriverBytes
	var deposit, settled, accepted, spent amount
	var status int16
	var closing, updated int64
	_, err = pgx.ForEachRow(rows, []any{&id, &deposit, &settled, &accepted, &spent, &signature, &status, &closing, &updated}, func() error {
		s := channel.State{ID: common.Hash(id), Deposit: uint256.Int(deposit), Settled: uint256.Int(settled),
			Accepted: uint256.Int(accepted), Spent: uint256.Int(spent), Signature: bytes.Clone(signature),
			Status: channel.Status(status), CloseRequestedAt: uint64(closing), UpdatedAt: time.Unix(0, updated)}
		s.Terms = *terms[s.ID]
		g.keep(s.ID, s)
		return nil
	})
	return err
}

// flushRows writes the channels that changed in one statement.
func (g *group) flushRows(ctx context.Context, tx pgx.Tx) error {
	n := len(g.dirty)
	if n == 0 {
		return nil
	}
	var columns [6][][]byte // id, deposit, settled, accepted, spent, signature
	for i := range columns {
		columns[i] = make([][]byte, n)
	}
	words := make([]byte, 0, 4*16*n)
	statuses, closing, updated := make([]int32, n), make([]int64, n), make([]int64, n)
	for i, e := range g.dirty {
		s := &e.state
		columns[0][i], columns[5][i] = s.ID[:], blob(s.Signature)
		for c, a := range [...]*uint256.Int{&s.Deposit, &s.Settled, &s.Accepted, &s.Spent} {
			columns[1+c][i] = appendAmount(&words, *a)
		}
		statuses[i], closing[i], updated[i] = int32(s.Status), int64(s.CloseRequestedAt), s.UpdatedAt.UnixNano()
	}
	done, err := tx.Exec(ctx, payeeUpdateRows, columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], statuses, closing, updated)
	if err != nil {
		return err
	}
	if done.RowsAffected() != int64(n) {
		return fmt.Errorf("store %s: %w: accepted or spent of one of %d channels would fall", g.db.path, channel.ErrLower, n)
	}
	return nil
}
