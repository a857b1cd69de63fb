package main

import (
	"bytes"
	"context"
	"io"
	"net/http"

	"github.com/coder/websocket"
	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/wire"
)

// duplex forwards a stream through which vouchers go. Where it ends on one side
// it ends on the other, without a goodbye.
func (w *witness) duplex(rw http.ResponseWriter, r *http.Request, target string) {
	cred, err := wire.ParseCredential(r.Header)
	if err != nil {
		panic(http.ErrAbortHandler) // no program of ours asks like that
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	provider, resp, err := websocket.Dial(ctx, target+r.URL.RequestURI(), &websocket.DialOptions{HTTPHeader: http.Header{
		"Authorization": r.Header["Authorization"], "Last-Event-Id": r.Header["Last-Event-Id"]}})
	if err != nil && resp != nil {
		rw.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		rw.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(rw, resp.Body)
		return
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer provider.CloseNow()
	id := cred.Payload.ChannelID
	if cred.Payload.CumulativeAmount != nil {
		w.acknowledged(id, cred.Payload.CumulativeAmount.Int)
	}
	renter, err := websocket.Accept(rw, r, nil)
	if err != nil {
		return
	}
	defer renter.CloseNow()
	go func() {
		defer cancel()
		forward(ctx, provider, renter, func(message []byte) { w.paid(id, message) })
	}()
	forward(ctx, renter, provider, func(message []byte) { w.told(id, message) })
}

// forward notes each message before it goes on.
func forward(ctx context.Context, to, from *websocket.Conn, note func([]byte)) {
	from.SetReadLimit(wire.MaxEvent)
	for {
		kind, message, err := from.Read(ctx)
		if err != nil {
			return
		}
		note(message)
		if to.Write(ctx, kind, message) != nil {
			return
		}
	}
}

// paid is a message of a renter.
func (w *witness) paid(id common.Hash, message []byte) {
	vouchers, err := wire.ParseVouchers(message, id, nil)
	if err != nil {
		w.say("channel %s: a renter's message: %v", id, err)
	}
	for _, v := range vouchers {
		w.left(id, v.Cumulative)
	}
}

// told is a message of a provider.
func (w *witness) told(id common.Hash, message []byte) {
	if accepted, err := wire.ParseReceiptMessage(message); err == nil {
		w.acknowledged(id, accepted)
		return
	}
	e, err := wire.NewEvents(bytes.NewReader(message)).Next()
	if err == nil && e.Name == wire.EventUsage {
		w.showed(e.Data)
	}
}
