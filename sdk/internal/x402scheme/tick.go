package x402scheme

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
)

// ticks serves windows of GPU time, as ticks and as streams.
type ticks struct{ core }

// tick lets the channel's lease run on for one more window, or begins one, and answers when that was metered.
func (d *ticks) tick(ctx context.Context, r *Request, tab x402server.Account, note x402server.Entry) (*x402server.Answer, error) {
	l, err := d.attach(ctx, r, tab, &note)
	if err != nil {
		return nil, err
	}
	defer d.Leases.Detach(l)
	if err := d.await(ctx, l, uint64(note.Sequence)); err != nil {
		return nil, err
	}
	return d.ticked(ctx, tab, note)
}

// errConflict is a request that does not fit what runs on its channel.
var errConflict = wire.Problem{Type: "about:blank", Title: "Conflict", Status: http.StatusConflict}

// ticked is the answer to a tick, made from what is on disk: the first record
// after its admission says what it cost. It is the same each time.
func (d *ticks) ticked(ctx context.Context, tab x402server.Account, note x402server.Entry) (*x402server.Answer, error) {
	rec, row, err := d.recordOf(ctx, note)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, errors.New("x402: a tick without a record")
	}
	base, err := channel.ParseAmount(note.Base)
	if err != nil {
		return nil, err
	}
	a, err := row.Allocated()
	if err != nil {
		return nil, err
	}
	if row.State == wire.StateEnded {
		a.Access = json.RawMessage("null")
	}
	most, err := note.Reserves()
	if err != nil {
		return nil, err
	}
	charged := u256.Min(rec.Owed, most)
	if base.Gt(&charged) {
		charged = base // it was paid for before
	}
	s, err := d.Book.State(ctx, tab.ID)
	if err != nil {
		return nil, err
	}
	tab.State = s
	receipt := tab.Receipt(note, base, charged)
	return x402server.NewAnswer(note, receipt, wire.Tick{
		LeaseID: a.LeaseID, ChannelID: tab.ID, OfferHash: common.HexToHash(row.Offer), Devices: a.Devices, Access: a.Access,
		State: row.State, Charged: *receipt.ChargedAmount, Record: rec,
	})
}

// tickAgain is the answer of a tick that was metered, nil if nothing was charged for it: then it can be served.
func (d *ticks) tickAgain(ctx context.Context, tab x402server.Account, note x402server.Entry) (*x402server.Answer, error) {
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

// A stream is a tick that is told before it is used: the receipt is the first thing the client reads, then events as
// they come, then the record of what was metered. What was charged and not used is credit for the next request.

// stream lets the channel's lease run on for one more window and shows it.
func (d *ticks) stream(ctx context.Context, w http.ResponseWriter, r *Request, tab x402server.Account, note x402server.Entry) (*x402server.Answer, error) {
	ahead := d.Window + 2*d.Tick // a record is cut at the reading after the window
	charged, err := d.Advance(tab, r.Route, ahead)
	if err != nil {
		return nil, err
	}
	note.Charged = charged.Dec()
	l, err := d.attach(ctx, r, tab, &note)
	if err != nil {
		return nil, err
	}
	defer d.Leases.Detach(l)
	return d.show(ctx, w, r, tab, note, l)
}

// play shows a stream that was charged before once more, to a client that lost
// it. What of it was not metered yet is metered now.
func (d *ticks) play(ctx context.Context, w http.ResponseWriter, r *Request, tab x402server.Account, note x402server.Entry) (*x402server.Answer, error) {
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
	if note.Charged != tab.Charged.Dec() {
		return nil, nil // others were charged since; what this one did not use is credit
	}
	l, err := d.attach(ctx, r, tab, &note)
	if err != nil {
		return nil, err
	}
	defer d.Leases.Detach(l)
	return d.show(ctx, w, r, tab, note, l)
}

// past is a lease of which only its records are shown.
func (d *ticks) past(row leasestore.Row, tab x402server.Account) (*lease.Lease, error) {
	a, err := row.Allocated()
	state := leasestore.State(row.State)
	if state == leasestore.Ended {
		a.Access = json.RawMessage("null")
	}
	return lease.Past(lease.Spec{ID: a.LeaseID, Terms: tab.Terms, Allocation: a, Offer: &wire.SignedOffer{Hash: common.HexToHash(row.Offer)}},
		lease.View{State: state, Sequence: math.MaxUint64}), err
}

// show writes the receipt, the lease, and the record that comes.
func (d *ticks) show(ctx context.Context, w http.ResponseWriter, r *Request, tab x402server.Account, note x402server.Entry, l *lease.Lease) (*x402server.Answer, error) {
	receipt, err := tab.Told(note)
	if err == nil {
		err = receipt.Set(w.Header())
	}
	if err != nil {
		return nil, err
	}
	answer := &x402server.Answer{Entry: note, Receipt: receipt, Written: true}
	defer serve.Hurry(w)
	events := serve.NewEvents(w)
	events.Begin()
	v, _ := l.Status.Snapshot()
	lost := send(events, 0, wire.EventLease, wire.Lease{
		LeaseID: l.ID, ChannelID: tab.ID, OfferHash: l.Offer.Hash, Devices: l.Allocation.Devices,
		OwedBefore: wire.NewAmount(l.OwedBefore), State: string(v.State), Access: l.Allocation.Access,
	})
	if err := d.await(ctx, l, uint64(note.Sequence)); err != nil {
		d.Log.Warn("x402 stream ended before its record; what was charged is credit", "channel", tab.ID, "error", err)
		return answer, nil // the answer has begun
	}
	rec, _, err := d.recordOf(ctx, note)
	if err != nil {
		d.Log.Warn("x402 stream ended before its record, which could not be read: its client has it again", "channel", tab.ID, "error", err)
	}
	if err == nil && rec != nil && lost == nil {
		lost = send(events, rec.Sequence, wire.EventUsage, rec)
	}
	answer.Lost = lost != nil || err != nil
	return answer, nil
}

func send(to serve.Events, id uint64, name string, data any) error {
	event, err := wire.NewEvent(id, name, data)
	if err != nil {
		return err
	}
	return to.Send(event)
}
