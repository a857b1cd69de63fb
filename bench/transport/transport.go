// Package transport measures what a voucher costs on its way, before anybody looks at it: the choice of the duplex
// stream's transport and of its messages' form.
package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"

	"github.com/coder/websocket"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// pipe carries messages both ways.
type pipe interface {
	send(ctx context.Context, message []byte) error
	receive(ctx context.Context) ([]byte, error)
	close() error
}

// form is how vouchers and receipts are written.
type form interface {
	vouchers(message []byte, all []channel.Voucher) ([]byte, error)
	parse(message []byte, waiting []channel.Voucher) ([]channel.Voucher, error)
	receipt(message []byte, accepted uint256.Int) ([]byte, error)
	accepted(message []byte) (uint256.Int, error)
}

var channelID = common.Hash{31: 1}

// packed is the form of the SDK.
type packed struct{}

func (packed) vouchers(message []byte, all []channel.Voucher) (_ []byte, err error) {
	for _, v := range all {
		if message, err = wire.AppendVoucher(message, v); err != nil {
			return nil, err
		}
	}
	return message, nil
}

func (packed) parse(message []byte, waiting []channel.Voucher) ([]channel.Voucher, error) {
	return wire.ParseVouchers(message, channelID, waiting)
}

func (packed) receipt(message []byte, accepted uint256.Int) ([]byte, error) {
	return wire.AppendReceipt(message, accepted)
}

func (packed) accepted(message []byte) (uint256.Int, error) { return wire.ParseReceiptMessage(message) }

// text is what the draft has for requests, without what a stream need not say again.
type text struct{}

type textVoucher struct {
	CumulativeAmount wire.Amount `json:"cumulativeAmount"`
	Signature        wire.Bytes  `json:"signature"`
}

type textReceipt struct {
	AcceptedCumulative wire.Amount `json:"acceptedCumulative"`
}

func (text) vouchers(message []byte, all []channel.Voucher) ([]byte, error) {
	list := make([]textVoucher, 0, len(all))
	for _, v := range all {
		list = append(list, textVoucher{wire.NewAmount(v.Cumulative), v.Signature})
	}
	raw, err := json.Marshal(list)
	return append(message, raw...), err
}

func (text) parse(message []byte, waiting []channel.Voucher) ([]channel.Voucher, error) {
	var list []textVoucher
	err := json.Unmarshal(message, &list)
	for _, v := range list {
		waiting = append(waiting, channel.Voucher{ChannelID: channelID, Cumulative: v.CumulativeAmount.Int, Signature: v.Signature})
	}
	return waiting, err
}

func (text) receipt(message []byte, accepted uint256.Int) ([]byte, error) {
	raw, err := json.Marshal(textReceipt{wire.NewAmount(accepted)})
	return append(message, raw...), err
}

func (text) accepted(message []byte) (uint256.Int, error) {
	var r textReceipt
	err := json.Unmarshal(message, &r)
	return r.AcceptedCumulative.Int, err
}

// socket is a WebSocket.
type socket struct{ *websocket.Conn }

func (s socket) send(ctx context.Context, message []byte) error {
	return s.Write(ctx, websocket.MessageBinary, message)
}

func (s socket) receive(ctx context.Context) ([]byte, error) {
	_, message, err := s.Read(ctx)
	return message, err
}

func (s socket) close() error { return s.CloseNow() }

// body is the two bodies of an HTTP/2 request and its answer, each message after its length.
type body struct {
	in    *bufio.Reader
	out   io.Writer
	flush func() error
	end   func() error
}

func (b body) send(_ context.Context, message []byte) error {
	framed := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(message)), uint32(len(message))), message...)
	if _, err := b.out.Write(framed); err != nil {
		return err
	}
	return b.flush()
}

func (b body) receive(context.Context) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(b.in, size[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(b.in, message)
	return message, err
}

func (b body) close() error { return b.end() }

// answer takes vouchers until the pipe ends, and looks at none of them.
func answer(ctx context.Context, p pipe, f form) {
	var waiting []channel.Voucher
	var out []byte
	for {
		message, err := p.receive(ctx)
		if err != nil {
			return
		}
		if waiting, err = f.parse(message, waiting[:0]); err != nil || len(waiting) == 0 {
			return
		}
		if out, err = f.receipt(out[:0], waiting[len(waiting)-1].Cumulative); err != nil {
			return
		}
		if p.send(ctx, out) != nil {
			return
		}
	}
}

// serve answers over both transports, HTTP/2 without TLS.
func serve() (url string, stop func() error, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	forms := map[string]form{"packed": packed{}, "text": text{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /socket/{form}", func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		answer(context.Background(), socket{conn}, forms[r.PathValue("form")])
	})
	mux.HandleFunc("POST /body/{form}", func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if control.Flush() != nil {
			return
		}
		answer(r.Context(), body{in: bufio.NewReader(r.Body), out: w, flush: control.Flush}, forms[r.PathValue("form")])
	})
	server := &http.Server{Handler: mux, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(listener) }() // ends with Close
	return "http://" + listener.Addr().String(), server.Close, nil
}

func dialSocket(ctx context.Context, url, form string) (pipe, error) {
	conn, _, err := websocket.Dial(ctx, url+"/socket/"+form, nil)
	return socket{conn}, err
}

// dialBody has a connection of its own, as each renter has.
func dialBody(ctx context.Context, url, form string) (pipe, error) {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	reader, writer := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, "POST", url+"/body/"+form, reader)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return body{in: bufio.NewReader(resp.Body), out: writer, flush: func() error { return nil }, end: func() error {
		err := errors.Join(writer.Close(), resp.Body.Close())
		transport.CloseIdleConnections()
		return err
	}}, nil
}
