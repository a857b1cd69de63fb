package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// ErrOtherDatabase says that a database is neither a provider's nor a renter's.
var ErrOtherDatabase = database.ErrOther

// ReadFile reads the books of a provider or a renter: a path, or the URL of a PostgreSQL. The program that owns the database may run
// meanwhile; nothing is written. Settlements are there for ever, a lease as long as its usage records are: what was pruned is in the
// archive.
func ReadFile(ctx context.Context, path string) (*Books, error) {
	db, err := database.Read(ctx, path, map[string]fs.FS{"provider": leasestore.Migrations, "renter": wallet.Migrations})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	books, err := read(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", db.Path(), err)
	}
	return books, nil
}

// account is a channel as one side sees it.
type account struct {
	terms        channel.Terms
	counterparty common.Address
	settled      uint256.Int
	seen         time.Time
	leases       []common.Hash
}

func read(ctx context.Context, db *store.DB) (*Books, error) {
	b := &Books{Decimals: make(map[common.Address]uint8)}
	accounts := make(map[common.Hash]*account)
	if _, err := chain.OpenStore(ctx, db); err != nil { // of this version
		return nil, err
	}
	renter, err := db.Version(ctx, "renter")
	if err != nil {
		return nil, err
	}
	side := payee
	if renter > 0 {
		side = payer
	}
	if err := side(ctx, db, b, accounts); err != nil {
		return nil, err
	}
	txs, err := mined(ctx, db)
	if err == nil {
		err = b.settlements(accounts, txs)
	}
	sort(b.Entries)
	return b, err
}

// payee reads a provider's channels and leases.
func payee(ctx context.Context, db *store.DB, b *Books, accounts map[common.Hash]*account) error {
	states, err := db.Payee().List(ctx)
	if err != nil {
		return err
	}
	for _, s := range states {
		accounts[s.ID] = &account{terms: s.Terms, counterparty: s.Terms.Payer, settled: s.Settled, seen: s.UpdatedAt}
	}
	var rows []struct {
		ID        string
		Channel   string
		State     string
		StartedAt int64 `db:"started_at"`
	}
	if err := db.View().SelectContext(ctx, &rows, `SELECT id, channel, state, started_at FROM leases ORDER BY started_at, id`); err != nil {
		return fmt.Errorf("reading leases: %w", err)
	}
	newest, err := records(ctx, db, "records", "MAX")
	for _, row := range rows {
		e := Entry{Kind: Lease, Time: time.Unix(0, row.StartedAt).UTC(), Channel: common.HexToHash(row.Channel), Lease: common.HexToHash(row.ID), Detail: row.State}
		b.lease(e, newest[e.Lease], accounts)
	}
	return err
}

// payer reads a renter's channels and leases, of sessions and of x402.
func payer(ctx context.Context, db *store.DB, b *Books, accounts map[common.Hash]*account) error {
	states, err := db.Payer().List(ctx)
	if err != nil {
		return err
	}
	for _, s := range states {
		accounts[s.ID] = &account{terms: s.Terms, counterparty: s.Terms.Payee, settled: s.Settled, seen: s.UpdatedAt}
	}
	for _, table := range []string{"rental_records", "x402_records"} {
		first, err := records(ctx, db, table, "MIN")
		if err != nil {
			return err
		}
		newest, err := records(ctx, db, table, "MAX")
		if err != nil {
			return err
		}
		for id, rec := range newest {
			e := Entry{Kind: Lease, Channel: rec.ChannelID, Lease: id, Detail: "running"}
			if rec.Final {
				e.Detail = "ended"
			}
			if first := first[id]; first != nil {
				e.Time = time.Unix(0, int64(first.From)).UTC()
			}
			b.lease(e, rec, accounts)
		}
	}
	var tokens []struct {
		Token    string
		Decimals uint8
	}
	if err := db.View().SelectContext(ctx, &tokens, `SELECT token, decimals FROM renter_tokens`); err != nil {
		return fmt.Errorf("reading tokens: %w", err)
	}
	for _, t := range tokens {
		b.Decimals[common.HexToAddress(t.Token)] = t.Decimals
	}
	return nil
}

// records are the first (MIN) or the newest (MAX) usage record of each lease in a table of records.
func records(ctx context.Context, db *store.DB, table, which string) (map[common.Hash]*metering.Record, error) {
	var documents []string
	err := db.View().SelectContext(ctx, &documents, `SELECT r.record FROM `+table+` r
		JOIN (SELECT lease, `+which+`(sequence) AS sequence FROM `+table+` GROUP BY lease) n ON n.lease = r.lease AND n.sequence = r.sequence`)
	if err != nil {
		return nil, fmt.Errorf("reading usage records: %w", err)
	}
	of := make(map[common.Hash]*metering.Record, len(documents))
	for _, document := range documents {
		var rec metering.SignedRecord
		if err := json.Unmarshal([]byte(document), &rec); err != nil {
			return nil, fmt.Errorf("a usage record on disk does not parse: %w", err)
		}
		of[rec.LeaseID] = &rec.Record
	}
	return of, nil
}

// lease adds the line of a lease. It was charged what its newest record says beyond what its channel owed before it; nil: nothing.
func (b *Books) lease(e Entry, newest *metering.Record, accounts map[common.Hash]*account) {
	if newest != nil {
		e.Nanos, e.Amount = newest.Nanos, u256.SaturatingSub(newest.Owed, newest.OwedBefore)
	}
	if of := accounts[e.Channel]; of != nil {
		e.Counterparty, e.Token = of.counterparty, of.terms.Token
		of.leases = append(of.leases, e.Lease)
	}
	b.Entries = append(b.Entries, e)
}
