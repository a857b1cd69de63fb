package highwater

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"
)

// Total is what a record says is owed on a channel, in base units, over all its leases.
type Total struct {
	Channel common.Hash
	Owed    uint256.Int
}

// raiseOwed keeps the greatest total of a channel.
func raiseOwed(ctx context.Context, tx *sqlx.Tx, t Total) error {
	word := t.Owed.Bytes32()
	_, err := tx.ExecContext(ctx, `INSERT INTO owed (channel, total, at) VALUES (?, ?, ?)
		ON CONFLICT (channel) DO UPDATE SET total = max(owed.total, excluded.total), at = excluded.at`,
		t.Channel.Hex(), hex.EncodeToString(word[:]), time.Now().Unix())
	return err
}

// Owed returns the most that a record signed on this host says is owed on a channel, in base units; zero if none was. A
// database that says less was charged has forgotten records.
func (m *Marks) Owed(ctx context.Context, channel common.Hash) (owed uint256.Int, err error) {
	var text string
	err = m.db.View().GetContext(ctx, &text, `SELECT total FROM owed WHERE channel = ?`, channel.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return owed, nil
	}
	if err == nil {
		var word []byte
		word, err = hex.DecodeString(text)
		owed.SetBytes(word)
	}
	if err != nil {
		return owed, fmt.Errorf("high-water mark %s: what is owed on channel %s: %w", m.path, channel, err)
	}
	return owed, nil
}
