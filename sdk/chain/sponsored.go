package chain

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
)

// Sponsor remembers whose channel a transaction is sent for. It comes before the transaction, so that a crash between the
// two forgets no cost.
func (s *Store) Sponsor(ctx context.Context, channel common.Hash, payer common.Address) error {
	err := s.db.Update(ctx, func(db *sqlx.Tx) error {
		_, err := db.ExecContext(ctx, db.Rebind(`INSERT INTO chain_sponsored (channel, payer) VALUES (?, ?) ON CONFLICT (channel) DO NOTHING`), text(channel), text(payer))
		return err
	})
	if err != nil {
		return fmt.Errorf("chain: noting who channel %s is of: %w", channel, err)
	}
	return nil
}

// Sponsored is what the outbox's transactions of some kinds that were submitted between two moments cost, in wei: what they
// have cost, and the most that those in flight may. The first figure counts all, the second those for channels of the payer.
// Those of keys before this one count: a rotation renews no budget.
func (s *Sender) Sponsored(ctx context.Context, from, to time.Time, payer common.Address, kinds ...Kind) (all, payers *big.Int, err error) {
	chain, err := s.parts().chainID(ctx)
	if err != nil {
		return nil, nil, err
	}
	const of = ` AND id IN (SELECT c.tx FROM chain_tx_channel c JOIN chain_sponsored s ON s.channel = c.channel WHERE s.payer = ?)`
	where, args, err := sqlx.In(`WHERE chain = ? AND kind IN (?) AND created_at > ?`, chain, kinds, millis(from))
	if err != nil {
		return nil, nil, err
	}
	within := func(id TxID, at time.Time) bool { return s.submittedSince(id, at, from, to) }
	if all, err = s.Store.price(ctx, within, where, args...); err != nil {
		return nil, nil, err
	}
	payers, err = s.Store.price(ctx, within, where+of, append(args, text(payer))...)
	return all, payers, err
}

// submittedSince reports whether a transaction counts as submitted since a moment. One whose stamp is ahead of the clock, which
// was set back, counts from when this process saw that: it was paid for, and must not be left out of a budget, nor be in it for
// as long as the clock was ahead.
func (s *Sender) submittedSince(id TxID, at, since, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !at.After(now) {
		delete(s.early, id)
		return at.After(since)
	}
	seen, ok := s.early[id]
	if !ok || seen.After(now) {
		if s.early == nil {
			s.early = make(map[TxID]time.Time)
		}
		seen = now
		s.early[id] = seen
	}
	return seen.After(since)
}

// price is what some transactions have cost, and the most that those in flight may, in wei: those that count by their id and
// when they were submitted.
func (s *Store) price(ctx context.Context, counts func(TxID, time.Time) bool, where string, args ...any) (*big.Int, error) {
	sum, err := s.cost(ctx, counts, where+` AND state <> 'pending'`, args...)
	if err != nil {
		return nil, fmt.Errorf("chain: reading what was sent for others: %w", err)
	}
	flying, err := s.list(ctx, where+` AND state = 'pending'`, args...)
	for _, tx := range flying {
		if counts(tx.ID, tx.CreatedAt) {
			sum.Add(sum, tx.Price())
		}
	}
	return sum, err
}

// cost is what some transactions have cost, in wei: those that count by their id and when they were submitted.
func (s *Store) cost(ctx context.Context, counts func(TxID, time.Time) bool, where string, args ...any) (*big.Int, error) {
	var rows []struct {
		ID        string
		Cost      string
		CreatedAt int64 `db:"created_at"`
	}
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT id, cost, created_at FROM chain_tx `+where), args...)
	sum := new(big.Int)
	for _, row := range rows {
		if counts(TxID(row.ID), time.UnixMilli(row.CreatedAt)) {
			sum.Add(sum, wei(row.Cost))
		}
	}
	return sum, err
}

// Coin is what this key can still spend, in wei: what it has in the newest block, less the most that its transactions in
// flight may cost.
func (s *Sender) Coin(ctx context.Context) (*big.Int, error) {
	coin, err := s.Backend.BalanceAt(ctx, s.Address(), nil)
	if err != nil {
		return nil, Unread("the balance of "+s.Address().String(), err)
	}
	flying, err := s.InFlight(ctx)
	if err != nil {
		return nil, err
	}
	coin = new(big.Int).Set(coin)
	for _, tx := range flying {
		coin.Sub(coin, tx.Price())
	}
	return coin, nil
}
