package x402server

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

var errReplyTooLong = errors.New("the answer is longer than provider.Config.X402.MaxReply")

// Recorder takes what a metered handler answers: it keeps it, for a client that
// loses the answer, and where the route is streamed passes it on at once.
type Recorder struct {
	limit  int
	to     http.ResponseWriter // nil: the answer is only kept
	stream *serve.Stream       // writes to it
	header http.Header
	status int
	body   bytes.Buffer
	over   bool // longer than what is kept
	lost   bool // the client was gone
}

// NewRecorder keeps an answer of at most limit bytes.
func NewRecorder(limit int) *Recorder { return &Recorder{limit: limit, header: make(http.Header)} }

// PassOn has the answer written to the client too, as it is written by the handler; each piece within a timeout.
func (o *Recorder) PassOn(w http.ResponseWriter, timeout time.Duration) {
	o.to, o.header, o.stream = w, w.Header(), serve.NewStream(w, timeout)
}

// Passed reports whether a client was written to.
func (o *Recorder) Passed() bool { return o.to != nil }

// Lost reports whether a client that was written to was gone.
func (o *Recorder) Lost() bool { return o.lost }

// End ends the writing to a client that does not read.
func (o *Recorder) End() { o.stream.End() }

func (o *Recorder) Header() http.Header { return o.header }

func (o *Recorder) WriteHeader(status int) {
	if o.status != 0 || status < 200 {
		return
	}
	o.status = status
	if o.to != nil {
		o.to.WriteHeader(status)
	}
}

func (o *Recorder) Write(p []byte) (int, error) {
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
func (o *Recorder) FlushError() error {
	if o.to == nil {
		return nil
	}
	return o.stream.Flush()
}

// Flush is FlushError for handlers that look for an http.Flusher.
func (o *Recorder) Flush() { _ = o.FlushError() }

// Fail replaces what the handler wrote by a problem, if the client has not begun to read.
func (o *Recorder) Fail(problem *wire.Problem) {
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

// Keep puts the copy of the answer into an entry. There is none of an answer that was too long.
func (o *Recorder) Keep(e *Entry) error {
	if o.over && o.to == nil {
		o.Fail(wire.Internal.With("%v; the time that the handler ran was charged", errReplyTooLong))
	}
	o.WriteHeader(http.StatusOK)
	if o.over {
		return nil
	}
	header, err := json.Marshal(o.header)
	e.Status, e.Header, e.Body = o.status, string(header), o.body.Bytes()
	return err
}
