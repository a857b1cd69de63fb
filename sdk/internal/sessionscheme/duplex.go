package sessionscheme

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxWaiting is how many vouchers of a stream may wait to be taken before
// nothing more is read from it.
const maxWaiting = 1024

// duplex is the outlet of a stream over a WebSocket, through which its renter
// pays, too. Vouchers that arrive while others are verified and stored wait, and
// are then taken together, by the newest of them.
type duplex struct {
	w         http.ResponseWriter
	r         *http.Request
	channelID common.Hash
	pay       func(context.Context, []channel.Voucher) (channel.Receipt, error)
	refused   func(error) *wire.Problem
	timeout   time.Duration // of one message to a renter that does not read

	conn *websocket.Conn
	some chan struct{} // has a token where something waits, or nothing more comes
	room chan struct{} // has a token after what waited was taken

	mu      sync.Mutex
	waiting []channel.Voucher
	gone    error // why nothing more comes

	taken   []channel.Voucher // the stream's own, used again
	receipt []byte
}

// wantsDuplex reports whether the renter asks for a WebSocket and there can be
// one. Who asks in vain, over HTTP/2 or through a middleware that hides the
// connection, gets server-sent events.
func wantsDuplex(w http.ResponseWriter, r *http.Request) bool {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || r.ProtoMajor != 1 {
		return false
	}
	for {
		if _, ok := w.(http.Hijacker); ok {
			return true
		}
		inner, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return false
		}
		w = inner.Unwrap()
	}
}

func (d *duplex) begin() error {
	conn, err := websocket.Accept(d.w, d.r, nil)
	if err != nil {
		return err
	}
	conn.SetReadLimit(wire.MaxMessage)
	d.conn = conn
	go d.read()
	return nil
}

func (d *duplex) event(e wire.Event) error {
	var text bytes.Buffer
	if _, err := e.WriteTo(&text); err != nil {
		return err
	}
	return d.write(websocket.MessageText, text.Bytes())
}

func (d *duplex) idle() error { return d.write(websocket.MessageText, []byte(wire.Comment)) }

func (d *duplex) write(kind websocket.MessageType, message []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), d.timeout)
	defer cancel()
	return d.conn.Write(ctx, kind, message)
}

// read puts what arrives where the stream takes it from. It ends with the
// connection.
func (d *duplex) read() {
	for {
		message, err := d.next()
		d.mu.Lock()
		if err == nil {
			d.waiting, err = wire.ParseVouchers(message, d.channelID, d.waiting)
		}
		d.gone = err
		full := len(d.waiting) >= maxWaiting
		d.mu.Unlock()
		signal(d.some)
		if err != nil {
			return
		}
		if full {
			<-d.room // close gives a token, too
		}
	}
}

func (d *duplex) next() ([]byte, error) {
	kind, message, err := d.conn.Read(context.Background()) // close ends it
	if err == nil && kind != websocket.MessageBinary {
		err = fmt.Errorf("%w: channel %s: a renter's messages are vouchers, in binary", wire.ErrMalformed, d.channelID)
	}
	return message, err
}

func signal(token chan struct{}) {
	select {
	case token <- struct{}{}:
	default: // one is there already
	}
}

// waits has a token when take has something to do. A stream that is not paid
// through never has.
func (d *duplex) waits() <-chan struct{} {
	if d == nil {
		return nil
	}
	return d.some
}

// take accepts what waits, and answers when it is on disk. A voucher that is
// only too high or too low leaves the stream as it is; one that nobody signed, or
// that is none, ends it: who goes on has to show again who he is.
func (d *duplex) take(ctx context.Context) error {
	d.mu.Lock()
	d.waiting, d.taken = d.taken[:0], d.waiting
	gone := d.gone
	d.mu.Unlock()
	signal(d.room)
	if len(d.taken) > 0 {
		if err := d.accept(ctx); err != nil {
			return err
		}
	}
	if errors.Is(gone, wire.ErrMalformed) {
		return errors.Join(gone, d.refuse(gone))
	}
	return gone
}

func (d *duplex) accept(ctx context.Context) error {
	receipt, refused := d.pay(ctx, d.taken)
	clear(d.taken) // of what their messages hold
	if receipt.Outcome != 0 {
		var err error
		if d.receipt, err = wire.AppendReceipt(d.receipt[:0], receipt.State.Accepted); err != nil {
			return err
		}
		if err := d.write(websocket.MessageBinary, d.receipt); err != nil {
			return err
		}
	}
	if refused == nil {
		return nil
	}
	if err := d.refuse(refused); err != nil || !errors.Is(refused, channel.ErrSignature) {
		return err
	}
	return refused
}

func (d *duplex) refuse(err error) error {
	event, err := wire.NewEvent(0, wire.EventProblem, d.refused(err))
	if err != nil {
		return err
	}
	return d.event(event)
}

// close ends the connection: with a word of goodbye where the stream came to its
// end.
func (d *duplex) close(err error) {
	if d.conn == nil {
		return
	}
	signal(d.room)
	if err == nil {
		err = d.conn.Close(websocket.StatusNormalClosure, "")
	}
	if err != nil {
		_ = d.conn.CloseNow() // it may be closed already
	}
}
