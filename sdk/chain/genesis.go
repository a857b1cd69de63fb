package chain

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/jmoiron/sqlx"
)

// CheckGenesis refuses (ErrChainID) a chain that has the id of the one that the database is from and another first block, as a
// test chain has that was started anew: nothing of the database is on it. The first chain of an id is kept. What does not show
// block 0, as a pruned node does not, and endpoints that contradict each other about it, are no reason to refuse.
func (s *Store) CheckGenesis(ctx context.Context, backend Backend) error {
	chain, err := chainID(ctx, backend)
	if err != nil {
		return err
	}
	said, err := two(ctx, backend, func(ctx context.Context, b Backend) (*types.Header, error) {
		return b.HeaderByNumber(ctx, new(big.Int))
	})
	if err != nil {
		return ctx.Err()
	}
	first := genesisOf(said[0].say)
	for _, other := range said[1:] {
		if genesisOf(other.say) != first {
			return nil
		}
	}
	var kept string
	err = s.db.Update(ctx, func(db *sqlx.Tx) error {
		_, err := db.ExecContext(ctx, db.Rebind(`INSERT INTO chain_genesis (chain, genesis) VALUES (?, ?) ON CONFLICT DO NOTHING`), chain, text(first))
		if err != nil {
			return err
		}
		return db.GetContext(ctx, &kept, db.Rebind(`SELECT genesis FROM chain_genesis WHERE chain = ?`), chain)
	})
	if err != nil {
		return fmt.Errorf("chain: keeping what the first block is: %w", err)
	}
	if kept != text(first) {
		return fmt.Errorf("%w: database %s is from another chain %d than the endpoint's, which begins with another block: it was started anew, or is somebody else's; take another database (--db), or the endpoint of before",
			ErrChainID, s.db.Path(), chain)
	}
	return nil
}

// genesisOf tells first blocks apart by what no version of a client reads in another way, unlike a hash over all fields.
func genesisOf(h *types.Header) common.Hash {
	return crypto.Keccak256Hash(h.Root[:], binary.BigEndian.AppendUint64(nil, h.Time), h.Extra)
}
