package x402client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/evidence"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// disputeHeader stops paying on the channel: evidence first.
func (b *payment) disputeHeader(ctx context.Context, reason error, h http.Header, name string) error {
	document, err := json.Marshal(map[string]any{name: h.Values(name), "signed": b.id})
	if err != nil {
		return err
	}
	return b.dispute(ctx, reason, document)
}

// dispute keeps what a server was caught at and pays it nothing more: its payee nowhere,
// if records that the payee signed prove it, and else nobody at this site.
func (b *payment) dispute(ctx context.Context, reason error, document []byte) error {
	ctx, reason = context.WithoutCancel(ctx), boundlog.Plain(reason)
	var err error
	if _, rec := tickIn(document); rec != nil {
		err = b.prove(ctx, *rec)
		document = evidence.OfRecord(*rec, document)
	}
	err = errors.Join(err, b.x.w.Keep(ctx, wallet.Evidence{Channel: b.id, URL: b.account.URL, Reason: reason.Error(), At: b.x.w.Now(), Document: document}))
	if wallet.Convicts(reason) {
		b.account.Dispute = reason.Error()
	} else {
		accused := map[string]string{peer.Site(b.req.URL): reason.Error()}
		maps.Copy(accused, b.account.Accused)
		b.account.Accused = accused
	}
	b.x.w.Log.Error("x402 server was caught: nothing more is paid", "channel", b.id, "reason", reason)
	return errors.Join(&wallet.Dispute{Channel: b.id, Reason: reason}, err, b.save(ctx))
}

// prove looks whether the channel has another record of a refused one's number, and keeps both.
func (b *ledger) prove(ctx context.Context, refused metering.SignedRecord) error {
	if b.account.Ticking == nil {
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
	return b.x.w.Store.Prove(ctx, b.account.Ticking.Offer, nil, accepted, refused, b.x.w.Now().UnixMilli())
}
