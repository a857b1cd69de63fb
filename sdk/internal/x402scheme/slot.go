package x402scheme

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
	"github.com/gpupay/gpupay/sdk/internal/sharing"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
)

// slotKey is under which a handler finds the slot of its request.
type slotKey struct{}

// SlotOf is the slot that a request of a route of slots holds, nil of any other.
func SlotOf(ctx context.Context) *sharing.Request {
	slot, _ := ctx.Value(slotKey{}).(*sharing.Request)
	return slot
}

// MeteredSlots is a handler behind payments whose requests take slots of the service of the route's class, up to the longest time that its
// offer names.
func (d *Scheme) MeteredSlots(services sharing.Services, route MeteredRoute, h http.Handler) (http.Handler, error) {
	offer, err := d.Leases.Of(route.Class)
	if err != nil {
		return nil, err
	}
	route.Class, route.MaxTime, route.Service = offer.ClassID(), offer.Share.MaxTime(), services[offer.ClassID()]
	if route.Service == nil || len(route.Devices) > 0 {
		return nil, errors.New("provider: Metered: a route of slots needs a Class that has a Share, and no Devices of its own")
	}
	return d.Metered(route, h)
}

// let begins the lease of a request: of the route's devices, or of a slot, which it has then.
func (d *metered) let(ctx context.Context, r *Request, tab x402server.Account, note *x402server.Entry) (*lease.Lease, *sharing.Request, error) {
	if r.metered.Service == nil {
		l, err := d.letNamed(ctx, r, tab, note)
		if err != nil {
			return nil, nil, err
		}
		if err := l.Measurable(); err != nil {
			return nil, nil, errors.Join(err, l.End(ctx, lease.Stop{Reason: lease.ReasonUnmetered}))
		}
		return l, nil, nil
	}
	l, err := d.letShared(ctx, r, tab, note)
	if err != nil {
		return nil, nil, err
	}
	slot, err := lease.TakeSlot(ctx, l)
	if err != nil {
		return nil, nil, errors.Join(err, l.End(ctx, lease.Stop{Reason: "it found no slot"}))
	}
	return l, slot, nil
}

// letShared begins a lease of shared devices that lasts for one request, on disk with what it may use.
func (d *metered) letShared(ctx context.Context, r *Request, tab x402server.Account, note *x402server.Entry) (*lease.Lease, error) {
	defer d.Starts.Lock(tab.ID)()
	note.Lease = reserve.NewLease().Hex()
	if err := d.Admit(ctx, r, *note, nil); err != nil {
		return nil, err
	}
	return d.Let(ctx, r, tab, r.Route.GPUs, note.Lease)
}

// hold lets the handler answer while the request has its slot, and returns when that was given back. What the handler does not end itself is
// billed as done or, where it panics, not at all.
func (m *meteredRoute) hold(l *lease.Lease, slot *sharing.Request, r *Request, out *x402server.Recorder) metering.Instant {
	if out.Passed() {
		defer context.AfterFunc(slot.Ctx, out.End)()
	}
	req := r.Request.Clone(context.WithValue(slot.Ctx, slotKey{}, slot))
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(r.Content)), int64(len(r.Content))
	how := metering.RequestFailed
	func() {
		defer func() {
			broken := recover()
			if broken == nil {
				return
			}
			if broken != http.ErrAbortHandler {
				m.d.Log.Error("the handler of a route of slots failed", "channel", r.ID, "error", broken)
			}
			r.broken = out.Passed()
			out.Fail(wire.Unavailable.With("the answer broke off: ask again"))
		}()
		m.handler.ServeHTTP(out, req)
		how = metering.RequestDone
	}()
	slot.End(how, time.Now())
	return l.Deps.Clock.Now()
}
