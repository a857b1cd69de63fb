package sdk

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire/x402"
)

// slate is what a channel with an x402 server must not forget, beside what was
// signed. Amounts are base units.
type slate struct {
	ID  common.Hash `json:"channel"`
	URL string      `json:"url"`
	// Charged is what the server is known to have charged, in all: the next
	// voucher is for so much and the next price.
	Charged uint256.Int `json:"charged"`
	// Deposit is one that was signed and is not known to have arrived. It is sent
	// again as it is, until it has arrived or has expired: the money moves once.
	Deposit *x402.Deposit `json:"deposit,omitempty"`
	Found   bool          `json:"found,omitempty"`   // on the chain, when this database did not know of it
	Leaving bool          `json:"leaving,omitempty"` // being got back without the server
	Dispute string        `json:"dispute,omitempty"` // what the server was caught at: nothing more is paid
	Tick    *pendingTick  `json:"tick,omitempty"`    // asked for, and its record was not yet seen
	Ticking *ticking      `json:"ticking,omitempty"` // the lease that is paid tick by tick
}

// slates keeps slates.
type slates struct{ rentalStore }

// load returns a channel's slate, or nil.
func (s slates) load(ctx context.Context, id common.Hash) (*slate, error) {
	var document string
	view := s.db.View()
	err := view.GetContext(ctx, &document, view.Rebind(`SELECT document FROM x402_slates WHERE channel = ?`), id.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("channel %s: reading its slate: %w", id, err)
	}
	return parseTab(document)
}

func parseTab(document string) (*slate, error) {
	t := new(slate)
	if err := json.Unmarshal([]byte(document), t); err != nil {
		return nil, fmt.Errorf("an x402 slate on disk does not parse; restore the database from its backup: %w", err)
	}
	return t, nil
}

// list returns all, in order of their channels.
func (s slates) list(ctx context.Context) ([]slate, error) {
	var documents []string
	if err := s.db.View().SelectContext(ctx, &documents, `SELECT document FROM x402_slates ORDER BY channel`); err != nil {
		return nil, fmt.Errorf("reading x402 slates: %w", err)
	}
	all := make([]slate, len(documents))
	for i, document := range documents {
		t, err := parseTab(document)
		if err != nil {
			return nil, err
		}
		all[i] = *t
	}
	return all, nil
}

// save keeps a slate. Memory and disk must not differ because somebody lost
// patience, so it does not end with ctx.
func (s slates) save(ctx context.Context, t slate) error {
	return s.accept(ctx, t, nil)
}

// accept keeps a slate and the usage record that was checked for it in one step.
func (s slates) accept(ctx context.Context, t slate, rec *metering.SignedRecord) error {
	document, err := json.Marshal(&t) // by reference: uint256.Int only then writes a decimal
	if err != nil {
		return err
	}
	err = s.db.Update(context.WithoutCancel(ctx), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(tx.Rebind(`INSERT INTO x402_slates (channel, url, document, updated_at) VALUES (?, ?, ?, ?)
			ON CONFLICT (channel) DO UPDATE SET document = excluded.document, updated_at = excluded.updated_at`),
			t.ID.Hex(), t.URL, string(document), time.Now().UnixMilli())
		if err != nil || rec == nil {
			return err
		}
		text, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		_, err = tx.Exec(tx.Rebind(`INSERT INTO x402_records (channel, lease, sequence, record) VALUES (?, ?, ?, ?)`),
			t.ID.Hex(), rec.LeaseID.Hex(), int64(rec.Sequence), string(text))
		return err
	})
	if err != nil {
		return fmt.Errorf("channel %s: keeping its slate: %w", t.ID, err)
	}
	return nil
}

// records returns the checked usage records of a channel, in order.
func (s slates) records(ctx context.Context, id common.Hash) ([]metering.SignedRecord, error) {
	return s.recordsIn(ctx, "x402_records", id)
}
