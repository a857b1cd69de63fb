package x402client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// Prune deletes the usage records of a wallet's channels with x402 servers over which nobody can argue any more, each after
// archive has kept its bundle: those that were caught at nothing and hold no money, by a look at the chain before a time and by
// one now. What was signed stays, what the GPUs were billed for and what counts against the caps. It returns how many channels it
// pruned, and stops at the first error.
func Prune(ctx context.Context, w *wallet.Wallet, before time.Time, archive func(*audit.Bundle) error) (pruned int, err error) {
	all := accounts{w.Store}
	quiet, err := all.quiet(ctx, before)
	for _, s := range quiet {
		empty, err := emptySince(ctx, w, s.ID, before)
		if err != nil {
			return pruned, fmt.Errorf("channel %s: whether it holds money: %w", s.ID, err)
		}
		if !empty {
			continue
		}
		b, err := Export(ctx, w, s.ID)
		if err == nil {
			err = archive(b)
		}
		deleted := false
		if err == nil {
			deleted, err = all.prune(ctx, s, before)
		}
		if err != nil {
			return pruned, fmt.Errorf("channel %s: pruning its records: %w", s.ID, err)
		}
		if deleted {
			pruned++
		}
	}
	return pruned, err
}

// emptySince reports whether an x402 channel has nothing that could be claimed or
// refunded, by what was seen of the chain before a time and is there now, and whether
// the books have what became of our transactions about it. What is seen first counts
// from now on: it may be undone.
func emptySince(ctx context.Context, w *wallet.Wallet, id common.Hash, before time.Time) (bool, error) {
	known, err := w.DB.Payer().Load(ctx, id)
	if err != nil {
		return false, err
	}
	contract, err := chain.NewBatchSettlement(ctx, w.Backend)
	if err != nil {
		return false, err
	}
	on, _, err := contract.Confirmed(ctx, []common.Hash{id}, 1)
	if err != nil || on[0].Disputed || on[0].Latest.Deposit.Gt(&on[0].Latest.Settled) || on[0].Latest.CloseRequestedAt != 0 {
		return false, err
	}
	if known.Deposit != on[0].Latest.Deposit || known.Settled != on[0].Latest.Settled {
		payer := channel.Payer{Store: w.DB.Payer(), Now: w.Now}
		_, err = payer.Observe(ctx, id, on[0].Latest)
		return false, err
	}
	if !known.UpdatedAt.Before(before) {
		return false, nil
	}
	if err = w.Sync(ctx, id); errors.Is(err, wallet.ErrNotYet) {
		return false, nil
	}
	return err == nil, err
}
