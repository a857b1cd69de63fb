package sdk

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// heedShown looks at the newest record that a renter has of a lease on its channel.
// If we signed it and the database does not have it, the database was rolled back,
// and the file of high-water marks with it, or we would know: the lease ends
// without another signature. What the record says is kept and charged: it is what
// is owed. It returns the lease as it ended then, and nil if nothing is amiss.
func (p *Provider) heedShown(r *request, s channel.State) (*lease, error) {
	shown, err := wire.ParseShownRecord(r.Header)
	if shown == nil || err != nil || s.Status == channel.Finalized {
		return nil, err
	}
	rec := shown.Record
	if rec.ChannelID != s.ID || !p.signed(r.Context(), s, *shown) {
		return nil, nil // nobody's word
	}
	row, known, err := p.store.find(r.Context(), rec.LeaseID)
	if err != nil {
		return nil, err
	}
	if has, err := p.has(r.Context(), row, known, rec); has || err != nil {
		return nil, err
	}
	p.config.Log.Error("a renter shows a usage record of ours that the database does not have: was it restored from a backup? the lease ends, and the record is kept",
		"lease", rec.LeaseID, "channel", s.ID, "shown", rec.Sequence, "stored", row.Sequence)
	if err := p.store.putShown(r.Context(), *shown); err != nil {
		return nil, err
	}
	if known {
		if err := p.muteLease(r.Context(), s.ID, row); err != nil {
			return nil, err
		}
	}
	return p.rolledBack(s, row, *shown)
}

// signed reports a record that was signed with a metering key of ours: that of now, the one that the record's offer names, or
// the one that we bound to its lease, as its renter shows where the database has forgotten the lease.
func (p *Provider) signed(ctx context.Context, s channel.State, shown wire.ShownRecord) bool {
	signer, err := eip712.Recover(shown.Record.Digest(metering.Domain(s.Terms.ChainID, s.Terms.Escrow)), shown.Signature)
	if err != nil {
		return false
	}
	if signer == p.meterKey.Address() {
		return true
	}
	if b := shown.Binding; b != nil {
		return common.Address(b.Meter) == signer && b.Of(shown.Record.LeaseID, s.ID, shown.Record.OfferHash) &&
			b.SignedBy(s.Terms.Payee, s.Terms.ChainID, s.Terms.Escrow)
	}
	offer, err := p.store.offer(ctx, shown.Record.OfferHash)
	return err == nil && common.Address(offer.Meter) == signer
}

// has reports whether the database has a record, or soon will: a node delivers what
// it signed.
func (p *Provider) has(ctx context.Context, row leaseRow, known bool, rec metering.Record) (bool, error) {
	if !known {
		return false, nil
	}
	if a, err := row.allocation(); err != nil || a.Node != "" {
		return true, err
	}
	if uint64(row.Sequence) < rec.Sequence {
		return false, nil
	}
	kept, err := p.store.records(ctx, rec.LeaseID, rec.Sequence-1, 1)
	return len(kept) == 0 || kept[0].Record == rec, err
}

// muteLease ends a lease, wherever it runs, without another signature.
func (p *Provider) muteLease(ctx context.Context, channelID common.Hash, row leaseRow) error {
	if l := p.running(channelID); l != nil && l.id.Hex() == row.ID {
		l.mute()
		select {
		case <-l.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if p.replicas == nil || row.State == wire.StateEnded {
		return nil
	}
	return p.replicas.end(ctx, common.HexToHash(row.ID), errRolledBack.Error())
}

// rolledBack is the end of a lease as its renter is shown it.
func (p *Provider) rolledBack(s channel.State, row leaseRow, shown wire.ShownRecord) (*lease, error) {
	l := &lease{id: shown.Record.LeaseID, terms: s.Terms, owedBefore: shown.Record.OwedBefore, deps: leaseDeps{store: p.store},
		offer: &wire.SignedOffer{Hash: shown.Record.OfferHash}, done: make(chan struct{})}
	if row.ID != "" {
		var err error
		if l.allocation, err = row.allocation(); err != nil {
			return nil, err
		}
	}
	l.allocation.Access = json.RawMessage("null")
	l.binding = shown.Binding
	close(l.done)
	l.view = leaseView{state: leaseEnded, reason: errRolledBack.Error(), version: 2, sequence: shown.Record.Sequence,
		owed: shown.Record.Owed, nanos: shown.Record.Nanos, accepted: s.Accepted, deposit: s.Deposit}
	return l, nil
}

// find returns a lease, if there is one of this id.
func (s leaseStore) find(ctx context.Context, id common.Hash) (row leaseRow, ok bool, err error) {
	row, err = s.byID(ctx, id.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return leaseRow{}, false, nil
	}
	return row, err == nil, err
}

// putShown keeps a record that a renter showed, and charges its channel what it
// says, in one step.
func (s leaseStore) putShown(ctx context.Context, shown wire.ShownRecord) error {
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
		err = s.db.Charge(ctx, tx, rec.ChannelID, rec.Owed)
		if errors.Is(err, channel.ErrLower) {
			return nil // more was charged since
		}
		return err
	})
}

// shown returns the records of a channel that only its renter had.
func (s leaseStore) shown(ctx context.Context, channelID common.Hash) ([]audit.Evidence, error) {
	var rows []struct {
		Record string `db:"record"`
		At     int64  `db:"shown_at"`
	}
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT record, shown_at FROM shown_records WHERE channel = ? ORDER BY shown_at, lease, sequence`), channelID.Hex())
	var kept []audit.Evidence
	for _, row := range rows {
		kept = append(kept, audit.Evidence{Reason: "the renter showed this record, which the provider signed and no longer had: " + errRolledBack.Error(),
			At: time.Unix(row.At, 0).UTC(), Document: row.Record})
	}
	return kept, err
}
