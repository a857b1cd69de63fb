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
// since a moment and reverted have cost, by whatever key, and risked is the most that this key's in flight may still cost.
func (s *Sender) Wasted(ctx context.Context, since time.Time, kinds ...Kind) (lost, risked *big.Int, err error) {
	chain, err := s.parts().chainID(ctx)
	if err != nil {
		return nil, nil, err
	}
	risked, now := new(big.Int), s.parts().now()
	where, args, err := sqlx.In(`WHERE chain = ? AND kind IN (?) AND state <> 'pending' AND succeeded = 0 AND created_at > ?`, chain, kinds, millis(since))
	if err == nil {
		lost, err = s.Store.cost(ctx, func(id TxID, at time.Time) bool { return s.submittedSince(id, at, since, now) }, where, args...)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("chain: reading what reverted: %w", err)
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
