package sdk

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
)

// recordIn is the usage record in a tick's answer, or nil.
func recordIn(document []byte) *metering.SignedRecord {
	var said wire.Tick
	if len(document) > peer.MaxAnswer || exactjson.Unmarshal(document, &said) != nil {
		return nil
	}
	return said.Record
}

// prove looks whether the channel has another record of a refused one's number,
// and keeps both.
func (b *buying) prove(ctx context.Context, refused metering.SignedRecord) error {
	if b.slate.Ticking == nil {
		return nil
	}
	earlier, err := b.x.w.Store.Record(ctx, "x402_records", b.id, refused.LeaseID, refused.Sequence)
	if err != nil || earlier == nil {
		return err
	}
	var accepted metering.SignedRecord
	if err := json.Unmarshal(earlier, &accepted); err != nil {
		return fmt.Errorf("channel %s: record %d on disk does not parse; restore the database from its backup: %w", b.id, refused.Sequence, err)
	}
	return b.x.w.Store.Prove(ctx, b.slate.Ticking.Offer, nil, accepted, refused, b.x.w.Now().UnixMilli())
}
