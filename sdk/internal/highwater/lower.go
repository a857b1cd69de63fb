package highwater

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
)

// LowerNonce has the highest nonce of a key on a chain be one below next, if it is higher. It is for one that was raised by an
// endpoint's false word, and that nothing can be mined under; all else that the file remembers stays.
func (m *Marks) LowerNonce(ctx context.Context, key common.Address, chain, next uint64) error {
	err := m.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`UPDATE nonce_mark SET nonce = ? WHERE key = ? AND chain = ? AND nonce > ?`, int64(next)-1, key.Hex(), int64(chain), int64(next)-1)
		return err
	})
	if err != nil {
		return fmt.Errorf("high-water mark %s: nonce %d of %s: %w", m.path, next, key, err)
	}
	return nil
}
