// Package leasestore keeps what a provider must not forget beside its channels: leases, usage records, offers, locks, and what the
// gateways that share a database have to agree on. One type has one table's queries. It decides nothing: who may write is in the query
// (Leases), and whether a lease may begin, or is paid, is for its callers.
package leasestore

import (
	"context"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Migrations make the tables, under migrations/provider: a node's spool has them, too.
//
//go:embed migrations/provider/*.sql migrations/provider/postgres/*.sql
var Migrations embed.FS

// ErrNotOwner is what a gateway gets that writes to a lease which another one has
// taken over.
var ErrNotOwner = errors.New("another gateway runs it now; nothing was written")

// ErrRolledBack is a database that has forgotten records which were signed from
// it: no other ones of their numbers may be signed.
var ErrRolledBack = errors.New("the provider's database is older than what was signed from it, as after a restore from a backup: the lease ends")

// Store is what a provider must not forget beside its channels, each table in a type of its own. Several gateways that share a
// PostgreSQL share them.
type Store struct {
	DB      *store.DB
	Leases  Leases
	Records Records
	Offers  Offers
	Secrets Secrets
	Locks   Locks
	Shown   Shown
	Debts   Debts
	Rests   Rests
}

// New is the tables of a provider's database.
func New(db *store.DB) Store {
	return Store{DB: db, Leases: Leases{db}, Records: Records{db: db}, Offers: Offers{db, &offerCache{}}, Secrets: Secrets{db},
		Locks: Locks{db}, Shown: Shown{db}, Debts: Debts{db}, Rests: Rests{db}}
}

// NewSpooled is the tables of a node's spool, whose records its gateway charges.
func NewSpooled(db *store.DB) Store {
	s := New(db)
	s.Records.uncharged = true
	return s
}

// Carry is what a channel owes when its next lease begins, and what is left then of
// what its leases before were not charged, in parts of which metering.Fractions make
// a base unit. A channel that was charged more than its newest lease says has had
// leases that the database forgot: nothing is carried from those that it knows.
func (s Store) Carry(ctx context.Context, at channel.State) (begins uint256.Int, parts uint64, err error) {
	row, ok, err := s.Leases.Newest(ctx, at.ID)
	if err != nil || !ok {
		return at.Spent, 0, err
	}
	begins, parts, err = s.left(ctx, row)
	if err != nil || begins.Lt(&at.Spent) {
		return at.Spent, 0, err
	}
	begins.AddUint64(&begins, parts/metering.Fractions)
	return begins, parts % metering.Fractions, nil
}

// left is what a channel owed when a lease on it ended, and what it was not charged.
func (s Store) left(ctx context.Context, row Row) (owed uint256.Int, parts uint64, err error) {
	last, err := s.Records.Last(ctx, common.HexToHash(row.ID))
	if err != nil {
		return owed, 0, err
	}
	if last == nil {
		owed, err = channel.ParseAmount(row.OwedBefore)
		return owed, uint64(row.Carried), err
	}
	offer, err := s.Offers.Get(ctx, last.OfferHash)
	if err != nil {
		return owed, 0, err
	}
	parts, err = offer.Uncharged(last.Nanos, last.Final)
	return last.Owed, parts + uint64(row.Carried), err
}

// ForgetOffers forgets the offers that expired before a time, and that no lease is under and no record that a renter has shown.
func (s Store) ForgetOffers(ctx context.Context, before time.Time) error {
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		shown, err := shownOffers(ctx, tx)
		if err != nil {
			return err
		}
		return ForgetOffers(ctx, tx, before, shown)
	})
}

// ErrChallengeUsed says that a challenge was used before.
var ErrChallengeUsed = errors.New("challenge was used before")

// Secrets keeps what all gateways of a database mint challenges with, and which of those were used.
type Secrets struct{ db *store.DB }

// MaxClockSkew is more than the clocks of gateways differ, or one clock is set by.
const MaxClockSkew = 24 * time.Hour

// UseChallenge marks a challenge as used, once. It forgets those that have expired by
// any clock: they are refused by their date.
func (s Secrets) UseChallenge(ctx context.Context, c wire.Challenge, now time.Time) error {
	expires, err := time.Parse(time.RFC3339, c.Expires)
	if err != nil {
		return err
	}
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM used_challenges WHERE expires < ?`), now.Add(-MaxClockSkew).Unix()); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO used_challenges (id, expires) VALUES (?, ?) ON CONFLICT (id) DO NOTHING`),
			c.ID, expires.Unix())
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(ErrChallengeUsed, err)
		}
		return nil
	})
}

// Get returns the named random secret, made at the first call. Replicas on
// one database share it, and so accept each other's challenges.
func (s Secrets) Get(ctx context.Context, name string) ([]byte, error) {
	fresh := make([]byte, 32)
	if _, err := rand.Read(fresh); err != nil {
		return nil, err
	}
	var value string
	err := s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO provider_secrets (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING`),
			name, hex.EncodeToString(fresh))
		if err != nil {
			return err
		}
		return tx.GetContext(ctx, &value, tx.Rebind(`SELECT value FROM provider_secrets WHERE name = ?`), name)
	})
	if err != nil {
		return nil, err
	}
	return hex.DecodeString(value)
}

// Debts keeps which debts count no more.
type Debts struct{ db *store.DB }

// WriteOff has so much of what is owed on a channel count for nothing.
func (t Debts) WriteOff(ctx context.Context, s channel.State, amount uint256.Int) error {
	return t.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO written_off (channel, payer, amount, at) VALUES (?, ?, ?, ?)
			ON CONFLICT (channel) DO UPDATE SET amount = excluded.amount, at = excluded.at`),
			s.ID.Hex(), s.Terms.Payer.Hex(), amount.Dec(), time.Now().Unix())
		return err
	})
}

// WrittenOff is what of the payers' debts counts no more, by channel; of all payers
// if none is named.
func (s Debts) WrittenOff(ctx context.Context, payers ...common.Address) (map[common.Hash]uint256.Int, error) {
	query, args := `SELECT channel, amount FROM written_off`, []any(nil)
	if len(payers) > 0 {
		var err error
		if query, args, err = sqlx.In(query+` WHERE payer IN (?)`, hexes(payers)); err != nil {
			return nil, err
		}
	}
	var rows []struct{ Channel, Amount string }
	db := s.db.View()
	if err := db.SelectContext(ctx, &rows, db.Rebind(query), args...); err != nil {
		return nil, err
	}
	amounts := make(map[common.Hash]uint256.Int, len(rows))
	for _, row := range rows {
		amount, err := channel.ParseAmount(row.Amount)
		if err != nil {
			return nil, err
		}
		amounts[common.HexToHash(row.Channel)] = amount
	}
	return amounts, nil
}

func hexes(addresses []common.Address) []string {
	texts := make([]string, len(addresses))
	for i, a := range addresses {
		texts[i] = a.Hex()
	}
	return texts
}
