package chain

import (
	"context"
	"math/big"
	"slices"
	"time"
)

// Recent lists this key's transactions of some kinds that were submitted since a moment, oldest first. It is for who must
// keep within a budget over a restart.
func (s *Sender) Recent(ctx context.Context, since time.Time, kinds ...Kind) ([]Tx, error) {
	chain, err := s.parts().chainID(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.Store.list(ctx, `WHERE chain = ? AND sender = ? AND created_at > ? ORDER BY created_at, nonce`, chain, text(s.Address()), millis(since))
	if err != nil {
		return nil, err
	}
	now := s.parts().now()
	return slices.DeleteFunc(all, func(tx Tx) bool {
		return !slices.Contains(kinds, tx.Call.Kind) || !s.submittedSince(tx.ID, tx.CreatedAt, since, now)
	}), nil
}

// Price is what the transaction has cost, in wei, or the most that it may still cost. What a rollup charges for data is in
// it as far as it could be asked for.
func (tx Tx) Price() *big.Int {
	if tx.State != Pending && tx.Cost != nil {
		return tx.Cost
	}
	newest := tx.newest().Signed
	most := new(big.Int).Mul(newest.GasFeeCap(), new(big.Int).SetUint64(newest.Gas()))
	if tx.DataFee != nil {
		most.Add(most, tx.DataFee)
	}
	if tx.Most != nil {
		most = larger(most, tx.Most) // its fee may be raised so far
	}
	return most
}
