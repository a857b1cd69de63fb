package chain

import (
	"context"
	"fmt"
	"math/big"
	"time"
)

// Wasted is what two kinds of transactions can have cost for nothing, in wei: lost is what those that were submitted
// since a moment and reverted have cost, and risked is the most that those in flight may still cost.
func (s *Sender) Wasted(ctx context.Context, since time.Time, a, b Kind) (lost, risked *big.Int, err error) {
	chain, err := s.chainID(ctx)
	if err != nil {
		return nil, nil, err
	}
	lost, risked = new(big.Int), new(big.Int)
	db := s.Store.db.View()
	var costs []string
	err = db.SelectContext(ctx, &costs, db.Rebind(`SELECT cost FROM chain_tx WHERE chain = ? AND sender = ? AND kind IN (?, ?)
		AND state <> 'pending' AND succeeded = 0 AND created_at > ?`), chain, text(s.Address()), a, b, millis(since))
	if err != nil {
		return nil, nil, fmt.Errorf("chain: reading what reverted: %w", err)
	}
	for _, cost := range costs {
		lost.Add(lost, wei(cost))
	}
	flying, err := s.InFlight(ctx)
	for _, tx := range flying {
		if tx.Call.Kind != a && tx.Call.Kind != b {
			continue
		}
		newest := tx.Attempts[len(tx.Attempts)-1].Signed
		risked.Add(risked, new(big.Int).Mul(newest.GasFeeCap(), new(big.Int).SetUint64(newest.Gas())))
	}
	return lost, risked, err
}
