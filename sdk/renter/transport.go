package renter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wire"
)

// ErrShare says that requests cannot be sent on a rental.
var ErrShare = errors.New("this rental takes no requests")

// maxReplay bounds the body of a request, which is kept to be sent again after a payment, in bytes.
const maxReplay = 32 << 20

// payPatience is how long a request that waits for a payment is sent again.
const payPatience = time.Minute

// Endpoint is the URL under which a lease that shares GPUs takes requests: the base URL of a client of OpenAI's API is that with "/v1".
func (l *Rental) Endpoint() (*url.URL, error) {
	to, _, err := l.access()
	return to, err
}

// access is where requests go, and the lease's token.
func (l *Rental) access() (to *url.URL, token string, err error) {
	row := l.lease.View().Row
	var a wire.SharedAccess
	switch {
	case !row.Options.Share:
		return nil, "", fmt.Errorf("channel %s: %w: it was not rented with Options.Share", l.ID(), ErrShare)
	case len(row.Access) == 0:
		return nil, "", fmt.Errorf("channel %s: %w: its lease is not attached to: have Run run", l.ID(), ErrShare)
	case json.Unmarshal(row.Access, &a) != nil || a.Kind != wire.KindOpenAI || a.Token == "":
		return nil, "", fmt.Errorf("channel %s: %w: the provider does not say how it takes them", l.ID(), ErrShare)
	}
	if a.URL == "" {
		a.URL = row.URL
	}
	if to, err = url.Parse(a.URL); err != nil || to.Host == "" {
		return nil, "", fmt.Errorf("channel %s: %w: the provider does not say where it takes them", l.ID(), ErrShare)
	}
	return to, a.Token, nil
}

// Transport sends requests on a lease that shares GPUs: it adds the lease's token, numbers each request and measures it, and where one is
// refused until more is paid, has that paid by the rental's Run, which must run, and sends it again. base is http.DefaultTransport if nil.
// Requests to any other host than the Endpoint's are refused: they would show it the token.
func (l *Rental) Transport(base http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return &transport{l, base}
}

type transport struct {
	rental *Rental
	base   http.RoundTripper
}

// RoundTrip sends one request.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	to, token, err := t.rental.access()
	if err == nil && (r.URL.Host != to.Host || r.URL.Scheme != to.Scheme) {
		err = fmt.Errorf("channel %s: a request is for %s, and the lease's token is for %s alone", t.rental.ID(), r.URL.Host, to.Host)
	}
	body, failed := kept(r)
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), payPatience)
	defer cancel()
	for {
		res, err := t.send(r, body, token)
		if err != nil || res.StatusCode != http.StatusPaymentRequired || !isRefusal(res) {
			return res, err
		}
		text, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		_ = res.Body.Close()
		var problem wire.Problem
		if json.Unmarshal(text, &problem) != nil || problem.Needs == nil || !t.paid(ctx, *problem.Needs) {
			res.Body = io.NopCloser(bytes.NewReader(text))
			return res, nil
		}
	}
}

// paid has what is needed be paid, and reports whether the request is worth sending again.
func (t *transport) paid(ctx context.Context, needs wire.NeedVoucher) bool {
	requests := t.rental.lease.Requests
	select {
	case requests.Hurry <- struct{}{}:
	default: // it was said
	}
	pause := time.NewTimer(200 * time.Millisecond)
	defer pause.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-pause.C:
	}
	now := t.rental.lease.View()
	if now.Row.Ended != "" || now.Row.Phase != rental.PhaseRunning {
		return false
	}
	return !needs.RequiredCumulative.Gt(&now.Row.Deposit) || needs.AcceptedCumulative.Lt(&now.Row.Deposit)
}

// send sends a request once, under a number of its own.
func (t *transport) send(r *http.Request, body []byte, token string) (*http.Response, error) {
	requests := t.rental.lease.Requests
	id, err := requests.Begin(r.Context())
	if err != nil {
		return nil, err
	}
	out := r.Clone(r.Context())
	out.Header.Set("Authorization", "Bearer "+token)
	out.Header.Set(wire.RequestHeader, strconv.FormatUint(id, 10))
	if body != nil {
		out.Body, out.GetBody, out.ContentLength = io.NopCloser(bytes.NewReader(body)), nil, int64(len(body))
	}
	res, err := t.base.RoundTrip(out)
	if err != nil {
		how := rental.Broken
		if aborted(r.Context(), err) {
			how = rental.Done
		}
		requests.End(id, how)
		return nil, err
	}
	if refused := res.StatusCode >= 400 && isRefusal(res); refused || res.StatusCode >= 500 { // it was not served, or failed
		how := rental.Errored
		if res.StatusCode == http.StatusServiceUnavailable { // so the provider answers what it cuts off before its answer has begun
			how = rental.Broken
		}
		requests.End(id, how)
		return res, nil
	}
	m := &measured{ReadCloser: res.Body, ctx: r.Context()}
	end := func(how rental.Ending) func() { return sync.OnceFunc(func() { requests.End(id, how) }) }
	m.end, m.fail = end(rental.Done), end(rental.Broken)
	m.stop = context.AfterFunc(r.Context(), m.end)
	res.Body = m
	return res, nil
}

// Failed notes that a request which a Transport has sent was answered with a failure that its status does not say, such as an error within
// the answer: it costs nothing, and a record that bills it counts against what a lease's requests may come to more, and is not paid where it
// goes beyond. request is the number in its header wire.RequestHeader, as the Transport's base sent it.
func (l *Rental) Failed(request uint64) { l.lease.Requests.Fail(request) }

// isRefusal reports whether an answer is the provider's own, which took no slot: what it passes on of its inference server, a problem of
// that one's too, names the request.
func isRefusal(res *http.Response) bool {
	return wire.IsProblem(res) && res.Header.Get(wire.RequestHeader) == ""
}

// aborted reports whether a request was ended by its client: that gave up, or has a timeout of its own, which a base Transport may have.
// An http.Client whose Timeout is over may say so a moment before the context does.
func aborted(ctx context.Context, err error) bool {
	var timeout net.Error
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline) || errors.As(err, &timeout) && timeout.Timeout()
}

// measured is an answer's body, whose end is that of its request, or its context's if that is first: nobody need read for it. One that
// breaks off by no doing of ours has failed.
type measured struct {
	io.ReadCloser
	ctx       context.Context
	end, fail func()
	stop      func() bool // takes end off ctx
}

func (m *measured) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	switch {
	case err == io.EOF || err != nil && aborted(m.ctx, err):
		m.end()
	case err != nil:
		m.fail()
	}
	if err != nil {
		m.stop()
	}
	return n, err
}

// Close before the end aborts the request.
func (m *measured) Close() error {
	err := m.ReadCloser.Close()
	m.end()
	m.stop()
	return err
}

// kept is a request's body; nil if it has none.
func kept(r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, maxReplay+1))
	if err == nil && len(body) > maxReplay {
		err = fmt.Errorf("the request's body has more than %d bytes", maxReplay)
	}
	return body, err
}
