package sessionscheme

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

// streams show leases to their renters.
type streams struct {
	core
	vouchers *vouchers
	leasing  *Leasing
}

// keepAlive is how often an idle stream carries a comment, so that proxies do
// not cut it and a renter notices a dead provider.
const keepAlive = 15 * time.Second

// attach joins the channel's running lease, or begins one, and streams it.
func (d *streams) attach(w http.ResponseWriter, r *Request, s channel.State) error {
	l, secret, err := d.leasing.join(r, s)
	if err != nil {
		return err
	}
	defer d.Leases.Detach(l)
	st := &stream{outlet: newServerSent(w), lease: l, receipt: func(v lease.View) wire.Receipt { return d.receipt(r, l, v) }}
	if wantsDuplex(w, r.Request) {
		st.paid = d.duplex(w, r, s.ID)
		st.outlet = st.paid
		defer func() { st.paid.close(err) }()
	} else {
		defer serve.Hurry(w)
	}
	if st.number, err = d.Leases.NextStream(r.Context(), l); err != nil {
		return err
	}
	d.OpenStreams.Inc()
	defer d.OpenStreams.Dec()
	v, _ := l.Status.Snapshot()
	if err := d.receipt(r, l, v).Set(w.Header()); err != nil {
		return err
	}
	err = st.serve(r.Context(), wire.Lease{
		LeaseID: l.ID, ChannelID: s.ID, Secret: secret, OfferHash: l.Offer.Hash, Devices: l.Allocation.Devices,
		OwedBefore: wire.NewAmount(l.OwedBefore), State: string(v.State), Access: l.Allocation.Access, Voucher: heldVoucher(s), Binding: l.Binding,
	}, lastEventID(r.Request))
	if err != nil {
		d.Log.Debug("stream ended; the lease goes on", "lease", l.ID, "error", err)
	}
	return nil // the answer has begun: it cannot become a problem document
}

// duplex makes the outlet for a renter that asked for one.
func (d *streams) duplex(w http.ResponseWriter, r *Request, channelID common.Hash) *duplex {
	return &duplex{
		w: w, r: r.Request, channelID: channelID, timeout: serve.WriteTimeout,
		pay: func(ctx context.Context, sent []channel.Voucher) (channel.Receipt, error) {
			return d.vouchers.take(ctx, d.Payee, sent)
		},
		refused: func(err error) *wire.Problem {
			problem := d.Front.Problem(err)
			d.Metrics.Refused(problem)
			return problem
		},
		some: make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
}

// receipt states what of a lease was used, and vouchered.
func (d *streams) receipt(r *Request, l *lease.Lease, v lease.View) wire.Receipt {
	receipt := wire.NewReceipt(time.Now(), r.Cred.Challenge.ID, d.Escrow.ChainID(), l.Terms.ID(), wire.NewAmount(v.Accepted), wire.NewAmount(v.Owed))
	receipt.Units = strconv.FormatUint(v.Nanos, 10)
	return receipt
}

// outlet is how a stream reaches its renter.
type outlet interface {
	begin() error
	event(wire.Event) error
	idle() error // says that we are still here
}

// stream writes one lease's events to one renter. It pulls: what the renter
// has not seen is read from the lease and the store, so a slow renter costs no
// memory, and a lease never waits for one.
type stream struct {
	outlet
	lease   *lease.Lease
	number  uint64 // of this stream; a newer one replaces it
	seen    lease.View
	receipt func(lease.View) wire.Receipt
	paid    *duplex // where the renter pays through the stream: the outlet, too
}

// serve runs until the lease ends, the renter leaves or a newer stream
// replaces this one.
func (s *stream) serve(ctx context.Context, first wire.Lease, after uint64) error {
	if err := s.begin(); err != nil {
		return err
	}
	if err := s.send(0, wire.EventLease, first); err != nil {
		return err
	}
	s.seen = lease.View{Sequence: after, Version: 1}
	idle := time.NewTicker(keepAlive)
	defer idle.Stop()
	for {
		now, changed := s.lease.Status.Snapshot()
		over, err := s.show(ctx, now)
		if over || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.lease.Done:
		case <-s.paid.waits():
			err = s.paid.take(ctx)
		case <-idle.C:
			err = s.idle()
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// show writes what is new in now: records first, because everything else
// refers to them.
func (s *stream) show(ctx context.Context, now lease.View) (over bool, err error) {
	if now.Stream != s.number {
		return true, nil // the renter has another stream: it may be a new process of his
	}
	for s.seen.Sequence < now.Sequence {
		records, err := s.lease.Deps.Store.Records.After(ctx, s.lease.ID, s.seen.Sequence, 100)
		if err != nil {
			return true, err
		}
		if len(records) == 0 {
			break
		}
		for _, rec := range records {
			if err := s.send(rec.Sequence, wire.EventUsage, rec); err != nil {
				return true, err
			}
			fault.Point(fault.RecordSent)
			s.seen.Sequence = rec.Sequence
		}
	}
	if now.Version != s.seen.Version {
		if err := s.send(0, wire.EventStatus, wire.Status{State: string(now.State), Reason: now.Reason}); err != nil {
			return true, err
		}
	}
	if now.Need > s.seen.Need && now.State != leasestore.Ended {
		if err := s.send(0, wire.EventNeedVoucher, s.lease.Balance.Needs(now)); err != nil {
			return true, err
		}
	}
	s.seen.Version, s.seen.Need = now.Version, now.Need
	if now.State == leasestore.Ended {
		return true, s.send(0, wire.EventReceipt, s.receipt(now))
	}
	select {
	case <-s.lease.Done:
		// The provider stops and the lease goes on later; or it ended after now
		// was read, and its last record and the receipt are still to be shown.
		last, _ := s.lease.Status.Snapshot()
		return last.State != leasestore.Ended, nil
	default:
		return false, nil
	}
}

func (s *stream) send(id uint64, name string, data any) error {
	event, err := wire.NewEvent(id, name, data)
	if err != nil {
		return err
	}
	return s.event(event)
}

// serverSent is the outlet of a text/event-stream.
type serverSent struct{ serve.Events }

func newServerSent(w http.ResponseWriter) serverSent { return serverSent{serve.NewEvents(w)} }

func (s serverSent) begin() error {
	s.Begin()
	return nil
}

func (s serverSent) event(e wire.Event) error { return s.Send(e) }

func (s serverSent) idle() error { return s.Comment(wire.Comment) }

// lastEventID is where a renter wants its stream to go on.
func lastEventID(r *http.Request) uint64 {
	id, err := strconv.ParseUint(r.Header.Get("Last-Event-ID"), 10, 64)
	if err != nil {
		return 0
	}
	return id
}
