package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/serve"
)

// state is what is known of a call while it is forwarded.
type state struct {
	ctx     context.Context
	cancel  context.CancelFunc
	out     *serve.Stream
	header  *time.Timer
	idle    *time.Timer
	judge   *judge
	answer  int64 // the length that the answer says it has; -1 if it says none
	handed  bool  // whether an answer was begun
	arrived int64 // bytes of the answer's body that were read
	last    bool  // whether what was read is the whole of it

	mu        sync.Mutex // of what timers look at, and what follows
	connected bool
	writing   time.Time     // since when the client is waited for; zero: it is not
	waited    time.Duration // for the client so far
	written   int64
	lastWrite time.Time
	result    Result // Reason is set by whoever comes first
}

type callKey struct{}

func of(ctx context.Context) *Call { return ctx.Value(callKey{}).(*Call) }

// Forward passes the request on and the answer back. It calls ended once, when it is known how that ended, and panics with
// http.ErrAbortHandler after it where the client must see that its answer is cut. The call is released.
//
// Whoever ends the request's context itself gives a cause, by which it is told from a client that has left. A server's BaseContext that is
// cancelled without one looks like all clients leaving: close the Proxy before.
func (c *Call) Forward(ended func(Result)) {
	p := c.proxy
	c.answer, c.result.Accepted = -1, p.config.Now()
	defer c.Release()
	defer func() {
		broken := recover()
		ended(c.finish())
		if broken != nil {
			panic(broken)
		}
	}()
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	c.cancel = cancel
	c.ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { c.connect() }})
	c.out = serve.NewStream(c.w, p.config.WriteTimeout)

	c.header = time.AfterFunc(p.config.HeaderTimeout, func() { c.cut(Failed, HeaderTimeout) })
	c.idle = time.AfterFunc(p.config.IdleTimeout, func() { c.cut(Failed, IdleTimeout) })
	c.idle.Stop()
	total := time.AfterFunc(p.config.TotalTimeout, c.late)
	for _, timer := range []*time.Timer{c.header, c.idle, total} {
		defer timer.Stop()
	}
	defer context.AfterFunc(c.r.Context(), func() { c.cut(Aborted, ClientGone) })()
	defer context.AfterFunc(p.ctx, func() { c.cut(Failed, Stopped) })()

	p.reverse.ServeHTTP(client{c}, c.r.WithContext(context.WithValue(ctx, callKey{}, c)))
	serve.Hurry(c.w)
}

// end notes how the call ended, unless that is known. A client that has left comes before what that has broken.
func (c *Call) end(outcome Outcome, reason Reason) {
	if gone := c.r.Context(); gone.Err() != nil {
		if outcome, reason = Aborted, ClientGone; context.Cause(gone) != context.Canceled {
			outcome, reason = Failed, Stopped
		}
	}
	now := c.proxy.config.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.result.Reason == "" {
		c.result.Outcome, c.result.Reason, c.result.Last = outcome, reason, now
	}
}

// cut ends the call, and what goes on of it: a write to a client that does not read, too.
func (c *Call) cut(outcome Outcome, reason Reason) {
	c.end(outcome, reason)
	c.cancel()
	c.out.End()
}

// late is the end of TotalTimeout. A client for whom the answer waited most of the time would otherwise have it for nothing.
func (c *Call) late() {
	c.mu.Lock()
	waited := c.waited
	if !c.writing.IsZero() {
		waited += time.Since(c.writing)
	}
	c.mu.Unlock()
	if waited > c.proxy.config.TotalTimeout/2 {
		c.cut(Aborted, ClientSlow)
		return
	}
	c.cut(Failed, TotalTimeout)
}

// finish says how the call ended.
func (c *Call) finish() Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.result
	r.Bytes = c.written
	whole := c.handed && c.written == c.arrived && (c.last || c.written == c.answer)
	switch {
	case r.Reason == "" && !c.handed: // a panic of others
		r.Outcome, r.Reason, r.Last = Failed, NoAnswer, c.proxy.config.Now()
	case r.Reason == ErrorEvent || r.Reason == ServerError || r.Reason == BadAnswer || r.Reason == Unfinished:
	case r.Reason == "" || whole: // who leaves after the end, or breaks off after it, has changed nothing
		r.Reason = ""
		r.Outcome = Completed
		if r.Status >= 400 {
			r.Outcome = Refused
		}
		r.Last = c.sent()
	}
	return *r
}

// sent is when the last byte was written; mu is held.
func (c *Call) sent() time.Time {
	if c.written == 0 {
		return c.proxy.config.Now()
	}
	return c.lastWrite
}

func (c *Call) connect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connected = true
}

// rewrite makes the upstream's request.
func (c *Call) rewrite(r *httputil.ProxyRequest) {
	p := c.proxy
	r.Out.URL = &url.URL{Scheme: p.target.Scheme, Host: p.target.Host, Path: p.target.Path + c.route.Path, RawQuery: c.route.Query}
	r.Out.Host = ""
	r.Out.Header = p.request(r.Out.Header)
	r.Out.Trailer, r.Out.TransferEncoding = nil, nil
	r.Out.Body, r.Out.ContentLength, r.Out.GetBody = http.NoBody, int64(len(c.body)), nil
	if len(c.body) > 0 {
		r.Out.Body = io.NopCloser(bytes.NewReader(c.body))
	}
}

// sender sends a request without the trace of httputil.ReverseProxy, by which headers of an interim answer would get to the client
// as they are, and those that are set already would be lost.
type sender struct{ *Proxy }

func (p sender) RoundTrip(r *http.Request) (*http.Response, error) {
	c := of(r.Context())
	res, err := p.transport.RoundTrip(r.WithContext(c.ctx))
	c.header.Stop()
	if err != nil {
		reason := Unreachable
		c.mu.Lock()
		if c.connected {
			reason = NoAnswer
		}
		c.mu.Unlock()
		c.end(Failed, reason)
		p.suspect()
		return nil, errBroken // what err says may quote what the upstream sent
	}
	p.hear()
	res.Request = r
	return res, nil
}

// answered judges the beginning of an answer.
func (c *Call) answered(res *http.Response) error {
	c.mu.Lock()
	c.result.Status = res.StatusCode
	c.mu.Unlock()
	encoding := res.Header.Get("Content-Encoding")
	switch status := res.StatusCode; {
	case status < 200, status >= 300 && status < 400, status == http.StatusUnauthorized, status == http.StatusPaymentRequired,
		status == http.StatusProxyAuthRequired, encoding != "" && encoding != "identity":
		c.end(Failed, BadAnswer)
		return errors.New(string(BadAnswer))
	case status >= 500, status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests:
		c.end(Failed, ServerError)
	case status < 300 && status != http.StatusNoContent && c.route.judged:
		if c.judge = newJudge(res.Header.Get("Content-Type")); c.judge != nil {
			c.judge.any = c.route.any && (res.ContentLength >= 0 || len(res.TransferEncoding) > 0)
		}
	}
	answer(res.Header)
	c.handed, c.answer = true, res.ContentLength
	res.Body = &body{c, res, res.Body}
	return nil
}

// unanswered answers in the upstream's place.
func (c *Call) unanswered() {
	c.mu.Lock()
	reason := c.result.Reason
	c.mu.Unlock()
	status := http.StatusBadGateway
	switch reason {
	case HeaderTimeout, TotalTimeout:
		status = http.StatusGatewayTimeout
	case Stopped:
		status = http.StatusServiceUnavailable
	}
	refuse(c.w, c.route, status, reason)
}

// body is an answer's body as it is read.
type body struct {
	call *Call
	res  *http.Response
	from io.ReadCloser
}

var errBroken = errors.New(string(Broken))

func (b *body) Read(p []byte) (int, error) {
	c := b.call
	c.idle.Reset(c.proxy.config.IdleTimeout)
	n, err := b.from.Read(p)
	c.idle.Stop()
	if n > 0 {
		c.proxy.hear()
		c.arrived += int64(n)
		if c.judge != nil {
			c.judge.read(p[:n])
		}
	}
	if err == io.EOF && c.judge != nil {
		c.judge.close()
	}
	switch j := c.judge; {
	case j != nil && j.failed:
		c.end(Failed, ErrorEvent)
	case j != nil && j.last:
		c.last = true
	case err == io.EOF && j != nil && j.unfinished():
		c.end(Failed, Unfinished)
	}
	if err != nil && err != io.EOF {
		c.end(Failed, Broken)
		err = errBroken
	}
	return n, err
}

// Close keeps trailers here.
func (b *body) Close() error {
	err := b.from.Close()
	b.res.Trailer = nil
	return err
}

// client writes to the client.
type client struct{ call *Call }

func (w client) Header() http.Header { return w.call.w.Header() }

func (w client) WriteHeader(status int) { w.call.w.WriteHeader(status) }

func (w client) Write(p []byte) (n int, err error) {
	err = w.call.timed(func() error { n, err = w.call.out.Write(p); return err })
	now := w.call.proxy.config.Now()
	w.call.mu.Lock()
	defer w.call.mu.Unlock()
	if n > 0 {
		w.call.written += int64(n)
		w.call.lastWrite = now
		if w.call.result.First.IsZero() {
			w.call.result.First = now
		}
	}
	return n, err
}

func (w client) FlushError() error { return w.call.timed(w.call.out.Flush) }

// timed writes, and counts the time that the client is waited for.
func (c *Call) timed(write func() error) error {
	began := time.Now()
	c.mu.Lock()
	c.writing = began
	c.mu.Unlock()
	err := write()
	c.mu.Lock()
	c.writing = time.Time{}
	c.waited += time.Since(began)
	c.mu.Unlock()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.cut(Aborted, ClientSlow)
		c.mu.Lock()
		if c.result.Reason == ClientGone { // net/http ends the context where a write fails
			c.result.Reason = ClientSlow
		}
		c.mu.Unlock()
	} else if err != nil && !errors.Is(err, http.ErrNotSupported) {
		c.cut(Aborted, ClientGone)
	}
	return err
}
