package renter

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/audit"
)

// Prune deletes the usage records of rentals over which nobody can argue any more, each after archive has kept its bundle: those
// whose end on the chain is final, that were written last before a time, and in which the provider was caught at nothing. What was
// signed stays, what the GPUs were billed for and what counts against the caps. It returns how many it pruned, and stops at the
// first error. Channels with x402 servers are x402client.Prune's.
func (r *Client) Prune(ctx context.Context, before time.Time, archive func(*audit.Bundle) error) (int, error) {
	rows, err := r.store.list(ctx, isSettled, PhaseFinished, before.UnixMilli())
	if err != nil {
		return 0, err
	}
	pruned := 0
	for _, row := range rows {
		if row.Dispute != "" {
			continue
		}
		id := row.Terms.ID()
		b, err := r.Export(ctx, id)
		if err == nil {
			err = archive(b)
		}
		still := false
		if err == nil {
			still, err = r.store.prune(ctx, id, before)
		}
		if err != nil {
			return pruned, fmt.Errorf("channel %s: pruning its records: %w", id, err)
		}
		if still {
			pruned++
		}
	}
	return pruned, nil
}

// isSettled selects the rentals that are in a state since a time, in unix milliseconds,
// that have records and of which there is no evidence.
const isSettled = `WHERE state = ? AND updated_at < ?
	AND channel IN (SELECT channel FROM rental_records)
	AND channel NOT IN (SELECT channel FROM rental_evidence) AND channel NOT IN (SELECT channel FROM rental_proofs)`

// prune deletes a rental's records, unless it is open again by now.
func (s rentalStore) prune(ctx context.Context, id common.Hash, before time.Time) (deleted bool, err error) {
	err = s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		done, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM rental_records WHERE channel = ? AND channel IN (SELECT channel FROM rentals `+isSettled+`)`),
			id.Hex(), PhaseFinished, before.UnixMilli())
		if err != nil {
			return err
		}
		n, err := done.RowsAffected()
		deleted = n > 0
		return err
	})
	return deleted, err
}
