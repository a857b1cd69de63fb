package chain

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
)

// Newest lists what was last put into the outbox about a channel, of some kinds, the newest first: at most n after
// leaving out skip. That a transaction is listed does not say that it was mined, or will be.
func (s *Sender) Newest(ctx context.Context, channel common.Hash, n, skip int, kinds ...Kind) ([]Call, error) {
	query, args, err := sqlx.In(`SELECT `+txColumns+` FROM chain_tx JOIN chain_tx_channel ON chain_tx.id = chain_tx_channel.tx
		WHERE chain_tx_channel.channel = ? AND kind IN (?) ORDER BY created_at DESC, nonce DESC LIMIT ? OFFSET ?`, text(channel), kinds, n, skip)
	if err != nil {
		return nil, fmt.Errorf("chain: reading the outbox: %w", err)
	}
	var rows []txRow
	db := s.Store.db.View()
	if err := db.SelectContext(ctx, &rows, db.Rebind(query), args...); err != nil {
		return nil, fmt.Errorf("chain: reading the outbox about channel %s: %w", channel, err)
	}
	calls := make([]Call, len(rows))
	for i, row := range rows {
		tx, err := fromRow(row)
		if err != nil {
			return nil, err
		}
		calls[i] = tx.Call
	}
	return calls, nil
}
