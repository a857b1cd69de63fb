package chain

import (
	"context"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
)

// Wasted is what some kinds of transactions can have cost for nothing, in wei: lost is what those that were submitted
// since a moment and reverted have cost, and risked is the most that those in flight may still cost.
func (s *Sender) Wasted(ctx context.Context, since time.Time, kinds ...Kind) (lost, risked *big.Int, err error) {
	chain, err := s.chainID(ctx)
	if err != nil {
		return nil, nil, err
	}
	lost, risked = new(big.Int), new(big.Int)
	db := s.Store.db.View()
	var costs []string
	query, args, err := sqlx.In(`SELECT cost FROM chain_tx WHERE chain = ? AND sender = ? AND kind IN (?)
		AND state <> 'pending' AND succeeded = 0 AND created_at > ? AND created_at <= ?`, chain, text(s.Address()), kinds, millis(since), millis(s.now()))
	if err == nil {
		err = db.SelectContext(ctx, &costs, db.Rebind(query), args...)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("chain: reading what reverted: %w", err)
	}
	for _, cost := range costs {
		lost.Add(lost, wei(cost))
	}
	flying, err := s.InFlight(ctx)
	for _, tx := range flying {
		if !slices.Contains(kinds, tx.Call.Kind) {
			continue
		}
		risked.Add(risked, tx.Price())
	}
	return lost, risked, err
}
