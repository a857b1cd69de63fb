package outcome

import (
	"context"
	"errors"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/chain"
)

// SendOnce sends a call that only works once, or takes the one of its kind that is on its way already about the same channel, and
// waits as Over does: what came of it the caller asks the contract. One whose nonce is used has come to what it could, whether its receipt
// is shown or not: where the contract takes another, that is sent.
func SendOnce(ctx context.Context, s *chain.Sender, call chain.Call, confirmations uint64) error {
	if err := s.Sync(ctx); err != nil { // what a re-org undid is on its way again, and pending
		return err
	}
	sent, err := s.Find(ctx, call.Channels[0], call.Kind)
	if err != nil {
		return err
	}
	for _, tx := range sent {
		if tx.State == chain.Pending && tx.Sender == s.Address() && !Used(ctx, s, tx.ID, confirmations) {
			return Over(ctx, s, tx.ID, confirmations)
		}
	}
	id, err := s.Submit(ctx, call)
	if err != nil {
		return err
	}
	return Over(ctx, s, id, confirmations)
}

// Over waits until a transaction has so many confirmations, or can change nothing any more and its receipt does not come. It is for
// who asks the contract next.
func Over(ctx context.Context, s *chain.Sender, id chain.TxID, confirmations uint64) error {
	_, err := Wait(ctx, s, id, confirmations, nil)
	if errors.Is(err, ErrUnseen) {
		return nil
	}
	return err
}

// Newest is the hash of a transaction's newest version: where no receipt is shown, no other is more likely the one that was mined.
func Newest(ctx context.Context, s *chain.Sender, id chain.TxID) (common.Hash, error) {
	tx, err := s.Store.Get(ctx, id)
	if err != nil || len(tx.Attempts) == 0 {
		return tx.Hash, err
	}
	return tx.Attempts[len(tx.Attempts)-1].Signed.Hash(), nil
}
