package sdk

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/cors"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// MeteredRoute is a handler's price: the time of named GPUs while it runs.
type MeteredRoute struct {
	// Devices are UUIDs, as the provider's source names them. Each is billed to one request or lease at a time: requests of
	// a route wait for each other, and whoever finds a device in a lease, or in another route's request, is refused with a
	// 503 before money moves.
	Devices []string
	MaxTime time.Duration // that one request may run; its ceiling is the price of it
	// Streamed has the answer written as the handler writes it: the whole ceiling
	// is charged first, and what was not used is credit for the next request.
	// Otherwise the answer is kept until the handler returns, and the charge is
	// what was used.
	Streamed bool

	writeTimeout time.Duration // of a piece of a streamed answer
}

// newMeteredRoute is a handler behind payments, whose route was checked.
func (d *x402Desk) newMeteredRoute(route MeteredRoute, h http.Handler) (*meteredRoute, error) {
	route.writeTimeout = cmp.Or(route.writeTimeout, serve.WriteTimeout)
	// The lease stops two ticks before what is reserved, and a reading may be late.
	most, err := d.ceiling(len(route.Devices), route.MaxTime+4*d.config.Tick)
	if err != nil {
		return nil, err
	}
	d.named.route(route.Devices...)
	return &meteredRoute{d: d, MeteredRoute: route, handler: h, running: make(chan struct{}, 1),
		route: x402Route{kind: kindMetered, gpus: len(route.Devices), most: most}}, nil
}

type meteredRoute struct {
	MeteredRoute
	d       *x402Desk
	handler http.Handler
	route   x402Route
	running chan struct{}
}

// ServeHTTP asks for a payment, or serves what was paid for.
func (m *meteredRoute) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if cors.Origins(m.d.config.AllowedOrigins).Answer(w, r) {
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	if len(r.Header.Values(x402.HeaderSignature)) == 0 {
		m.ask(w, r)
		return
	}
	m.d.serve(w, r, &x402Request{route: m.route, metered: m})
}

// ask answers a request without a payment.
func (m *meteredRoute) ask(w http.ResponseWriter, r *http.Request) {
	var err error
	if !m.d.limiter.Challenge(r) {
		err = wire.TooMany.With("too many requests without a payment from your address: wait a second")
	}
	if err == nil {
		err = m.d.required(r, x402.FirstError, m.d.offered(m.route)).Set(w.Header())
	}
	if err != nil {
		m.d.front.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	serve.Hurry(w)
	w.WriteHeader(http.StatusPaymentRequired)
	_, _ = w.Write([]byte("{}"))
}

// load reads what a request asks for, once. A metered request's body is held in
// memory: it is read only when the chain holds a deposit in the request's channel,
// in the channel's turn, so that nobody fills the memory for nothing.
func (d *x402Desk) load(w http.ResponseWriter, r *x402Request) error {
	if r.hash != "" {
		return nil
	}
	if r.metered != nil {
		var err error
		if r.body, err = d.body(w, r.Request); err != nil {
			return err
		}
	}
	r.identify()
	return nil
}

// bounded refuses a body that would be refused when it is read, before money moves.
func (d *x402Desk) bounded(r *x402Request, tab x402Tab) error {
	switch {
	case r.metered == nil:
		return nil
	case r.ContentLength > int64(d.x.MaxReply):
		return wire.MalformedCredential.With("the body has %d bytes, it may have %d", r.ContentLength, d.x.MaxReply)
	case r.ContentLength < 0 && !tab.known:
		return wire.MalformedCredential.With("the first payment of a channel goes with a body whose length is said: send Content-Length")
	}
	return nil
}

// body reads a request's body whole: it tells the request from others with the
// same voucher.
func (d *x402Desk) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(serve.BodyTimeout)) // without deadlines the server's own apply
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(d.x.MaxReply)))
	if err != nil {
		w.Header().Set("Connection", "close")
		return nil, wire.MalformedCredential.With("the body was not read: it may have %d bytes and take %s", d.x.MaxReply, serve.BodyTimeout)
	}
	_ = control.SetReadDeadline(time.Time{})
	return body, nil
}

// metered runs a route's handler on a lease of its own and charges what was
// metered. What the client gets is on disk with the charge.
func (d *x402Desk) metered(ctx context.Context, w http.ResponseWriter, r *x402Request, tab x402Tab, note x402Note) (*x402Answer, error) {
	m := r.metered
	if m.Streamed {
		charged, err := d.advance(tab, r.route, m.MaxTime+4*d.config.Tick)
		if err != nil {
			return nil, err
		}
		note.Charged = charged.Dec()
	}
	l, err := d.letNamed(ctx, r, tab, &note)
	if err != nil {
		return nil, err
	}
	defer d.named.drop(l.id)
	if err := l.measurable(); err != nil {
		return nil, errors.Join(err, l.end(ctx, stopRequest{reason: reasonUnmetered}))
	}
	out := &keptReply{limit: d.x.MaxReply, header: make(http.Header)}
	if m.Streamed {
		out.to, out.header, out.stream = w, w.Header(), serve.NewStream(w, m.writeTimeout)
		defer serve.Hurry(w)
		if err := d.told(tab, note, w.Header()); err != nil {
			return nil, errors.Join(err, l.end(ctx, stopRequest{reason: "not served"}))
		}
	}
	served := m.run(ctx, l, r, out)
	return d.finish(ctx, r, l, tab, note, out, served)
}

// told writes what is charged before anything is served.
func (d *x402Desk) told(tab x402Tab, note x402Note, h http.Header) error {
	a, err := d.copyOf(tab, note)
	if err != nil {
		return err
	}
	return a.receipt.Set(h)
}

// enter waits for a metered request's turn at its route: one runs at a time, as each is billed for the route's devices. What is kept
// for it is kept on.
func (d *x402Desk) enter(r *x402Request) error {
	if r.metered == nil {
		return nil
	}
	again := time.NewTicker(d.keepFor() / 3)
	defer again.Stop()
	for {
		select {
		case r.metered.running <- struct{}{}:
			r.turn = true
			return nil
		case <-r.Context().Done():
			return r.Context().Err()
		case <-d.leases.lifetime().Done():
			return wire.Unavailable.With("this provider stops")
		case <-again.C:
			if r.lease == (common.Hash{}) {
				continue
			}
			if err := d.keepOn(r.Context(), r.metered, r.lease); err != nil {
				d.config.Log.Warn("a route's devices are not kept on for a request that waits", "channel", r.id, "error", err)
			}
		}
	}
}

// leave lets the next request of a route have its turn.
func (r *x402Request) leave() {
	if r.turn {
		<-r.metered.running
	}
}

// letNamed begins a lease of a route's devices, on disk with what it may use.
func (d *x402Desk) letNamed(ctx context.Context, r *x402Request, tab x402Tab, note *x402Note) (*lease, error) {
	defer d.starts.Lock(tab.ID)()
	if err := d.keepDevices(ctx, r); err != nil { // also without a deposit: another's may be on its way for what is free
		return nil, err
	}
	note.Lease = r.lease.Hex()
	if err := d.admit(ctx, r, *note, nil); err != nil {
		return nil, err // what was kept is let go of with the request
	}
	l, err := d.let(ctx, r, tab, len(r.metered.Devices), note.Lease)
	if err != nil {
		return nil, err
	}
	r.lease = common.Hash{} // its end frees them
	return l, nil
}

// run lets the handler answer until its time is used up, and returns when it was
// over.
func (m *meteredRoute) run(ctx context.Context, l *lease, r *x402Request, out *keptReply) metering.Instant {
	ctx, cancel := context.WithTimeout(ctx, m.MaxTime)
	defer cancel()
	defer context.AfterFunc(m.d.leases.lifetime(), cancel)()
	go l.whileActive(ctx, cancel) // what is reserved may be used up before the clock says so
	if out.to != nil {
		// A client that does not read would hold up whoever comes next.
		defer context.AfterFunc(ctx, out.stream.End)()
	}
	req := r.Request.Clone(ctx)
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(r.body)), int64(len(r.body))
	m.handle(out, req, r.id)
	return l.deps.clock.Now()
}

// measurable waits until a request's GPUs were read first, so that all of its time
// is charged, and refuses one that could not be charged at all.
func (l *lease) measurable() error {
	select {
	case <-l.read:
	case <-l.done:
	}
	if !l.watchdog.fed.Load() {
		return wire.Unavailable.With("the GPUs of this request cannot be metered now: nothing was charged, try again later")
	}
	return nil
}

// handle calls the handler. A panic of it is an answer of status 500.
func (m *meteredRoute) handle(out *keptReply, req *http.Request, id common.Hash) {
	defer func() {
		if broken := recover(); broken != nil {
			m.d.config.Log.Error("the handler of a metered route failed", "channel", id, "error", broken)
			out.fail(wire.Internal.With("the handler failed; the time that it ran was charged"))
		}
	}()
	m.handler.ServeHTTP(out, req)
}

// whileActive calls stop when the lease is not active any more.
func (l *lease) whileActive(ctx context.Context, stop func()) {
	for {
		v, changed := l.snapshot()
		if v.state != leasestore.Active {
			stop()
			return
		}
		select {
		case <-changed:
		case <-l.done: // lost to another gateway, which does not know of the handler
			stop()
			return
		case <-ctx.Done():
			return
		}
	}
}

// finish ends the lease of a request: its last record, the charge and the copy
// of the answer are on disk together.
func (d *x402Desk) finish(ctx context.Context, r *x402Request, l *lease, tab x402Tab, note x402Note, out *keptReply, served metering.Instant) (*x402Answer, error) {
	if err := out.keep(&note); err != nil {
		return nil, err
	}
	var kept bool
	closing := func(tx *sqlx.Tx, rec metering.SignedRecord) error {
		spent, err := d.carry(tx, l.price, rec)
		n := note
		if err == nil {
			n, err = note.charged(spent)
		}
		if err == nil {
			err = d.notes.put(tx, n)
		}
		kept = err == nil
		return err
	}
	l.closing.Store(&closing)
	if err := l.end(ctx, stopRequest{reason: "the request was served", at: &served}); err != nil {
		return nil, err
	}
	last, err := d.store.Records.Last(ctx, l.id)
	if err != nil {
		return nil, err
	}
	var spent uint256.Int
	if tab.State, err = d.book.State(ctx, tab.ID); err == nil && last != nil {
		spent = tab.Spent
	}
	if note, err = note.charged(spent); err == nil && !kept { // it had ended by itself
		db, _, notes := d.booksOf(r)
		err = db.Update(ctx, func(tx *sqlx.Tx) error { return notes.put(tx, note) })
	}
	if err != nil {
		return nil, err
	}
	answer, err := d.copyOf(tab, note)
	if answer != nil && out.to != nil {
		answer.written, answer.lost = true, out.lost
	}
	return answer, err
}

// charged is the note of a request that was served, when its channel had spent so
// much: no more than it reserved is told as charged.
func (n x402Note) charged(spent uint256.Int) (x402Note, error) {
	n.CreatedAt = time.Now().UnixMilli()
	if n.Charged != "" { // told before it was served
		return n, nil
	}
	charged, err := channel.ParseAmount(n.Base)
	if err != nil {
		return n, err
	}
	most, err := n.reserves()
	if spent.Gt(&charged) {
		charged = u256.Min(spent, most)
	}
	n.Charged = charged.Dec()
	return n, err
}

// copied is an answer that was kept, nil if nothing was metered for it: then the
// request can be served.
func (d *x402Desk) copied(ctx context.Context, tab x402Tab, note x402Note) (*x402Answer, error) {
	if note.Status == 0 || note.Charged == "" {
		return nil, nil
	}
	if note.Charged == note.Base { // or what it used is less than a base unit
		if last, err := d.store.Records.Last(ctx, common.HexToHash(note.Lease)); err != nil || last == nil || last.Nanos == 0 {
			return nil, err
		}
	}
	return d.copyOf(tab, note)
}

func (d *x402Desk) copyOf(tab x402Tab, note x402Note) (*x402Answer, error) {
	base, err := channel.ParseAmount(note.Base)
	if err != nil {
		return nil, err
	}
	charged, err := channel.ParseAmount(note.Charged)
	if err != nil {
		return nil, err
	}
	a := &x402Answer{note: note, receipt: tab.receipt(note, base, charged), status: note.Status, body: note.Body}
	return a, json.Unmarshal([]byte(cmp.Or(note.Header, "{}")), &a.header)
}
