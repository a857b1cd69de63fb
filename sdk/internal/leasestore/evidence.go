package leasestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Shown keeps the records of ours that only renters still had.
type Shown struct{ db *store.DB }

// Put keeps a record that a renter showed, and charges its channel what counts as
// used, in one step.
func (s Shown) Put(ctx context.Context, shown wire.ShownRecord, used uint256.Int) error {
	text, err := json.Marshal(shown)
	if err != nil {
		return err
	}
	rec := shown.Record
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO shown_records (lease, sequence, channel, record, shown_at)
			VALUES (?, ?, ?, ?, ?) ON CONFLICT (lease, sequence) DO NOTHING`),
			rec.LeaseID.Hex(), int64(rec.Sequence), rec.ChannelID.Hex(), string(text), time.Now().Unix())
		if err != nil {
			return err
		}
		err = s.db.Charge(ctx, tx, rec.ChannelID, used)
		if errors.Is(err, channel.ErrLower) {
			return nil // more was charged since
		}
		return err
	})
}

// Of returns the records of a channel that only its renter had.
func (s Shown) Of(ctx context.Context, channelID common.Hash) ([]audit.Evidence, error) {
	var rows []struct {
		Record string `db:"record"`
		At     int64  `db:"shown_at"`
	}
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT record, shown_at FROM shown_records WHERE channel = ? ORDER BY shown_at, lease, sequence`), channelID.Hex())
	var kept []audit.Evidence
	for _, row := range rows {
		kept = append(kept, audit.Evidence{Reason: "the renter showed this record, which the provider signed and no longer had: " + ErrRolledBack.Error(),
			At: time.Unix(row.At, 0).UTC(), Document: row.Record})
	}
	return kept, err
}

// Export is what a provider kept about a channel.
func Export(ctx context.Context, db *store.DB, txs *chain.Store, id common.Hash) (*audit.Bundle, error) {
	s, err := db.Payee().Load(ctx, id)
	if err != nil {
		return nil, err
	}
	b, err := audit.New(ctx, txs, audit.KeptByPayee, s.Terms)
	if err != nil {
		return nil, err
	}
	b.Deposit, b.Settled = wire.NewAmount(s.Deposit), wire.NewAmount(s.Settled)
	if len(s.Signature) > 0 {
		b.Vouchers = append(b.Vouchers, audit.Voucher{Cumulative: wire.NewAmount(s.Accepted), Signature: s.Signature})
	}
	leases := New(db)
	rows, err := leases.Leases.ofChannel(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		lease, err := leases.export(ctx, row)
		if err != nil {
			return nil, fmt.Errorf("lease %s: %w", row.ID, err)
		}
		b.Leases = append(b.Leases, lease)
	}
	b.Evidence, err = leases.Shown.Of(ctx, id)
	return b, err
}

// ofChannel returns the leases of a channel in the order in which they began.
func (s Leases) ofChannel(ctx context.Context, channelID common.Hash) ([]Row, error) {
	var rows []Row
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT `+Columns+` FROM leases WHERE channel = ? ORDER BY started_at, id`), channelID.Hex())
	if err != nil {
		return nil, fmt.Errorf("leases of channel %s: %w", channelID, err)
	}
	return rows, nil
}

func (s Store) export(ctx context.Context, row Row) (audit.Lease, error) {
	id := common.HexToHash(row.ID)
	offer, err := s.Offers.Get(ctx, common.HexToHash(row.Offer))
	if err != nil {
		return audit.Lease{}, err
	}
	a, err := row.Allocated()
	if err != nil {
		return audit.Lease{}, err
	}
	before, err := channel.ParseAmount(row.OwedBefore)
	if err != nil {
		return audit.Lease{}, err
	}
	binding, err := row.MeterBinding()
	if err != nil {
		return audit.Lease{}, err
	}
	lease := audit.Lease{ID: id, Offer: offer.Document, Devices: a.Devices, OwedBefore: wire.NewAmount(before), Binding: binding}
	const page = 1000
	for after := uint64(0); ; {
		records, err := s.Records.After(ctx, id, after, page)
		if err != nil {
			return lease, err
		}
		lease.Records = append(lease.Records, records...)
		if len(records) < page {
			return lease, nil
		}
		after = records[page-1].Sequence
	}
}
