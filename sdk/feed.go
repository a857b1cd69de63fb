package sdk

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

// feed is an open stream of a lease's events.
type feed struct {
	events chan wire.Event
	err    error // why events was closed
	cancel context.CancelFunc
	alive  atomic.Int64    // unix nanoseconds of the newest byte, comments included
	conn   *websocket.Conn // takes vouchers; nil: the stream is one of server-sent events
}

// eventAccepted is how a feed shows a receipt of its provider.
const eventAccepted = "accepted"

// attach asks for the stream of a lease: one over a WebSocket, which takes
// vouchers, or server-sent events from a provider, or through a proxy, that has
// no other. life ends the stream. A refusal is a *wire.Problem.
func (p peer) attach(life context.Context, gpus int, c wire.Credential, header http.Header) (*feed, error) {
	authorization, err := c.Header()
	if err != nil {
		return nil, err
	}
	header.Set("Authorization", authorization)
	life, cancel := context.WithCancel(life)
	f := &feed{events: make(chan wire.Event), cancel: cancel}
	f.alive.Store(time.Now().UnixNano())
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

// ask gives the feed a connection that takes vouchers, or returns what was
// answered instead.
func (p peer) ask(ctx context.Context, f *feed, gpus int, header http.Header) (*http.Response, error) {
	if p.plain.Load() {
		return p.do(ctx, http.MethodGet, leasePath(gpus), header)
	}
	asked := &upgrade{RoundTripper: cmp.Or[http.RoundTripper](p.http.Transport, http.DefaultTransport)}
	client := *p.http
	client.Transport = asked
	conn, _, err := websocket.Dial(ctx, p.base+leasePath(gpus), &websocket.DialOptions{HTTPClient: &client, HTTPHeader: p.header(header)})
	switch {
	case err == nil:
		conn.SetReadLimit(wire.MaxEvent)
		f.conn = conn
		return nil, nil
	case asked.answer == nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrGone, p.base, reach.Explain(err))
	case asked.answer.StatusCode == http.StatusOK || wire.IsProblem(asked.answer):
		return asked.answer, nil // the provider's own words
	}
	p.plain.Store(true)
	if asked.answer.Body != nil {
		_ = asked.answer.Body.Close()
	}
	return p.do(ctx, http.MethodGet, leasePath(gpus), header)
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
func (f *feed) read(body io.ReadCloser) {
	defer close(f.events)
	defer body.Close()
	events := wire.NewEvents(&pulse{body, &f.alive})
	for {
		e, err := events.Next()
		if err != nil {
			f.err = err
			return
		}
		f.events <- e
	}
}

// pulse notes when something was read.
type pulse struct {
	io.Reader
	at *atomic.Int64
}

func (p *pulse) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if n > 0 {
		p.at.Store(time.Now().UnixNano())
	}
	return n, err
}

// follow takes the messages of a WebSocket.
func (f *feed) follow() {
	defer close(f.events)
	defer f.conn.CloseNow()
	for {
		kind, message, err := f.conn.Read(context.Background()) // cancel closes it
		if err != nil {
			f.err = err
			if errors.Is(err, websocket.ErrMessageTooBig) {
				f.err = wire.ErrEventTooLong
			}
			return
		}
		f.alive.Store(time.Now().UnixNano())
		if kind == websocket.MessageBinary {
			f.events <- wire.Event{Name: eventAccepted, Data: message}
			continue
		}
		e, err := wire.NewEvents(bytes.NewReader(message)).Next()
		switch {
		case err == nil:
			f.events <- e
		case !errors.Is(err, io.EOF): // a comment has no event
			f.err = err
			return
		}
	}
}

// takes reports whether vouchers go through the stream. No feed takes any.
func (f *feed) takes() bool { return f != nil && f.conn != nil }

// pay sends a voucher. That it was accepted is an event, later.
func (f *feed) pay(ctx context.Context, v channel.Voucher) error {
	message, err := wire.AppendVoucher(nil, v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return f.conn.Write(ctx, websocket.MessageBinary, message)
}

// silence is how long nothing was heard at all.
func (f *feed) silence() time.Duration { return time.Since(time.Unix(0, f.alive.Load())) }

// close ends the stream and frees its reader.
func (f *feed) close() {
	f.cancel()
	for range f.events {
	}
}
