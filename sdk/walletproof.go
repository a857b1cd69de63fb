package sdk

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxProofs bounds what is kept of one channel: the first ones, of which each
// convinces by itself.
const maxProofs = 8

// maxRecordText is how long a refused record may be, in bytes as it came, that is
// kept with what its hash stands for: more than that of any number of GPUs that a
// provider lets at once.
const maxRecordText = 256 << 10

// evident is what is kept of a refused record: the record itself, which is signed
// and has no room for anything else, and what it came with if that is not too
// much. A provider that adds a megabyte to its lie has the lie kept.
func evident(rec metering.SignedRecord, document []byte) []byte {
	if len(document) <= maxRecordText {
		return document
	}
	short, err := json.Marshal(bare(rec))
	if err != nil {
		return document
	}
	return short
}

// bare is a record without its evidence, whose hash it holds.
func bare(rec metering.SignedRecord) metering.SignedRecord {
	rec.Evidence = metering.Evidence{}
	return rec
}

// prove keeps two records of one number, if they are two and both the payee's.
func (s walletStore) prove(ctx context.Context, offer json.RawMessage, meter *wire.MeterBinding, accepted, refused metering.SignedRecord, at int64) error {
	p, err := audit.NewEquivocation(offer, meter, bare(accepted), bare(refused))
	if err != nil { // no proof: what was refused is kept as such
		return nil
	}
	return s.putProof(ctx, p, accepted.ChannelID, at)
}

// putProof keeps a proof about a channel.
func (s walletStore) putProof(ctx context.Context, p *audit.Equivocation, channelID common.Hash, at int64) error {
	document, err := json.Marshal(p)
	if err != nil {
		return err
	}
	id := channelID.Hex()
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO rental_proofs (channel, lease, sequence, document, at)
			SELECT ?, ?, ?, ?, ? WHERE (SELECT count(*) FROM rental_proofs WHERE channel = ?) < ? ON CONFLICT DO NOTHING`),
			id, p.Lease().Hex(), int64(p.Records[0].Sequence), string(document), at, id, maxProofs)
		return err
	})
}

// storedProof is a proof as it is on disk.
type storedProof struct {
	Document string `db:"document"`
	At       int64  `db:"at"`
}

// proofs returns those of a channel, oldest first. A database that no program has
// opened since there are any has none.
func (s walletStore) proofs(ctx context.Context, id common.Hash) (all []storedProof, err error) {
	db := s.db.View()
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
