package sdk

import (
	"context"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/channel"
)

// again answers a request that was served before: nil if it was not, or if it is
// another one with the same voucher, as clients send that do several things at
// once.
func (d *x402Desk) again(ctx context.Context, w http.ResponseWriter, r *x402Request, tab x402Tab) (*x402Answer, error) {
	note, ok, err := d.notes.noted(ctx, r.id, r.voucher.Cumulative, r.hash)
	if err != nil || !ok {
		return nil, err
	}
	if note.AnsweredAt != 0 && note.Broken == 0 && r.came.Before(time.UnixMilli(note.AnsweredAt)) {
		return nil, nil // it came while the other one was being served
	}
	if public, err := d.public(ctx, tab, r.voucher.Cumulative); err != nil || public {
		return nil, err // whoever sends it may have read it from the chain
	}
	switch note.Kind {
	case kindTick:
		return d.tickAgain(ctx, tab, note)
	case kindStream:
		return d.play(ctx, w, r, tab, note)
	case kindRefund:
		return d.refundAgain(ctx, r, tab, note)
	default:
		return d.copied(tab, note)
	}
}

// tickAgain is the answer of a tick that was metered, nil if nothing was charged
// for it: then it can be served.
func (d *x402Desk) tickAgain(ctx context.Context, tab x402Tab, note x402Note) (*x402Answer, error) {
	rec, _, err := d.recordOf(ctx, note)
	if err != nil || rec == nil {
		return nil, err
	}
	base, err := channel.ParseAmount(note.Base)
	if err != nil || !rec.Owed.Gt(&base) {
		return nil, err
	}
	return d.ticked(ctx, tab, note)
}
