package wallet

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/evidence"
)

// Migrations are the tables of a payer's database, whatever it pays for: rentals' and those of accounts with x402 servers.
//
//go:embed migrations/renter/*.sql
var Migrations embed.FS

// Store keeps a payer's evidence and proofs, and what its wallet has to remember of its token.
type Store struct{ DB *store.DB }

// Evidence is something that a provider sent and this renter refused.
type Evidence struct {
	Channel  common.Hash // zero: it came before there was a channel
	URL      string
	Reason   string
	At       time.Time
	Document []byte // as it came; for a fork, both records
}

// Record returns the usage record of a number from a table of records, rental_records or x402_records; nil: there is none.
func (s Store) Record(ctx context.Context, table string, id, lease common.Hash, sequence uint64) (json.RawMessage, error) {
	var document string
	db := s.DB.View()
	err := db.GetContext(ctx, &document, db.Rebind(
		`SELECT record FROM `+table+` WHERE channel = ? AND lease = ? AND sequence = ?`), id.Hex(), lease.Hex(), int64(sequence))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return json.RawMessage(document), err
}

// Records returns the usage records of a channel from a table of records, in order.
func (s Store) Records(ctx context.Context, table string, id common.Hash) ([]metering.SignedRecord, error) {
	var documents []string
	db := s.DB.View()
	err := db.SelectContext(ctx, &documents, db.Rebind(
		`SELECT record FROM `+table+` WHERE channel = ? ORDER BY lease, sequence`), id.Hex())
	if err != nil {
		return nil, fmt.Errorf("channel %s: reading its records: %w", id, err)
	}
	records := make([]metering.SignedRecord, len(documents))
	for i, document := range documents {
		if err := json.Unmarshal([]byte(document), &records[i]); err != nil {
			return nil, fmt.Errorf("channel %s: a record on disk does not parse: %w", id, err)
		}
	}
	return records, nil
}

// forgetChain forgets which chain the database is from, while it has nothing of it: a rental that failed before anything was
// signed keeps nobody's database from another chain.
func (s Store) forgetChain(ctx context.Context) error {
	err := s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM chain_genesis WHERE NOT EXISTS (SELECT 1 FROM rentals) AND NOT EXISTS (SELECT 1 FROM x402_slates)
			AND NOT EXISTS (SELECT 1 FROM payer_channels) AND NOT EXISTS (SELECT 1 FROM chain_tx)`)
		return err
	})
	if err != nil {
		return fmt.Errorf("renter: which chain the database is from: %w", err)
	}
	return nil
}

// keepDecimals keeps how many decimals a token has, which all caps and amounts
// are read by, and refuses another number later: it never changes on the chain.
func (s Store) keepDecimals(ctx context.Context, backend chain.Backend, token *chain.Token) error {
	id, err := backend.ChainID(ctx)
	if err != nil {
		return chain.Unread("the chain id", err)
	}
	var kept uint8
	err = s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO renter_tokens (chain, token, decimals) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`),
			id.String(), token.Address.Hex(), token.Decimals); err != nil {
			return err
		}
		return tx.GetContext(ctx, &kept, tx.Rebind(`SELECT decimals FROM renter_tokens WHERE chain = ? AND token = ?`), id.String(), token.Address.Hex())
	})
	if err != nil {
		return fmt.Errorf("keeping the decimals of token %s: %w", token.Address, err)
	}
	if kept != token.Decimals {
		return fmt.Errorf("renter: %w: the endpoint says that %s on chain %s has %d decimals, this database was made with %d, and every cap would mean another amount: use another endpoint",
			ErrToken, token.Address, id, token.Decimals, kept)
	}
	return nil
}

// maxEvidence bounds one piece of evidence on disk (a record is a few KiB),
// MaxPieces how many are kept of one provider about one channel: nobody fills
// our disk with lies.
const (
	maxEvidence = 1 << 20
	MaxPieces   = 100
)

// keep puts evidence on disk. The same thing twice is kept once.
func (s Store) keep(ctx context.Context, e Evidence) error {
	e.Document = evidence.WithoutSecrets(e.Document)
	if len(e.Document) > maxEvidence {
		e.Document = e.Document[:maxEvidence]
	}
	id := ""
	if e.Channel != (common.Hash{}) {
		id = e.Channel.Hex()
	}
	hash := crypto.Keccak256Hash([]byte(e.URL), []byte{0}, []byte(id), []byte{0}, []byte(e.Reason), []byte{0}, e.Document)
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		var kept int
		err := tx.GetContext(ctx, &kept, tx.Rebind(`SELECT count(*) FROM rental_evidence WHERE url = ? AND channel = ?`), e.URL, id)
		if err != nil || kept >= MaxPieces {
			return err
		}
		_, err = tx.ExecContext(ctx, tx.Rebind(`INSERT INTO rental_evidence (hash, channel, url, reason, document, at)
			VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING`),
			hash.Hex(), id, e.URL, e.Reason, string(e.Document), e.At.UnixMilli())
		return err
	})
}

// Evidence returns what was kept about a channel, or with the zero id what came
// before there was one, oldest first.
func (s Store) Evidence(ctx context.Context, channelID common.Hash) ([]Evidence, error) {
	id := ""
	if channelID != (common.Hash{}) {
		id = channelID.Hex()
	}
	var rows []struct {
		URL      string `db:"url"`
		Reason   string `db:"reason"`
		Document string `db:"document"`
		At       int64  `db:"at"`
	}
	db := s.DB.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(
		`SELECT url, reason, document, at FROM rental_evidence WHERE channel = ? ORDER BY at, hash`), id)
	if err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	kept := make([]Evidence, len(rows))
	for i, r := range rows {
		kept[i] = Evidence{Channel: channelID, URL: r.URL, Reason: r.Reason, At: time.UnixMilli(r.At), Document: []byte(r.Document)}
	}
	return kept, nil
}

// StorageFailed reports an error of the payer's own database, of which no provider is to blame: what it kept from being done is done once
// the database is well again.
func StorageFailed(err error) bool { return store.Failed(err) }
