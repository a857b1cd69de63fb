package chain

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
)

// A Block is one that was acted on.
type Block struct {
	Number uint64
	Hash   common.Hash
}

type blockRow struct {
	Number int64  `db:"number"`
	Hash   string `db:"hash"`
}

// Trail is the newest blocks that a watcher of an escrow acted on, oldest first.
func (s *Store) Trail(ctx context.Context, chain uint64, escrow common.Address) ([]Block, error) {
	db := s.db.View()
	var rows []blockRow
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT number, hash FROM chain_block WHERE chain = ? AND escrow = ? ORDER BY number`), chain, text(escrow))
	if err != nil {
		return nil, fmt.Errorf("chain: reading the watcher's trail: %w", err)
	}
	trail := make([]Block, len(rows))
	for i, row := range rows {
		trail[i] = Block{Number: uint64(row.Number), Hash: common.HexToHash(row.Hash)}
	}
	return trail, nil
}

// Extend makes the trail what is kept of it and the next block: what else is there was undone, or is too old to matter.
func (s *Store) Extend(ctx context.Context, chain uint64, escrow common.Address, kept []Block, next Block) error {
	oldest, newest := next.Number, uint64(0)
	if len(kept) > 0 {
		oldest, newest = kept[0].Number, kept[len(kept)-1].Number
	}
	return s.db.Update(ctx, func(db *sqlx.Tx) error {
		_, err := db.ExecContext(ctx, db.Rebind(`DELETE FROM chain_block WHERE chain = ? AND escrow = ? AND (number < ? OR number > ?)`), chain, text(escrow), oldest, newest)
		if err != nil {
			return fmt.Errorf("chain: writing the watcher's trail: %w", err)
		}
		_, err = db.ExecContext(ctx, db.Rebind(`INSERT INTO chain_block (chain, escrow, number, hash) VALUES (?, ?, ?, ?)
			ON CONFLICT (chain, escrow, number) DO UPDATE SET hash = excluded.hash`), chain, text(escrow), next.Number, text(next.Hash))
		if err != nil {
			return fmt.Errorf("chain: writing the watcher's trail: %w", err)
		}
		return nil
	})
}

type waitingRow struct {
	Channel string `db:"channel"`
	Since   int64  `db:"since"`
}

// Since says since when each of the given channels of a contract has waited for settlement: now for those that are new, and
// for those that wait since a moment that is yet to come, by a clock that was set back. Channels of the contract that are
// not given wait no more and are forgotten.
func (s *Store) Since(ctx context.Context, chain uint64, contract common.Address, ids []common.Hash, now time.Time) (map[common.Hash]time.Time, error) {
	var rows []waitingRow
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT channel, since FROM chain_waiting WHERE chain = ? AND contract = ?`), chain, text(contract))
	if err != nil {
		return nil, fmt.Errorf("chain: reading what waits for settlement: %w", err)
	}
	waiting := make(map[common.Hash]time.Time, len(ids))
	for _, id := range ids {
		waiting[id] = time.Time{}
	}
	var gone []string
	for _, row := range rows {
		id := common.HexToHash(row.Channel)
		if _, ok := waiting[id]; !ok {
			gone = append(gone, row.Channel)
		} else if since := moment(row.Since); !since.After(now) {
			waiting[id] = since
		}
	}
	var fresh []common.Hash
	for id, since := range waiting {
		if since.IsZero() {
			waiting[id] = now
			fresh = append(fresh, id)
		}
	}
	if len(gone) == 0 && len(fresh) == 0 {
		return waiting, nil
	}
	return waiting, s.saveWaiting(ctx, chain, contract, gone, fresh, now)
}

// Oldest is how long the channel that has waited longest for settlement has, of whatever contract.
func (s *Store) Oldest(ctx context.Context, now time.Time) (time.Duration, error) {
	var since sql.NullInt64
	if err := s.db.View().GetContext(ctx, &since, `SELECT min(since) FROM chain_waiting`); err != nil || !since.Valid {
		return 0, err
	}
	return max(now.Sub(moment(since.Int64)), 0), nil
}

// Restart has channels of a contract that wait for settlement wait since a moment, unless they have not waited as long:
// what they waited for came, and what came after it is not as old.
func (s *Store) Restart(ctx context.Context, chain uint64, contract common.Address, ids []common.Hash, since time.Time) error {
	if len(ids) == 0 {
		return nil
	}
	return s.db.Update(ctx, func(db *sqlx.Tx) error {
		for _, id := range ids {
			_, err := db.ExecContext(ctx, db.Rebind(`UPDATE chain_waiting SET since = ? WHERE chain = ? AND contract = ? AND channel = ? AND since < ?`),
				millis(since), chain, text(contract), text(id), millis(since))
			if err != nil {
				return fmt.Errorf("chain: writing what waits for settlement: %w", err)
			}
		}
		return nil
	})
}

func (s *Store) saveWaiting(ctx context.Context, chain uint64, contract common.Address, gone []string, fresh []common.Hash, now time.Time) error {
	return s.db.Update(ctx, func(db *sqlx.Tx) error {
		for _, id := range gone {
			_, err := db.ExecContext(ctx, db.Rebind(`DELETE FROM chain_waiting WHERE chain = ? AND contract = ? AND channel = ?`), chain, text(contract), id)
			if err != nil {
				return fmt.Errorf("chain: writing what waits for settlement: %w", err)
			}
		}
		for _, id := range fresh {
			_, err := db.ExecContext(ctx, db.Rebind(`INSERT INTO chain_waiting (chain, contract, channel, since) VALUES (?, ?, ?, ?)
				ON CONFLICT (chain, contract, channel) DO UPDATE SET since = excluded.since`), chain, text(contract), text(id), millis(now))
			if err != nil {
				return fmt.Errorf("chain: writing what waits for settlement: %w", err)
			}
		}
		return nil
	})
}
