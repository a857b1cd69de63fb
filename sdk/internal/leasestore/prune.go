package leasestore

import (
	"context"
	"encoding/json"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// ForgetOffers forgets those that expired before a time, that no lease is under and
// that are not among the needed hashes: a new one is signed again and again. One that has
// not expired may be a lease's which is about to begin.
func ForgetOffers(ctx context.Context, tx *sqlx.Tx, before time.Time, needed map[string]bool) error {
	var unused []struct{ Hash, Document string }
	if err := tx.SelectContext(ctx, &unused, `SELECT hash, document FROM offers WHERE hash NOT IN (SELECT offer FROM leases)`); err != nil {
		return err
	}
	for _, row := range unused {
		if o, err := wire.ParseOffer([]byte(row.Document)); needed[row.Hash] || err == nil && o.Expires >= before.Unix() {
			continue
		}
		if _, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM offers WHERE hash = ?`), row.Hash); err != nil {
			return err
		}
	}
	return nil
}

// shownOffers are the hashes of the offers that records name which renters have shown and which are not in the database.
func shownOffers(ctx context.Context, tx *sqlx.Tx) (map[string]bool, error) {
	var documents []string
	if err := tx.SelectContext(ctx, &documents, `SELECT record FROM shown_records`); err != nil {
		return nil, err
	}
	named := make(map[string]bool)
	for _, document := range documents {
		var shown wire.ShownRecord
		if err := json.Unmarshal([]byte(document), &shown); err != nil {
			return nil, err
		}
		named[shown.Record.OfferHash.Hex()] = true
	}
	return named, nil
}

// Concluded reports a channel of which nothing is left to settle or to refuse.
func Concluded(s channel.State) bool {
	unsettled := s.Unsettled()
	return s.Status == channel.Finalized || s.Terms.Scheme.Lasting() && unsettled.IsZero()
}

// Quiet returns the channels whose leases all ended before a time.
func (s Leases) Quiet(ctx context.Context, before time.Time) ([]common.Hash, error) {
	var rows []string
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT channel FROM leases WHERE `+isQuiet+` ORDER BY channel`), before.Unix())
	ids := make([]common.Hash, len(rows))
	for i, row := range rows {
		ids[i] = common.HexToHash(row)
	}
	return ids, err
}

// isQuiet selects the channels whose leases all ended before a time, in unix seconds,
// and of which no renter has shown a record that was lost.
const isQuiet = `channel NOT IN (SELECT channel FROM shown_records)
	GROUP BY channel HAVING SUM(CASE WHEN state = 'ended' AND ended_at < ? AND held = 0 THEN 0 ELSE 1 END) = 0`

// IsQuiet tells of one channel what quiet lists.
func (s Leases) IsQuiet(ctx context.Context, q sqlx.ExtContext, channelID common.Hash, before time.Time) (bool, error) {
	var n int
	err := sqlx.GetContext(ctx, q, &n, q.Rebind(`SELECT COUNT(*) FROM (SELECT channel FROM leases WHERE channel = ? AND `+isQuiet+`) quiet`), channelID.Hex(), before.Unix())
	return n > 0, err
}

// Prune deletes the leases and records of a channel if it is still quiet, and reports
// whether it was: a lease may have begun while the archive was written, and without
// its row nobody would take its GPUs back.
func (s Leases) Prune(ctx context.Context, channelID common.Hash, before time.Time) (still bool, err error) {
	err = s.db.Update(ctx, func(tx *sqlx.Tx) error {
		if err := s.hold(ctx, tx, channelID); err != nil {
			return err
		}
		if now, err := s.db.Payee().Load(ctx, channelID); err != nil || !Concluded(now) {
			return err // it was used, or a re-org undid its end, while the archive was written
		}
		if still, err = s.IsQuiet(ctx, tx, channelID, before); err != nil || !still {
			return err
		}
		_, err = tx.ExecContext(ctx, tx.Rebind(`DELETE FROM records WHERE lease IN (SELECT id FROM leases WHERE channel = ?)`), channelID.Hex())
		if err == nil {
			_, err = tx.ExecContext(ctx, tx.Rebind(`DELETE FROM leases WHERE channel = ?`), channelID.Hex())
		}
		return err
	})
	return still && err == nil, err
}

// hold has leases that begin on a channel at other gateways wait until the transaction
// is over. See open.
func (s Leases) hold(ctx context.Context, tx *sqlx.Tx, channelID common.Hash) error {
	if !s.db.Shared() {
		return nil // it has one writer
	}
	var held []byte
	return tx.GetContext(ctx, &held, tx.Rebind(`SELECT id FROM payee_channels WHERE id = ? FOR UPDATE`), channelID.Bytes())
}
