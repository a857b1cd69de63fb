package sdk

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// Recover finds this renter's channels in an escrow that its database does not
// know, as after the loss of one, and keeps them as rentals to be left: the
// channel, and not who its provider is, stands on the chain. from is the first
// block to look at: that of the contract, or of the first rental. Nothing is
// signed or sent. It returns the channels that were found.
func (r *Renter) Recover(ctx context.Context, escrow common.Address, from uint64) ([]common.Hash, error) {
	contract, err := chain.NewEscrow(ctx, r.backend, escrow)
	if err != nil {
		return nil, err
	}
	head, err := r.moment(ctx, r.config.Confirmations)
	if err != nil {
		return nil, err
	}
	opened, err := contract.OpenedBy(ctx, r.Address(), from, head.block.Uint64())
	if err != nil {
		return nil, err
	}
	var found []common.Hash
	for _, terms := range opened {
		fresh, err := r.adopt(ctx, contract, terms, head)
		if err != nil {
			return found, fmt.Errorf("channel %s: %w", terms.ID(), err)
		}
		if fresh {
			found = append(found, terms.ID())
		}
	}
	return found, nil
}

// adopt keeps a channel that is not over and not known yet, and pays in our token.
func (r *Renter) adopt(ctx context.Context, contract *chain.Escrow, terms channel.Terms, head moment) (bool, error) {
	_, err := r.store.load(ctx, terms.ID())
	if err == nil || !errors.Is(err, channel.ErrUnknown) || terms.Token != r.token.Address {
		return false, ignoreUnknown(err)
	}
	view, err := contract.View(ctx, terms.ID(), head.block)
	if err != nil || view.Finalized {
		return false, err
	}
	if _, err := r.payer(contract).Adopt(ctx, terms, view); err != nil {
		return false, err
	}
	row := rentalRow{Terms: terms, GPUs: 1, Deposit: view.Deposit, Phase: RentalLeaving, Ended: "found on the chain: its records were lost"}
	if err := r.store.create(ctx, row); err != nil {
		return false, err
	}
	r.config.Log.Warn("channel is ours and this database did not know it: leave it", "channel", terms.ID(), "deposit", view.Deposit.Dec())
	return true, nil
}

func ignoreUnknown(err error) error {
	if errors.Is(err, channel.ErrUnknown) {
		return nil
	}
	return err
}
