package x402client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/reach"
	"github.com/gpupay/gpupay/sdk/x402"
)

const (
	// maxReplayed bounds a request's body without GetBody: it is held in memory to be sent again.
	maxReplayed = 4 << 20
	// maxRefusal bounds what is read of a 402's body, so that its connection can be used again.
	maxRefusal = 64 << 10
)

// request is a request that can be sent more than once.
type request struct {
	req  *http.Request
	body func() (io.ReadCloser, error) // nil: there is none
	key  string                        // says that the payment was sent before, where it is sent again; empty: none is sent
}

// newRequest takes a request over and with it the duty to close its body.
func newRequest(req *http.Request) (*request, error) {
	a := &request{req: req}
	if req.Body == nil || req.Body == http.NoBody {
		return a, a.unpaid()
	}
	defer req.Body.Close()
	if a.body = req.GetBody; a.body == nil {
		body, err := io.ReadAll(io.LimitReader(req.Body, maxReplayed+1))
		if err != nil {
			return nil, err
		}
		if len(body) > maxReplayed {
			return nil, fmt.Errorf("x402: a request's body of more than %d bytes is sent twice: set GetBody", maxReplayed)
		}
		a.body = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	return a, a.unpaid()
}

func (a *request) unpaid() error {
	if a.req.Header.Get(x402.HeaderSignature) != "" {
		return fmt.Errorf("x402: the request carries %s already: this client makes it", x402.HeaderSignature)
	}
	return nil
}

// send sends the request with a payment, or without one if that is empty.
func (a *request) send(transport http.RoundTripper, payment string) (*http.Response, error) {
	req := a.req.Clone(a.req.Context())
	if a.body != nil {
		body, err := a.body()
		if err != nil {
			return nil, err
		}
		req.Body = body
	}
	if payment != "" {
		req.Header.Set(x402.HeaderSignature, payment)
		if a.key != "" && req.Header.Get(x402.HeaderIdempotencyKey) == "" {
			req.Header.Set(x402.HeaderIdempotencyKey, a.key)
		}
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, reach.Explain(err)
	}
	resp.Request = req // says whether it was paid, whatever transport this is
	return resp, nil
}

// ask sends the request and waits so long for an answer of which the header is all that is read.
func (a *request) ask(transport http.RoundTripper, payment string, within time.Duration) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(a.req.Context(), within)
	defer cancel()
	limited := request{req: a.req.WithContext(ctx), body: a.body, key: a.key}
	resp, err := limited.send(transport, payment)
	if err != nil {
		if ctx.Err() != nil && a.req.Context().Err() == nil {
			err = fmt.Errorf("no answer within %s: %w", within, err)
		}
		return nil, err
	}
	drainBody(resp)
	return resp, nil
}

// idempotent reports whether sending the request twice does what once does.
func (a *request) idempotent() bool {
	switch a.req.Method {
	case http.MethodGet, "", http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// drainTimeout bounds how long the rest of an answer is waited for that nobody reads.
// The channel's turn may be held meanwhile.
const drainTimeout = time.Second

// drainBody ends an answer that nobody will read. What of it is there is read, so that
// its connection can be used again; one that stalls is cut.
func drainBody(resp *http.Response) {
	stalled := time.AfterFunc(drainTimeout, func() { _ = resp.Body.Close() })
	defer stalled.Stop()
	_, _ = io.CopyN(io.Discard, resp.Body, maxRefusal)
	_ = resp.Body.Close()
}

// required reads the offers of a 402; nil if the answer is something else, and is the caller's then.
func required(resp *http.Response) (*x402.PaymentRequired, error) {
	if resp.StatusCode != http.StatusPaymentRequired {
		return nil, nil
	}
	p, err := x402.ParsePaymentRequired(resp.Header)
	if errors.Is(err, x402.ErrNone) {
		return nil, nil
	}
	drainBody(resp)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", resp.Request.URL.Host, ErrNotOffered, err)
	}
	return &p, nil
}

// lostTries is how often a payment is sent again, unchanged, when the connection
// broke before the answer began; lostPause lies before each try.
const (
	lostTries = 2
	lostPause = 200 * time.Millisecond
)

// deliver sends the request with its payment. A connection that breaks leaves open whether the server served: the same
// payment again can cost nothing more, and one of our providers answers it with what it had answered. It is sent again
// where the request may be repeated. lost says that it was sent more than once, by us or, as transports do, below us.
func (b *payment) deliver(ctx context.Context, payment string) (resp *http.Response, lost bool, err error) {
	var sent atomic.Int32
	trace := httptrace.WithClientTrace(b.req.Context(), &httptrace.ClientTrace{WroteHeaders: func() { sent.Add(1) }})
	a := request{req: b.req.WithContext(trace), body: b.body, key: b.key}
	for try := 0; ; try++ {
		if resp, err = a.send(b.x.options.Transport, payment); err == nil {
			return resp, try > 0 || sent.Load() > 1, nil
		}
		if try == lostTries || !b.idempotent() || ctx.Err() != nil {
			return nil, true, fmt.Errorf("%w: %w", peer.ErrUnreachable, err)
		}
		if err := chain.Pause(ctx, lostPause); err != nil {
			return nil, true, err
		}
	}
}
