package sdk

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
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
	default:
		return nil, nil
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

// public reports whether a voucher of this amount was put into a transaction of
// ours. From then on it shows nothing about who sends it.
func (d *x402Desk) public(ctx context.Context, tab x402Tab, amount uint256.Int) (bool, error) {
	return false, nil
}

// outdate raises what was charged by one base unit, so that the next voucher is
// one that only the payer can make. The base unit is there: a request is never
// charged all that its voucher is over.
func (d *x402Desk) outdate(ctx context.Context, tab x402Tab) (x402Tab, error) {
	return tab, errors.New("not yet")
}

// refund gives the payer back what was not charged.
func (d *x402Desk) refund(ctx context.Context, r *x402Request, tab x402Tab) (*x402Answer, error) {
	return nil, wire.Unavailable.With("not yet")
}

func (d *x402Desk) stream(ctx context.Context, w http.ResponseWriter, r *x402Request, tab x402Tab, note x402Note) (*x402Answer, error) {
	return nil, wire.Unavailable.With("not yet")
}

func (d *x402Desk) metered(ctx context.Context, w http.ResponseWriter, r *x402Request, tab x402Tab, note x402Note) (*x402Answer, error) {
	return nil, wire.Unavailable.With("not yet")
}

// alone makes this gateway the only one to serve a channel.
func (d *x402Desk) alone(ctx context.Context, id common.Hash) (unclaim func(), err error) {
	return d.claim(ctx, "x402 "+id.Hex())
}
