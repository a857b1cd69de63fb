package x402account

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// ErrStale says that somebody else wrote an account since it was read.
var ErrStale = errors.New("another program pays from the channel: one database belongs to one renter")

// Store keeps accounts.
type Store struct{ wallet.Store }

// Load returns a channel's account, or nil.
func (s Store) Load(ctx context.Context, id common.Hash) (*Account, error) {
	all, err := s.query(ctx, `WHERE channel = ?`, id.Hex())
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return &all[0], nil
}

// List returns all, in order of their channels.
func (s Store) List(ctx context.Context) ([]Account, error) { return s.query(ctx, ``) }

// Related returns the accounts of a payee, and those that were paid from at a site.
func (s Store) Related(ctx context.Context, payee common.Address, site string) ([]Account, error) {
	return s.query(ctx, `WHERE payee = ? OR channel IN (SELECT channel FROM x402_sites WHERE site = ?)`, strings.ToLower(payee.Hex()), site)
}

func (s Store) query(ctx context.Context, where string, args ...any) ([]Account, error) {
	var rows []struct {
		Document string `db:"document"`
		Payee    string `db:"payee"`
		Version  int64  `db:"version"`
	}
	view := s.DB.View()
	if err := view.SelectContext(ctx, &rows, view.Rebind(`SELECT document, payee, version FROM x402_slates `+where+` ORDER BY channel`), args...); err != nil {
		return nil, fmt.Errorf("reading x402 accounts: %w", err)
	}
	all := make([]Account, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal([]byte(row.Document), &all[i]); err != nil {
			return nil, fmt.Errorf("an x402 account on disk does not parse; restore the database from its backup: %w", err)
		}
		all[i].version, all[i].Payee = row.Version, common.HexToAddress(row.Payee)
	}
	return all, nil
}

// Save keeps an account, unless another program did since it was read. Memory and
// disk must not differ because somebody lost patience, so it does not end with ctx.
func (s Store) Save(ctx context.Context, t *Account) error {
	return s.Accept(ctx, t, nil)
}

// Accept keeps an account and the usage record that was checked for it in one step.
func (s Store) Accept(ctx context.Context, t *Account, rec *metering.SignedRecord) error {
	document, err := json.Marshal(t) // by reference: uint256.Int only then writes a decimal
	if err != nil {
		return err
	}
	err = s.DB.Update(context.WithoutCancel(ctx), func(tx *sqlx.Tx) error {
		if err := t.write(tx, string(document)); err != nil || rec == nil {
			return err
		}
		text, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(tx.Rebind(`INSERT INTO x402_offers (hash, document) VALUES (?, ?) ON CONFLICT DO NOTHING`), rec.OfferHash.Hex(), string(t.Ticking.Offer)); err != nil {
			return err
		}
		_, err = tx.Exec(tx.Rebind(`INSERT INTO x402_records (channel, lease, sequence, record) VALUES (?, ?, ?, ?)`),
			t.ID.Hex(), rec.LeaseID.Hex(), int64(rec.Sequence), string(text))
		return err
	})
	if err != nil {
		return fmt.Errorf("channel %s: keeping its account: %w", t.ID, err)
	}
	t.version++
	return nil
}

// Checked returns the checked usage records of a channel, in order.
func (s Store) Checked(ctx context.Context, id common.Hash) ([]metering.SignedRecord, error) {
	return s.Records(ctx, "x402_records", id)
}

// offer is one that records were kept under: null where they are from before offers were.
func (s Store) offer(ctx context.Context, hash common.Hash) (json.RawMessage, error) {
	var all []string
	db := s.DB.View()
	err := db.SelectContext(ctx, &all, db.Rebind(`SELECT document FROM x402_offers WHERE hash = ?`), hash.Hex())
	if err != nil || len(all) == 0 {
		return json.RawMessage("null"), err
	}
	return json.RawMessage(all[0]), nil
}

// isQuietAccount selects the accounts that were written last before a time, in unix
// milliseconds, of whose channels there are records and no evidence.
const isQuietAccount = `WHERE updated_at < ? AND channel IN (SELECT channel FROM x402_records)
	AND channel NOT IN (SELECT channel FROM rental_evidence) AND channel NOT IN (SELECT channel FROM rental_proofs)`

// Quiet returns the accounts of which nothing is under way, written last before a time.
func (s Store) Quiet(ctx context.Context, before time.Time) ([]Account, error) {
	all, err := s.query(ctx, isQuietAccount, before.UnixMilli())
	return slices.DeleteFunc(all, func(t Account) bool {
		return t.Tick != nil || t.Deposit != nil || t.Leaving || t.Dispute != "" || len(t.Accused) > 0 || !t.Lost.IsZero()
	}), err
}

// Prune deletes the records of a channel, unless it was paid from since its account was read.
func (s Store) Prune(ctx context.Context, t Account, before time.Time) (deleted bool, err error) {
	err = s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		done, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM x402_records WHERE channel = ? AND channel IN (SELECT channel FROM x402_slates `+isQuietAccount+` AND version = ?)`),
			t.ID.Hex(), before.UnixMilli(), t.version)
		if err != nil {
			return err
		}
		n, err := done.RowsAffected()
		deleted = n > 0
		return err
	})
	return deleted, err
}

// Newest is the account whose channel changed last, zero if none of the channels is one.
func (s Store) Newest(ctx context.Context, channels []channel.PayerState) (newest common.Hash, err error) {
	var at time.Time
	for _, c := range channels {
		account, err := s.HasAccount(ctx, c.ID)
		if err != nil {
			return newest, err
		}
		if account && !c.UpdatedAt.Before(at) {
			newest, at = c.ID, c.UpdatedAt
		}
	}
	return newest, nil
}

// Export is what a payer's database keeps about a channel with an x402 server.
func Export(ctx context.Context, db *store.DB, txs *chain.Store, id common.Hash) (*audit.Bundle, error) {
	accounts := Store{wallet.Store{DB: db}}
	b, err := accounts.Bundle(ctx, txs, id)
	if err != nil {
		return nil, err
	}
	if b.X402 == nil {
		return nil, fmt.Errorf("%w: %s is no channel of x402", channel.ErrUnknown, id)
	}
	if err := accounts.export(ctx, b); err != nil {
		return nil, err
	}
	return b, accounts.AddEvidence(ctx, b)
}

// export adds the leases whose records were checked for ticks, in the order in which they ran.
func (s Store) export(ctx context.Context, b *audit.Bundle) error {
	records, err := s.Checked(ctx, b.Channel)
	if err != nil {
		return err
	}
	for _, rec := range records { // of one lease they follow one another
		if n := len(b.Leases); n > 0 && b.Leases[n-1].ID == rec.LeaseID {
			b.Leases[n-1].Records = append(b.Leases[n-1].Records, rec)
			continue
		}
		l := audit.Lease{ID: rec.LeaseID, OwedBefore: wire.NewAmount(rec.OwedBefore), Records: []metering.SignedRecord{rec}}
		for _, d := range rec.Evidence.Devices {
			l.Devices = append(l.Devices, d.Device.UUID)
		}
		if l.Offer, err = s.offer(ctx, rec.OfferHash); err != nil {
			return err
		}
		b.Leases = append(b.Leases, l)
	}
	slices.SortStableFunc(b.Leases, func(l, o audit.Lease) int {
		one, two := l.Records[len(l.Records)-1].Owed, o.Records[len(o.Records)-1].Owed
		return cmp.Or(l.OwedBefore.Cmp(&o.OwedBefore.Int), one.Cmp(&two))
	})
	return nil
}
