package sdk

import (
	"context"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/channel"
)

// A request that is sent again is answered from what was kept of the first, and
// neither served nor charged. But a client that keeps nothing, as a script's new
// process is, signs the very same voucher for each new wish. So a voucher that was
// served is taken for a repetition only where something shows that it is one: an
// idempotency key, or that the first one's answer was never given, a short while
// ago. Any other is told what was charged, and is served anew.
const (
	// lostWithin is how long after a connection broke under an answer that is had
	// again without a key.
	lostWithin = 30 * time.Second
	// openWithin is how long after its admission a request that this program was
	// killed under, or gave up, is had again without a key.
	openWithin = 5 * time.Minute
)

// repeats reports whether a request is one that was noted before, sent again.
func (r *x402Request) repeats(note x402Note) bool {
	switch {
	case r.keyed:
		return true
	case note.AnsweredAt == 0:
		return time.Since(time.UnixMilli(note.CreatedAt)) < openWithin
	}
	return note.Broken != 0 && time.Since(time.UnixMilli(note.AnsweredAt)) < lostWithin
}

// again answers a request that was served before: nil if it was not, or if it is
// another one with the same voucher.
func (d *x402Desk) again(ctx context.Context, w http.ResponseWriter, r *x402Request, tab x402Tab) (*x402Answer, error) {
	note, ok, err := d.notes.noted(ctx, r.id, r.voucher.Cumulative, r.hash)
	if err != nil || !ok {
		return nil, err
	}
	if !r.repeats(note) && note.Kind != kindRefund {
		return nil, nil
	}
	if public, err := d.public(ctx, tab, r.voucher.Cumulative); err != nil || public && !r.secret {
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
		return d.copied(ctx, tab, note)
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
