package rig

import (
	"context"
	"errors"
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/sdk/chain"
)

// Unindexed is a node that mines what it is sent and does not come to say so of some, as one that indexes anew after a stop.
type Unindexed struct {
	chain.Backend
	Says error // of a receipt that it hides; that it indexes if nil

	mu     sync.Mutex
	hide   bool
	once   bool
	hidden map[common.Hash]bool
}

// Hides has it hide the receipts of all that it is sent from here on, or of nothing more.
func (u *Unindexed) Hides(hide bool) { u.set(hide, false) }

// HideNext has it hide the receipt of the next transaction that it is sent.
func (u *Unindexed) HideNext() { u.set(true, true) }

func (u *Unindexed) set(hide, once bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hide, u.once = hide, once
}

func (u *Unindexed) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	u.mu.Lock()
	if u.hide {
		if u.hidden == nil {
			u.hidden = make(map[common.Hash]bool)
		}
		u.hidden[tx.Hash()], u.hide = true, !u.once
	}
	u.mu.Unlock()
	return u.Backend.SendTransaction(ctx, tx)
}

func (u *Unindexed) TransactionReceipt(ctx context.Context, hash common.Hash) (*types.Receipt, error) {
	u.mu.Lock()
	hidden := u.hidden[hash]
	u.mu.Unlock()
	switch {
	case !hidden:
		return u.Backend.TransactionReceipt(ctx, hash)
	case u.Says != nil:
		return nil, u.Says
	}
	return nil, errors.New("transaction indexing is in progress")
}
