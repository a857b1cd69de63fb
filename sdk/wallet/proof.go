package wallet

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/internal/evidence"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxProofs bounds what is kept of one channel: the first ones, of which each
// convinces by itself.
const maxProofs = 8

// Prove keeps two records of one number, if they are two and both the payee's.
func (s Store) Prove(ctx context.Context, offer json.RawMessage, meter *wire.MeterBinding, accepted, refused metering.SignedRecord, at int64) error {
	p, err := audit.NewEquivocation(offer, meter, evidence.Bare(accepted), evidence.Bare(refused))
	if err != nil { // no proof: what was refused is kept as such
		return nil
	}
	return s.KeepProof(ctx, p, accepted.ChannelID, at)
}

// KeepProof keeps a proof about a channel.
func (s Store) KeepProof(ctx context.Context, p *audit.Equivocation, channelID common.Hash, at int64) error {
	document, err := json.Marshal(p)
	if err != nil {
		return err
	}
	id := channelID.Hex()
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO rental_proofs (channel, lease, sequence, document, at)
			SELECT ?, ?, ?, ?, ? WHERE (SELECT count(*) FROM rental_proofs WHERE channel = ?) < ? ON CONFLICT DO NOTHING`),
			id, p.Lease().Hex(), int64(p.Records[0].Sequence), string(document), at, id, maxProofs)
		return err
	})
}

// StoredProof is a proof as it is on disk.
type StoredProof struct {
	Document string `db:"document"`
	At       int64  `db:"at"`
}

// Proofs returns those of a channel, oldest first. A database that no program has
// opened since there are any has none.
func (s Store) Proofs(ctx context.Context, id common.Hash) (all []StoredProof, err error) {
	db := s.DB.View()
	var there int
	if err := db.GetContext(ctx, &there, `SELECT count(*) FROM sqlite_master WHERE name = 'rental_proofs'`); err != nil || there == 0 {
		return nil, err
	}
	err = db.SelectContext(ctx, &all, db.Rebind(`SELECT document, at FROM rental_proofs WHERE channel = ? ORDER BY at, lease, sequence`), id.Hex())
	if err != nil {
		return nil, fmt.Errorf("channel %s: reading its proofs: %w", id, err)
	}
	return all, nil
}
