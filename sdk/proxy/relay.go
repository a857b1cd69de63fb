package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/internal/continuation"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/internal/upstream"
	"github.com/gpupay/gpupay/sdk/route"
)

// Headers of an answer. HeaderCost is a trailer of a stream, and its last line too, a comment without a blank line behind it: official clients
// stumble over a comment that has one.
const (
	HeaderProvider   = "X-Gpupay-Provider"
	HeaderCost       = "X-Gpupay-Cost"
	HeaderBudgetLeft = "X-Gpupay-Budget-Left"
	HeaderAttempts   = "X-Gpupay-Attempts"
)

// maxAnswer bounds what is kept of an answer that is no stream until it is whole, in bytes. A longer one is ended, and paid until then.
const maxAnswer = 32 << 20

// maxHeld bounds the comments that are kept until an answer begins, in bytes: those beyond it are dropped.
const maxHeld = 4 << 10

// writeTimeout bounds one write to a caller that does not read, which waits two seconds longer than was reserved for at the most.
const writeTimeout = time.Minute

// relay passes an answer on: a stream event by event, anything else when it is whole.
func (c *call) relay(a *attempt, res *http.Response) ending {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	verdict := upstream.NewVerdict(kind)
	if kind == "text/event-stream" {
		return c.stream(a, res, verdict)
	}
	if a.resume {
		return ending{failed: true, why: "answered with something else than events"}
	}
	if res.StatusCode < 400 && kind != "application/json" && !strings.HasSuffix(kind, "+json") { // a page of a gateway's, or of who has the domain now
		return ending{failed: true, why: "answered with something else than JSON or events"}
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return c.broken(a, err, "broke off in the middle of its answer")
	}
	if len(text) > maxAnswer {
		return ending{charged: true, large: true, why: "answered with more than " + size(maxAnswer)}
	}
	verdict.Read(text)
	whole := verdict.Whole()
	if res.StatusCode < 400 && !whole {
		return ending{failed: true, why: "reported an error in its answer"}
	}
	a.out = tokens(text)
	end := ending{outcome: route.Done, charged: true}
	c.line.Status = res.StatusCode
	c.answer = func() { c.document(a, res, text) }
	return end
}

// document writes a whole answer, after what it cost is known.
func (c *call) document(a *attempt, res *http.Response, text []byte) {
	c.head(a, res)
	c.w.Header().Set(HeaderCost, c.money(c.cost))
	c.w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	serve.Hurry(c.w)
	c.w.WriteHeader(res.StatusCode)
	_, _ = c.w.Write(text)
}

// head is what stands above an answer.
func (c *call) head(a *attempt, res *http.Response) {
	h := c.w.Header()
	if kind := res.Header.Get("Content-Type"); kind != "" {
		h.Set("Content-Type", kind)
	}
	h.Set("Cache-Control", "no-store")
	h.Set(HeaderProvider, redact.URL(a.choice.Endpoint.ID))
	h.Set(HeaderAttempts, strconv.Itoa(len(c.tried)+1))
	if left, err := c.config.Pool.Left(c.key.Name); err == nil {
		h.Set(HeaderBudgetLeft, c.money(left))
	}
}

// stream passes events on as they come. Until the first one that says something, nothing is sent, so that another provider may answer.
func (c *call) stream(a *attempt, res *http.Response, verdict *upstream.Verdict) ending {
	c.out = serve.NewStream(c.w, writeTimeout)
	out := c.out
	defer context.AfterFunc(a.limit, out.End)() // a caller that does not read holds up no more than it pays for
	if !c.begun {
		if c.said = c.q.notes(); res.StatusCode != http.StatusOK { // it is no answer
			c.said = nil
		}
	}
	var cut continuation.Events
	piece := make([]byte, 32<<10)
	var grace *time.Timer
	for {
		n, failed := res.Body.Read(piece)
		cut.Add(piece[:n])
		for event, ok := cut.Next(); ok; event, ok = cut.Next() {
			if end, over := c.pass(a, res, verdict, event); over {
				return end
			}
		}
		if grace == nil && c.over(a) {
			grace = time.AfterFunc(graceFor, func() { _ = res.Body.Close() })
			defer grace.Stop()
		}
		if cut.Long() {
			if c.over(a) {
				return c.finished(a)
			}
			c.said = nil // what goes on would be paid beside it
			return ending{charged: true, large: true, why: "sent an event of more than " + size(continuation.MaxEvent)}
		}
		if c.begun && out.Flush() != nil {
			return c.left()
		}
		switch {
		case errors.Is(failed, io.EOF):
			return c.streamed(a, res, verdict, out, cut.Rest())
		case failed != nil && c.over(a) && c.r.Context().Err() == nil: // what is missing are figures
			return c.finished(a)
		case failed != nil:
			return c.broken(a, failed, "broke off in the middle of its answer")
		}
	}
}

// pass passes one event on; over: the attempt ends with it.
func (c *call) pass(a *attempt, res *http.Response, verdict *upstream.Verdict, event []byte) (end ending, over bool) {
	verdict.Read(event)
	if verdict.Failed() {
		if c.over(a) {
			return c.finished(a), true
		}
		return ending{failed: true, why: "reported an error in its answer"}, true
	}
	said := continuation.Data(event)
	if len(said) == 0 {
		event = continuation.Comments(event)
		if !c.begun {
			if len(a.held)+len(event) <= maxHeld {
				a.held = append(a.held, event...)
			}
			return ending{}, false
		}
	} else if c.said != nil {
		if a.resume {
			var ok bool
			if event, ok = c.said.Splice(said); !ok {
				return ending{failed: true, why: "answered with something else than events of a chat"}, true
			}
		}
		begun := c.said.Begun()
		if c.said.Hear(continuation.Data(event)); !begun && c.said.Begun() { // the text is its
			c.by = a.choice.Endpoint
		}
	}
	a.count(said, c.config.Now())
	if !c.begun {
		c.begin(a, res)
		event = append(a.held, event...)
	}
	if _, err := c.out.Write(event); err != nil {
		return c.left(), true
	}
	if verdict.Over() {
		if c.out.Flush() != nil {
			return c.left(), true
		}
		closes(res.Body)
		return c.streamed(a, res, verdict, c.out, nil), true
	}
	return ending{}, false
}

// graceFor is how long the figures and the [DONE] behind an answer's end are waited for, which is paid.
const graceFor = 2 * time.Second

// over reports whether all of an answer has said its end: it is whole, whatever is missing or wrong behind that.
func (c *call) over(a *attempt) bool {
	return c.said != nil && c.said.Over() || c.whole.answers() > 0 && len(a.ended) >= c.whole.answers()
}

// finished is the end of a stream that is over, and whose last event is not there.
func (c *call) finished(a *attempt) ending {
	_, _ = c.out.Write([]byte("data: [DONE]\n\n"))
	return c.ended(a)
}

// openFor is how long a provider may keep an answer open that is over, and be paid for it.
const openFor = 100 * time.Millisecond

// closes waits for the end of an answer that is over, so that its connection serves the next request, and ends it where that does not come.
func closes(body io.ReadCloser) {
	timer := time.AfterFunc(openFor, func() { _ = body.Close() })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, body, continuation.MaxEvent)
}

// left is how an attempt ended whose caller does not read, or is gone.
func (c *call) left() ending {
	return ending{outcome: route.Aborted, charged: true, why: "the caller left"}
}

// streamed is the end of a stream: whole, or cut.
func (c *call) streamed(a *attempt, res *http.Response, verdict *upstream.Verdict, out *serve.Stream, rest []byte) ending {
	verdict.Read(rest)
	if !verdict.Whole() {
		if c.over(a) {
			return c.finished(a)
		}
		return ending{failed: true, why: "ended its answer in the middle"}
	}
	if said := continuation.Data(rest); !c.begun {
		if len(said) == 0 {
			return ending{failed: true, why: "answered with nothing"}
		}
		c.begin(a, res)
	}
	if said := continuation.Data(rest); a.resume && len(said) > 0 {
		var ok bool
		if rest, ok = c.said.Splice(said); !ok {
			return ending{failed: true, why: "answered with something else than events of a chat"}
		}
	}
	if rest = bytes.TrimRight(rest, "\r\n"); len(rest) > 0 {
		if _, err := out.Write(append(rest, "\n\n"...)); err != nil {
			return c.left()
		}
	}
	return c.ended(a)
}

// ended is the end of a stream that is whole. What was not known at its head is said behind it.
func (c *call) ended(a *attempt) ending {
	out := c.out
	c.answer = func() {
		if a.resume {
			c.late(out, HeaderProvider, redact.URL(a.choice.Endpoint.ID))
			c.late(out, HeaderAttempts, strconv.Itoa(len(c.tried)+1))
		}
		cost := c.money(c.cost)
		_, _ = fmt.Fprintf(out, ": %s %s\n", HeaderCost, cost)
		c.w.Header().Set(HeaderCost, cost)
		_ = out.Flush()
		serve.Hurry(c.w)
	}
	return ending{outcome: route.Done, charged: true}
}

// late says behind a stream what its head has said otherwise.
func (c *call) late(out *serve.Stream, header, value string) {
	_, _ = fmt.Fprintf(out, ": %s %s\n", header, value)
	c.w.Header().Set(http.TrailerPrefix+header, value)
}

// begin is the moment from which the caller has something of this answer.
func (c *call) begin(a *attempt, res *http.Response) {
	c.head(a, res)
	c.w.Header().Set("Trailer", HeaderCost)
	c.w.WriteHeader(res.StatusCode)
	c.begun, c.by, c.line.Status = true, a.choice.Endpoint, res.StatusCode
}

// count measures an event.
func (a *attempt) count(said []byte, now time.Time) {
	s := read(said)
	for _, choice := range s.Choices {
		if continuation.Ends(choice.Finish) {
			if a.ended == nil {
				a.ended = make(map[int]bool)
			}
			a.ended[choice.Index] = true
		}
	}
	n := s.tokens()
	if a.out += n; n > 0 && a.first.IsZero() {
		a.first = now
	}
}

// breakOff tells a caller whose answer has begun that it will not end, and why nobody goes on with it, if somebody was looked for.
func (c *call) breakOff(failed *APIError) {
	if c.r.Context().Err() != nil { // it left
		return
	}
	var why []string
	for _, f := range c.tried {
		why = append(why, "provider "+redact.URL(f.endpoint)+" "+f.why)
	}
	words, advice := strings.Join(why, "; ")+".", "Send the request again for another one."
	switch last := c.tried[len(c.tried)-1]; {
	case last.large:
		advice = tooLarge
	case last.cut != nil:
		c.q = c.whole // which would be sent again
		advice, _ = c.afterCut(last.cut)
	}
	if failed != nil {
		words += " It is not gone on with elsewhere: " + failed.Message
		if failed.Code != "" { // it says what to do
			advice = ""
		}
	}
	e := failedAt("%s", strings.TrimSpace(fmt.Sprintf("The answer is not whole: %s %s %s", words, c.charged(), advice)))
	e.Code = "answer_broken"
	_, _ = c.out.Write(e.event(c.q.path))
	c.w.Header().Set(HeaderCost, c.money(c.cost))
	c.w.Header().Set(http.TrailerPrefix+HeaderAttempts, strconv.Itoa(len(c.tried)))
	_ = c.out.Flush()
	serve.Hurry(c.w)
	c.line.Error = e.Code
}
