package x402scheme

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/internal/sharing"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
)

// MeteredRoute is a handler's price, as provider.Route says it: the time of named GPUs while it runs.
type MeteredRoute struct {
	Class        string // of the devices; empty where the provider has none
	Devices      []string
	MaxTime      time.Duration
	Streamed     bool
	WriteTimeout time.Duration // of a piece of a streamed answer

	// Service is that whose slots the requests take, each one; nil: they use Devices, one at a time. Streams says which of them are streamed.
	Service *sharing.Service
	Streams func(*http.Request, []byte) bool
}

// streams reports whether a request is answered as its handler writes.
func (m *meteredRoute) streams(r *Request) bool {
	return m.Streamed || m.Streams != nil && m.Streams(r.Request, r.Content)
}

// metered serves requests that are charged the time of named GPUs while a handler runs.
type metered struct{ core }

// meteredRoute is a route and the turns of its requests.
type meteredRoute struct {
	MeteredRoute
	d       *metered
	handler http.Handler
	route   x402server.Route
	running chan struct{}
}

// load reads what a request asks for, once. A metered request's body is held in memory: it is read only when the chain
// holds a deposit in the request's channel, in the channel's turn, so that nobody fills the memory for nothing.
func (d *metered) load(w http.ResponseWriter, r *Request) error {
	if r.Hash != "" {
		return nil
	}
	if r.metered != nil {
		var err error
		if r.Content, err = d.body(w, r.Request); err != nil {
			return err
		}
	}
	r.Identify()
	return nil
}

// bounded refuses a body that would be refused when it is read, before money moves.
func (d *metered) bounded(r *Request, tab x402server.Account) error {
	switch {
	case r.metered == nil:
		return nil
	case r.ContentLength > int64(d.MaxReply):
		return wire.MalformedCredential.With("the body has %d bytes, it may have %d", r.ContentLength, d.MaxReply)
	case r.ContentLength < 0 && !tab.Known:
		return wire.MalformedCredential.With("the first payment of a channel goes with a body whose length is said: send Content-Length")
	}
	return nil
}

// body reads a request's body whole: it tells the request from others with the same voucher.
func (d *metered) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(serve.BodyTimeout)) // without deadlines the server's own apply
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(d.MaxReply)))
	if err != nil {
		w.Header().Set("Connection", "close")
		return nil, wire.MalformedCredential.With("the body was not read: it may have %d bytes and take %s", d.MaxReply, serve.BodyTimeout)
	}
	_ = control.SetReadDeadline(time.Time{})
	return body, nil
}

// serve runs a route's handler on a lease of its own and charges what was
// metered. What the client gets is on disk with the charge.
func (d *metered) serve(ctx context.Context, w http.ResponseWriter, r *Request, tab x402server.Account, note x402server.Entry) (*x402server.Answer, error) {
	m := r.metered
	streamed := m.streams(r)
	if streamed {
		charged, err := d.Advance(tab, r.Route, m.MaxTime+4*d.Tick)
		if err != nil {
			return nil, err
		}
		note.Charged = charged.Dec()
	}
	l, slot, err := d.let(ctx, r, tab, &note)
	if err != nil {
		return nil, err
	}
	defer d.Named.drop(l.ID)
	out := x402server.NewRecorder(d.MaxReply)
	if streamed {
		out.PassOn(w, m.WriteTimeout)
		defer serve.Hurry(w)
		receipt, err := tab.Told(note)
		if err == nil { // told before anything is served
			err = receipt.Set(w.Header())
		}
		if err != nil {
			return nil, errors.Join(err, l.End(ctx, lease.Stop{Reason: "not served"}))
		}
	}
	var served metering.Instant
	if slot != nil {
		served = m.hold(l, slot, r, out)
	} else {
		served = m.run(ctx, l, r, out)
	}
	return d.finish(ctx, r, l, tab, note, out, served)
}

// enter waits for a metered request's turn at its route: one runs at a time, as each is billed for the route's devices. What is kept
// for it is kept on.
func (d *metered) enter(r *Request) error {
	if r.metered == nil || r.metered.Service != nil {
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
		case <-d.Leases.Lifetime().Done():
			return wire.Unavailable.With("this provider stops")
		case <-again.C:
			if r.lease == (common.Hash{}) {
				continue
			}
			if err := d.keepOn(r.Context(), r.metered, r.lease); err != nil {
				d.Log.Warn("a route's devices are not kept on for a request that waits", "channel", r.ID, "error", err)
			}
		}
	}
}

// leave lets the next request of a route have its turn.
func (r *Request) leave() {
	if r.turn {
		<-r.metered.running
	}
}

// letNamed begins a lease of a route's devices, on disk with what it may use.
func (d *metered) letNamed(ctx context.Context, r *Request, tab x402server.Account, note *x402server.Entry) (*lease.Lease, error) {
	defer d.Starts.Lock(tab.ID)()
	if err := d.keepDevices(ctx, r); err != nil { // also without a deposit: another's may be on its way for what is free
		return nil, err
	}
	note.Lease = r.lease.Hex()
	if err := d.Admit(ctx, r, *note, nil); err != nil {
		return nil, err // what was kept is let go of with the request
	}
	l, err := d.Let(ctx, r, tab, len(r.metered.Devices), note.Lease)
	if err != nil {
		return nil, err
	}
	r.lease = common.Hash{} // its end frees them
	return l, nil
}

// run lets the handler answer until its time is used up, and returns when it was over.
func (m *meteredRoute) run(ctx context.Context, l *lease.Lease, r *Request, out *x402server.Recorder) metering.Instant {
	ctx, cancel := context.WithTimeout(ctx, m.MaxTime)
	defer cancel()
	defer context.AfterFunc(m.d.Leases.Lifetime(), cancel)()
	go whileActive(ctx, l, cancel) // what is reserved may be used up before the clock says so
	if out.Passed() {
		// A client that does not read would hold up whoever comes next.
		defer context.AfterFunc(ctx, out.End)()
	}
	req := r.Request.Clone(ctx)
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(r.Content)), int64(len(r.Content))
	m.handle(out, req, r.ID)
	return l.Deps.Clock.Now()
}

// handle calls the handler. A panic of it is an answer of status 500.
func (m *meteredRoute) handle(out *x402server.Recorder, req *http.Request, id common.Hash) {
	defer func() {
		if broken := recover(); broken != nil {
			m.d.Log.Error("the handler of a metered route failed", "channel", id, "error", broken)
			out.Fail(wire.Internal.With("the handler failed; the time that it ran was charged"))
		}
	}()
	m.handler.ServeHTTP(out, req)
}

// finish ends the lease of a request: its last record, the charge and the copy of the answer are on disk together.
func (d *metered) finish(ctx context.Context, r *Request, l *lease.Lease, tab x402server.Account, note x402server.Entry, out *x402server.Recorder, served metering.Instant) (*x402server.Answer, error) {
	if err := out.Keep(&note); err != nil {
		return nil, err
	}
	if r.broken { // nobody has half an answer again
		note.Status, note.Header, note.Body = 0, "", nil
	}
	var kept bool
	closing := func(tx *sqlx.Tx, rec metering.SignedRecord) error {
		spent, err := d.Carry(tx, l.Price, rec)
		n := note
		if err == nil {
			n, err = note.Charge(spent)
		}
		if err == nil {
			err = d.Journal.Put(tx, n)
		}
		kept = err == nil
		return err
	}
	l.Records.Closing.Store(&closing)
	if err := l.End(ctx, lease.Stop{Reason: "the request was served", At: &served}); err != nil {
		return nil, err
	}
	last, err := d.Store.Records.Last(ctx, l.ID)
	if err != nil {
		return nil, err
	}
	var spent uint256.Int
	if tab.State, err = d.Book.State(ctx, tab.ID); err == nil && last != nil {
		spent = tab.Spent
	}
	if note, err = note.Charge(spent); err == nil && !kept { // it had ended by itself
		db, _, notes := d.BooksOf(&r.PaidRequest)
		err = db.Update(ctx, func(tx *sqlx.Tx) error { return notes.Put(tx, note) })
	}
	if err != nil {
		return nil, err
	}
	answer, err := tab.Copy(note)
	if answer != nil && out.Passed() {
		answer.Written, answer.Lost = true, out.Lost()
	}
	return answer, err
}

// copied is an answer that was kept, nil if nothing was metered for it: then the request can be served.
func (d *metered) copied(ctx context.Context, tab x402server.Account, note x402server.Entry) (*x402server.Answer, error) {
	if note.Status == 0 || note.Charged == "" {
		return nil, nil
	}
	if note.Charged == note.Base { // or what it used is less than a base unit
		if last, err := d.Store.Records.Last(ctx, common.HexToHash(note.Lease)); err != nil || last == nil || last.Nanos == 0 {
			return nil, err
		}
	}
	return tab.Copy(note)
}

// whileActive calls stop when the lease is not active any more.
func whileActive(ctx context.Context, l *lease.Lease, stop func()) {
	for {
		v, changed := l.Status.Snapshot()
		if v.State != leasestore.Active {
			stop()
			return
		}
		select {
		case <-changed:
		case <-l.Done: // lost to another gateway, which does not know of the handler
			stop()
			return
		case <-ctx.Done():
			return
		}
	}
}
