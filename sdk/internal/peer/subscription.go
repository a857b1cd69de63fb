package peer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/reach"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Subscription is an open stream of a lease's events.
type Subscription struct {
	Events chan wire.Event    // what comes, EventAccepted included
	Err    error              // why Events was closed
	Cancel context.CancelFunc // ends the stream
	alive  pulse
	conn   *websocket.Conn // takes vouchers; nil: the stream is one of server-sent events
}

// pulse is when the newest byte came, comments included, by the monotonic clock: the wall clock is set.
type pulse struct{ newest atomic.Pointer[time.Time] }

func (p *pulse) beat() {
	now := time.Now()
	p.newest.Store(&now)
}

// EventAccepted is the event that a subscription makes of a receipt of its provider.
const EventAccepted = "accepted"

// Subscribe asks for the stream of a lease: one over a WebSocket, which takes
// vouchers, or server-sent events from a provider, or through a proxy, that has
// no other. life ends the stream. A refusal is a *wire.Problem.
func (p Peer) Subscribe(life context.Context, gpus int, c wire.Credential, header http.Header) (*Subscription, error) {
	authorization, err := c.Header()
	if err != nil {
		return nil, err
	}
	header.Set("Authorization", authorization)
	life, cancel := context.WithCancel(life)
	f := &Subscription{Events: make(chan wire.Event), Cancel: cancel}
	f.alive.beat()
	resp, err := p.ask(life, f, gpus, header)
	switch {
	case err != nil:
		cancel()
		return nil, err
	case f.conn != nil:
		context.AfterFunc(life, func() { _ = f.conn.CloseNow() })
		go f.follow()
		return f, nil
	case resp.StatusCode == http.StatusOK:
		go f.read(resp.Body)
		return f, nil
	default:
		defer cancel()
		defer resp.Body.Close()
		return nil, wire.ParseProblem(resp)
	}
}

// ask gives the subscription a connection that takes vouchers, or returns what was
// answered instead.
func (p Peer) ask(ctx context.Context, f *Subscription, gpus int, header http.Header) (*http.Response, error) {
	if p.plain.Load() {
		return p.Do(ctx, http.MethodGet, p.LeasePath(gpus), header)
	}
	asked := &upgrade{RoundTripper: cmp.Or[http.RoundTripper](p.HTTP.Transport, http.DefaultTransport)}
	client := *p.HTTP
	client.Transport = asked
	conn, _, err := websocket.Dial(ctx, p.Base+p.LeasePath(gpus), &websocket.DialOptions{HTTPClient: &client, HTTPHeader: p.header(header)})
	switch {
	case err == nil:
		conn.SetReadLimit(wire.MaxEvent)
		f.conn = conn
		return nil, nil
	case asked.answer == nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, p.Base, reach.Explain(err))
	case asked.answer.StatusCode == http.StatusOK || wire.IsProblem(asked.answer):
		return asked.answer, nil // the provider's own words
	}
	p.plain.Store(true)
	if asked.answer.Body != nil {
		_ = asked.answer.Body.Close()
	}
	return p.Do(ctx, http.MethodGet, p.LeasePath(gpus), header)
}

// upgrade keeps the answer, and from Dial what it can do nothing with.
type upgrade struct {
	http.RoundTripper
	answer *http.Response
}

var errNotUpgraded = errors.New("answered without a connection")

func (u *upgrade) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := u.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	u.answer = resp
	if _, open := resp.Body.(io.Writer); !open || resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, errNotUpgraded
	}
	return resp, nil
}

// read takes server-sent events.
func (f *Subscription) read(body io.ReadCloser) {
	defer close(f.Events)
	defer body.Close()
	events := wire.NewEvents(&heard{body, &f.alive})
	for {
		e, err := events.Next()
		if err != nil {
			f.Err = err
			return
		}
		f.Events <- e
	}
}

// heard notes when something was read.
type heard struct {
	io.Reader
	pulse *pulse
}

func (h *heard) Read(b []byte) (int, error) {
	n, err := h.Reader.Read(b)
	if n > 0 {
		h.pulse.beat()
	}
	return n, err
}

// follow takes the messages of a WebSocket.
func (f *Subscription) follow() {
	defer close(f.Events)
	defer f.conn.CloseNow()
	for {
		kind, message, err := f.conn.Read(context.Background()) // cancel closes it
		if err != nil {
			f.Err = err
			if errors.Is(err, websocket.ErrMessageTooBig) {
				f.Err = wire.ErrEventTooLong
			}
			return
		}
		f.alive.beat()
		if kind == websocket.MessageBinary {
			f.Events <- wire.Event{Name: EventAccepted, Data: message}
			continue
		}
		e, err := wire.NewEvents(bytes.NewReader(message)).Next()
		switch {
		case err == nil:
			f.Events <- e
		case !errors.Is(err, io.EOF): // a comment has no event
			f.Err = err
			return
		}
	}
}

// TakesVouchers reports whether vouchers go through the stream. A nil one takes none.
func (f *Subscription) TakesVouchers() bool { return f != nil && f.conn != nil }

// Pay sends a voucher. That it was accepted is an event, later.
func (f *Subscription) Pay(ctx context.Context, v channel.Voucher) error {
	message, err := wire.AppendVoucher(nil, v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, AnswerTimeout)
	defer cancel()
	return f.conn.Write(ctx, websocket.MessageBinary, message)
}

// Silence is how long nothing was heard at all.
func (f *Subscription) Silence() time.Duration { return time.Since(*f.alive.newest.Load()) }

// Close ends the stream and frees its reader.
func (f *Subscription) Close() {
	f.Cancel()
	for range f.Events {
	}
}
