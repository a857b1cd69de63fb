package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/gpupay/gpupay/channel"
)

const (
	payeeLockRows = `SELECT id, deposit, settled, accepted, spent, signature, status, close_requested_at, updated_at
		FROM payee_channels WHERE id = ANY($1) FOR UPDATE`
	// The condition is the last guard, as in payeeUpdate.
	payeeUpdateRows = `UPDATE payee_channels c SET deposit = n.deposit, settled = n.settled, accepted = n.accepted,
	spent = n.spent, signature = n.signature, status = n.status, close_requested_at = n.close_requested_at, updated_at = n.updated_at
	FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::int[], $8::bigint[], $9::bigint[])
		AS n (id, deposit, settled, accepted, spent, signature, status, close_requested_at, updated_at)
	WHERE c.id = n.id AND c.accepted <= n.accepted AND c.spent <= n.spent`
)

// maxLanes is how many channels whose rows are locked are waited for at a time: less
// than there are connections to write through.
const maxLanes = 4

// commitServer answers all ops on a server. Those of channels whose rows somebody
// else has locked wait for them apart: the others' vouchers count meanwhile.
func (g *group) commitServer(ops []*op) {
	g.commit(ops)
	held := make(map[common.Hash][]*op)
	for _, o := range g.held {
		held[o.id] = append(held[o.id], o)
	}
	g.held = nil
	for id, ops := range held {
		g.db.await(id, ops)
	}
}

// await runs ops of one channel when its row is free, after those that wait for it
// already.
func (db *shared) await(id common.Hash, ops []*op) {
	db.lanes.Lock()
	defer db.lanes.Unlock()
	if before, waits := db.lanes.waiting[id]; waits {
		db.lanes.waiting[id] = append(before, ops...)
		return
	}
	db.lanes.waiting[id] = ops
	db.lanes.wait.Go(func() {
		db.lanes.slots <- struct{}{}
		defer func() { <-db.lanes.slots }()
		g := &group{db: db, waits: true, channels: make(map[common.Hash]*entry)}
		for ops := db.next(id); len(ops) > 0; ops = db.next(id) {
			g.commit(ops)
		}
	})
}

// next takes what waits for a channel; there is no lane for it any more if nothing
// does.
func (db *shared) next(id common.Hash) []*op {
	db.lanes.Lock()
	defer db.lanes.Unlock()
	ops := db.lanes.waiting[id]
	if db.lanes.waiting[id] = nil; len(ops) == 0 {
		delete(db.lanes.waiting, id)
	}
	return ops
}

// lanes are the channels whose rows are waited for.
type lanes struct {
	sync.Mutex
	waiting map[common.Hash][]*op
	slots   chan struct{}
	wait    sync.WaitGroup
}

// tryServer runs the group on a server, where it holds changes of channels only.
// It speaks to the driver: database/sql and sqlx would make a dozen objects of
// each row. With an error nothing is kept.
func (g *group) tryServer(ops []*op) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pool := g.db.grouper
	if g.waits {
		pool = g.db.writer
	}
	conn, err := pool.Conn(ctx)
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
				if o.held = !g.waits && g.channels[o.id] == nil; !o.held {
					g.serve(o)
				}
			}
			return g.flushRows(ctx, tx)
		})
	})
}

// served keeps those that wait for their rows from being answered.
func (g *group) served(ops []*op) []*op {
	return slices.DeleteFunc(ops, func(o *op) bool {
		if o.held {
			g.held = append(g.held, o)
		}
		return o.held
	})
}

// lockRows locks and reads the channels of a group, those that nobody else has
// locked unless it waits. Their terms are known.
func (g *group) lockRows(ctx context.Context, tx pgx.Tx, ops []*op) error {
	terms := make(map[common.Hash]*channel.Terms, len(ops))
	ids := make([][]byte, 0, len(ops))
	for _, o := range ops {
		if terms[o.id] == nil {
			terms[o.id] = &o.terms
			ids = append(ids, o.id[:])
		}
	}
	query := payeeLockRows + " SKIP LOCKED"
	if g.waits { // for one
		query = payeeLockRows
	}
	rows, err := tx.Query(ctx, query, ids)
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
