package sdk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Prune deletes the leases and usage records of channels over which nobody can
// argue any more, each after archive has kept its bundle: channels whose leases all
// ended before a time, that are closed on the chain or, with x402, have nothing
// unsettled, on which nothing is owed that ProviderConfig.DebtKept is not over for, and in whose leases no renter has shown a record that was lost. The
// channels themselves stay. It deletes the offers too that expired before that time, and
// a day ago, and that no lease is under that is kept, and no record that a renter has
// shown. It returns how many channels it pruned, and stops at the first error.
func (p *Provider) Prune(ctx context.Context, before time.Time, archive func(*audit.Bundle) error) (int, error) {
	ids, err := p.store.quiet(ctx, before)
	if err != nil {
		return 0, err
	}
	pruned := 0
	for _, id := range ids {
		s, err := p.payee.State(ctx, id)
		if err != nil {
			return pruned, err
		}
		owes, err := p.owesStill(ctx, s)
		if err != nil {
			return pruned, err
		}
		if owes || !concluded(s) {
			continue
		}
		b, err := p.Export(ctx, id)
		still := false
		if err == nil {
			still, err = p.store.isQuiet(ctx, p.db.View(), id, before)
		}
		if err == nil && !still {
			continue // another gateway may have deleted while this one read: a part is no bundle to keep
		}
		if err == nil {
			err = archive(b)
		}
		if err == nil {
			still, err = p.store.prune(ctx, id, before)
		}
		if err != nil {
			return pruned, fmt.Errorf("channel %s: pruning its records: %w", id, err)
		}
		if still {
			pruned++
		}
	}
	if day := time.Now().Add(-clocksDiffer); before.After(day) {
		before = day // a lease may be about to begin at a gateway whose clock is behind
	}
	return pruned, p.db.Update(ctx, func(tx *sqlx.Tx) error {
		shown, err := shownOffers(ctx, tx)
		if err != nil {
			return err
		}
		return forgetOffers(ctx, tx, before, shown)
	})
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

// concluded reports a channel of which nothing is left to settle or to refuse.
func concluded(s channel.State) bool {
	unsettled := s.Unsettled()
	return s.Status == channel.Finalized || s.Terms.Scheme == channel.BatchSettlement && unsettled.IsZero()
}

// quiet returns the channels whose leases all ended before a time.
func (s leaseStore) quiet(ctx context.Context, before time.Time) ([]common.Hash, error) {
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

// isQuiet tells of one channel what quiet lists.
func (s leaseStore) isQuiet(ctx context.Context, q sqlx.ExtContext, channelID common.Hash, before time.Time) (bool, error) {
	var n int
	err := sqlx.GetContext(ctx, q, &n, q.Rebind(`SELECT COUNT(*) FROM (SELECT channel FROM leases WHERE channel = ? AND `+isQuiet+`) quiet`), channelID.Hex(), before.Unix())
	return n > 0, err
}

// prune deletes the leases and records of a channel if it is still quiet, and reports
// whether it was: a lease may have begun while the archive was written, and without
// its row nobody would take its GPUs back.
func (s leaseStore) prune(ctx context.Context, channelID common.Hash, before time.Time) (still bool, err error) {
	err = s.db.Update(ctx, func(tx *sqlx.Tx) error {
		if err := s.hold(ctx, tx, channelID); err != nil {
			return err
		}
		if now, err := s.db.Payee().Load(ctx, channelID); err != nil || !concluded(now) {
			return err // it was used, or a re-org undid its end, while the archive was written
		}
		if still, err = s.isQuiet(ctx, tx, channelID, before); err != nil || !still {
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
func (s leaseStore) hold(ctx context.Context, tx *sqlx.Tx, channelID common.Hash) error {
	if !s.db.Shared() {
		return nil // it has one writer
	}
	var held []byte
	return tx.GetContext(ctx, &held, tx.Rebind(`SELECT id FROM payee_channels WHERE id = ? FOR UPDATE`), channelID.Bytes())
}

// retain prunes once an hour, into the archive, if that is configured.
func (p *Provider) retain(ctx context.Context) error {
	if p.config.Retention == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	for {
		n, err := p.Prune(ctx, time.Now().Add(-p.config.Retention), p.archive)
		if err != nil && ctx.Err() == nil {
			p.config.Log.Error("old usage records could not be archived: they are kept", "archive", p.config.Archive, "error", err)
		}
		if n > 0 {
			p.config.Log.Info("old usage records are in the archive", "channels", n, "archive", p.config.Archive)
		}
		if err := chain.Pause(ctx, time.Hour); err != nil {
			return err
		}
	}
}

// archive has a bundle on disk, whole and synced, before it returns. What it says is
// in its file's name, so that no bundle of a channel is written over another: one of
// x402 is used again after it was pruned.
func (p *Provider) archive(b *audit.Bundle) error {
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	path := filepath.Join(p.config.Archive, b.Channel.Hex()+"-"+hex.EncodeToString(sum[:8])+".json")
	file, err := os.CreateTemp(p.config.Archive, ".bundle-*")
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	dir, err := os.Open(p.config.Archive)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
