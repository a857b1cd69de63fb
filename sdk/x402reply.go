package sdk

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

var errReplyTooLong = errors.New("the answer is longer than ProviderConfig.X402.MaxReply")

// keptReply takes what a metered handler answers: it keeps it, for a client that
// loses the answer, and where the route is streamed passes it on at once.
type keptReply struct {
	limit  int
	to     http.ResponseWriter // nil: the answer is only kept
	stream *serve.Stream       // writes to it
	header http.Header
	status int
	body   bytes.Buffer
	over   bool // longer than what is kept
	lost   bool // the client was gone
}

func (o *keptReply) Header() http.Header { return o.header }

func (o *keptReply) WriteHeader(status int) {
	if o.status != 0 || status < 200 {
		return
	}
	o.status = status
	if o.to != nil {
		o.to.WriteHeader(status)
	}
}

func (o *keptReply) Write(p []byte) (int, error) {
	o.WriteHeader(http.StatusOK)
	if o.over || o.body.Len()+len(p) > o.limit {
		o.over = true
		if o.to == nil {
			return 0, errReplyTooLong
		}
	} else {
		_, _ = o.body.Write(p)
	}
	if o.to == nil {
		return len(p), nil
	}
	n, err := o.stream.Write(p)
	if err == nil {
		err = o.FlushError()
	}
	o.lost = o.lost || err != nil
	return n, err
}

// FlushError sends what was written, where the route is streamed.
func (o *keptReply) FlushError() error {
	if o.to == nil {
		return nil
	}
	return o.stream.Flush()
}

// Flush is FlushError for handlers that look for an http.Flusher.
func (o *keptReply) Flush() { _ = o.FlushError() }

// fail replaces what the handler wrote by a problem, if the client has not
// begun to read.
func (o *keptReply) fail(problem *wire.Problem) {
	if o.to != nil && o.status != 0 {
		o.lost = true
		return
	}
	text, _ := json.Marshal(problem) // strings and a number
	o.status = 0
	o.body.Reset()
	o.over = false
	clear(o.header)
	o.header.Set("Content-Type", "application/problem+json")
	o.WriteHeader(problem.Status)
	_, _ = o.Write(text)
}

// keep puts the copy of the answer into a note. There is none of an answer that
// was too long.
func (o *keptReply) keep(note *x402Note) error {
	if o.over && o.to == nil {
		o.fail(wire.Internal.With("%v; the time that the handler ran was charged", errReplyTooLong))
	}
	o.WriteHeader(http.StatusOK)
	if o.over {
		return nil
	}
	header, err := json.Marshal(o.header)
	note.Status, note.Header, note.Body = o.status, string(header), o.body.Bytes()
	return err
}
