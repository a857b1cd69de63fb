package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

// A stream is a tick that is told before it is used: the receipt is the first
// thing the client reads, then events as they come, then the record of what was
// metered. What was charged and not used is credit for the next request.

// stream lets the channel's lease run on for one more window and shows it.
func (d *x402Desk) stream(ctx context.Context, w http.ResponseWriter, r *x402Request, tab x402Tab, note x402Note) (*x402Answer, error) {
	ahead := d.x.Window + 2*d.config.Tick // a record is cut at the reading after the window
	charged, err := d.advance(tab, r.route, ahead)
	if err != nil {
		return nil, err
	}
	note.Charged = charged.Dec()
	l, err := d.attach(ctx, r, tab, &note)
	if err != nil {
		return nil, err
	}
	defer d.leases.detach(l)
	return d.show(ctx, w, r, tab, note, l)
}

// advance is what is charged for a request before it is served: enough for so
// much time after what was used, and less than its voucher is over.
func (d *x402Desk) advance(tab x402Tab, route x402Route, ahead time.Duration) (uint256.Int, error) {
	cost, err := d.price.Charge(uint64(route.gpus) * uint64(ahead))
	charged := tab.Spent
	charged.Add(&charged, &cost)
	most := tab.charged
	most.Add(&most, &route.most)
	most.SubUint64(&most, 1)
	switch {
	case charged.Gt(&most):
		return most, err
	case charged.Lt(&tab.charged):
		return tab.charged, err
	}
	return charged, err
}

// play shows a stream that was charged before once more, to a client that lost
// it. What of it was not metered yet is metered now.
func (d *x402Desk) play(ctx context.Context, w http.ResponseWriter, r *x402Request, tab x402Tab, note x402Note) (*x402Answer, error) {
	rec, row, err := d.recordOf(ctx, note)
	if err != nil {
		return nil, err
	}
	if rec != nil {
		l, err := d.past(row, tab)
		if err != nil {
			return nil, err
		}
		return d.show(ctx, w, r, tab, note, l)
	}
	if note.Charged != tab.charged.Dec() {
		return nil, nil // others were charged since; what this one did not use is credit
	}
	l, err := d.attach(ctx, r, tab, &note)
	if err != nil {
		return nil, err
	}
	defer d.leases.detach(l)
	return d.show(ctx, w, r, tab, note, l)
}

// past is a lease of which only its records are shown.
func (d *x402Desk) past(row leasestore.Row, tab x402Tab) (*lease, error) {
	a, err := row.Allocated()
	l := &lease{id: a.LeaseID, terms: tab.Terms, allocation: a, offer: &wire.SignedOffer{Hash: common.HexToHash(row.Offer)}, done: make(chan struct{})}
	close(l.done)
	l.view = leaseView{state: leasestore.State(row.State), sequence: math.MaxUint64}
	if l.view.state == leasestore.Ended {
		l.allocation.Access = json.RawMessage("null")
	}
	return l, err
}

// show writes the receipt, the lease, and the record that comes.
func (d *x402Desk) show(ctx context.Context, w http.ResponseWriter, r *x402Request, tab x402Tab, note x402Note, l *lease) (*x402Answer, error) {
	base, err := channel.ParseAmount(note.Base)
	if err != nil {
		return nil, err
	}
	charged, err := channel.ParseAmount(note.Charged)
	if err != nil {
		return nil, err
	}
	answer := &x402Answer{note: note, receipt: tab.receipt(note, base, charged), written: true}
	if err := answer.receipt.Set(w.Header()); err != nil {
		return nil, err
	}
	defer serve.Hurry(w)
	st := &stream{outlet: newServerSent(w), lease: l}
	v, _ := l.snapshot()
	lost := errors.Join(st.begin(), st.send(0, wire.EventLease, wire.Lease{
		LeaseID: l.id, ChannelID: tab.ID, OfferHash: l.offer.Hash, Devices: l.allocation.Devices,
		OwedBefore: wire.NewAmount(l.owedBefore), State: string(v.state), Access: l.allocation.Access,
	}))
	if err := d.await(ctx, l, uint64(note.Sequence)); err != nil {
		d.config.Log.Warn("x402 stream ended before its record; what was charged is credit", "channel", tab.ID, "error", err)
		return answer, nil // the answer has begun
	}
	rec, _, err := d.recordOf(ctx, note)
	if err == nil && rec != nil && lost == nil {
		lost = st.send(rec.Sequence, wire.EventUsage, rec)
	}
	answer.lost = lost != nil || err != nil
	return answer, nil
}
