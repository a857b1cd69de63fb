package renter

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// Recover finds this renter's channels in an escrow that its database does not
// know, or has as over though the chain has them open, as after the loss of one,
// with a copy from before a deposit, or after a false word of an endpoint, and
// keeps them as rentals to be left: the channel, and not who its provider is,
// stands on the chain. Those whose vouchers another key signs are among them: what
// this renter deposited comes back to it. from is the first block to look at: that
// of the contract, or of the first rental. Nothing is signed or sent. It returns
// the channels that were found; the error joins those of the channels of which it
// could not be said.
func (r *Client) Recover(ctx context.Context, escrow common.Address, from uint64) ([]common.Hash, error) {
	contract, err := chain.NewEscrow(ctx, r.w.Backend, escrow)
	if err != nil {
		return nil, err
	}
	head, err := r.moment(ctx, r.w.Confirmations)
	if err != nil {
		return nil, err
	}
	opened, err := contract.OpenedBy(ctx, r.Address(), from, head.block.Uint64())
	if err != nil {
		return nil, err
	}
	var found []common.Hash
	var failed error
	for _, terms := range opened {
		fresh, err := r.adopt(ctx, contract, terms, head)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("channel %s: %w", terms.ID(), err))
		}
		if fresh {
			found = append(found, terms.ID())
		}
		if ctx.Err() != nil {
			break
		}
	}
	return found, failed
}

// adopt keeps a channel that is not over, pays in our token, and is not known yet
// or is over in the books. An event of a channel that the contract does not know
// is nobody's.
func (r *Client) adopt(ctx context.Context, contract *chain.Escrow, terms channel.Terms, head moment) (bool, error) {
	row, err := r.store.load(ctx, terms.ID())
	known := err == nil
	if known && !row.isOver() || terms.Token != r.w.Token.Address || ignoreUnknown(err) != nil {
		return false, ignoreUnknown(err)
	}
	view, err := contract.View(ctx, terms.ID(), head.block)
	if err != nil || view.Finalized {
		return false, ignoreUnknown(err)
	}
	if _, err := r.payer(contract).Adopt(ctx, terms, view); err != nil {
		return false, err
	}
	if known { // its deposit came after it was taken for one that never would, or its end was undone or made up
		row.Closed, row.Deposit, row.Phase, row.Ended = nil, view.Deposit, PhaseLeaving, "found on the chain: it was taken for over"
		err = r.store.save(ctx, row)
	} else {
		row = rentalRow{Terms: terms, GPUs: 1, Deposit: view.Deposit, Phase: PhaseLeaving, Ended: "found on the chain: its records were lost"}
		err = r.store.create(ctx, row)
	}
	if err != nil {
		return false, err
	}
	r.w.Log.Warn("channel is ours and this database did not know that it is open: leave it", "channel", terms.ID(), "deposit", view.Deposit.Dec())
	return true, nil
}

// isOver reports a rental that is over in the books.
func (row *rentalRow) isOver() bool { return row.Phase == PhaseClosed || row.Phase == PhaseFinished }

func ignoreUnknown(err error) error {
	if errors.Is(err, channel.ErrUnknown) {
		return nil
	}
	return err
}
