package provider

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
)

// retention deletes what nobody can argue about any more, and keeps it in an archive.
type retention struct {
	db     *store.DB
	store  leasestore.Store
	txs    *chain.Store
	payee  *channel.Payee
	debts  *payercredit.Debts
	keep   time.Duration // how long records are kept in the database; zero: for ever
	folder string        // of the archive
	log    *slog.Logger
}

// Prune deletes the leases and usage records of channels over which nobody can
// argue any more, each after archive has kept its bundle: channels whose leases all
// ended before a time, that are closed on the chain or, with x402, have nothing
// unsettled, on which nothing is owed that Config.Terms.DebtKept is not over for, and in whose leases no renter has shown a record that was lost. The
// channels themselves stay. It deletes the offers too that expired before that time, and
// a day ago, and that no lease is under that is kept, and no record that a renter has
// shown. It returns how many channels it pruned, and stops at the first error.
func (p *Server) Prune(ctx context.Context, before time.Time, archive func(*audit.Bundle) error) (int, error) {
	return p.retention.prune(ctx, before, archive)
}

func (r *retention) prune(ctx context.Context, before time.Time, archive func(*audit.Bundle) error) (int, error) {
	ids, err := r.store.Leases.Quiet(ctx, before)
	if err != nil {
		return 0, err
	}
	pruned := 0
	for _, id := range ids {
		s, err := r.payee.State(ctx, id)
		if err != nil {
			return pruned, err
		}
		owes, err := r.debts.OwesStill(ctx, s)
		if err != nil {
			return pruned, err
		}
		if owes || !leasestore.Concluded(s) {
			continue
		}
		b, err := leasestore.Export(ctx, r.db, r.txs, id)
		still := false
		if err == nil {
			still, err = r.store.Leases.IsQuiet(ctx, r.db.View(), id, before)
		}
		if err == nil && !still {
			continue // another gateway may have deleted while this one read: a part is no bundle to keep
		}
		if err == nil {
			err = archive(b)
		}
		if err == nil {
			still, err = r.store.Leases.Prune(ctx, id, before)
		}
		if err != nil {
			return pruned, fmt.Errorf("channel %s: pruning its records: %w", id, err)
		}
		if still {
			pruned++
		}
	}
	if day := time.Now().Add(-leasestore.MaxClockSkew); before.After(day) {
		before = day // a lease may be about to begin at a gateway whose clock is behind
	}
	return pruned, r.store.ForgetOffers(ctx, before)
}

// run prunes once an hour, into the archive, if that is configured.
func (r *retention) run(ctx context.Context) error {
	if r.keep == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	for {
		n, err := r.prune(ctx, time.Now().Add(-r.keep), r.archive)
		if err != nil && ctx.Err() == nil {
			r.log.Error("old usage records could not be archived: they are kept", "archive", r.folder, "error", err)
		}
		if n > 0 {
			r.log.Info("old usage records are in the archive", "channels", n, "archive", r.folder)
		}
		if err := chain.Pause(ctx, time.Hour); err != nil {
			return err
		}
	}
}

// archive has a bundle on disk, whole and synced, before it returns. What it says is
// in its file's name, so that no bundle of a channel is written over another: one of
// x402 is used again after it was pruned.
func (r *retention) archive(b *audit.Bundle) error {
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	path := filepath.Join(r.folder, b.Channel.Hex()+"-"+hex.EncodeToString(sum[:8])+".json")
	file, err := os.CreateTemp(r.folder, ".bundle-*")
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
	dir, err := os.Open(r.folder)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
