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
	if res.StatusCode < 400 && kind != "application/json" && !strings.HasSuffix(kind, "+json") { // a page of a gateway's, or of who has the domain now
		return ending{failed: true, why: "answered with something else than JSON or events"}
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return c.broken(a, "broke off in the middle of its answer")
	}
	if len(text) > maxAnswer {
		return ending{charged: true, why: "answered with more than " + size(maxAnswer)}
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
	var held []byte                             // comments before the first event
	var cut events
	piece := make([]byte, 32<<10)
	for {
		n, failed := res.Body.Read(piece)
		cut.add(piece[:n])
		for event, ok := cut.next(); ok; event, ok = cut.next() {
			verdict.Read(event)
			if verdict.Failed() {
				return ending{failed: true, why: "reported an error in its answer"}
			}
			said := data(event)
			if len(said) == 0 {
				event = silent(event)
				if !c.begun {
					if len(held)+len(event) <= maxHeld {
						held = append(held, event...)
					}
					continue
				}
			}
			a.count(said, c.config.Now())
			if !c.begun {
				c.begin(a, res)
				event = append(held, event...)
			}
			if _, err := out.Write(event); err != nil {
				return c.left()
			}
			if verdict.Over() {
				if out.Flush() != nil {
					return c.left()
				}
				closes(res.Body)
				return c.streamed(a, res, verdict, out, nil)
			}
		}
		if cut.long() {
			return ending{charged: true, why: "sent an event of more than " + size(maxEvent)}
		}
		if c.begun && out.Flush() != nil {
			return c.left()
		}
		switch {
		case errors.Is(failed, io.EOF):
			return c.streamed(a, res, verdict, out, cut.rest())
		case failed != nil:
			return c.broken(a, "broke off in the middle of its answer")
		}
	}
}

// openFor is how long a provider may keep an answer open that is over, and be paid for it.
const openFor = 100 * time.Millisecond

// closes waits for the end of an answer that is over, so that its connection serves the next request, and ends it where that does not come.
func closes(body io.ReadCloser) {
	timer := time.AfterFunc(openFor, func() { _ = body.Close() })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, body, maxEvent)
}

// left is how an attempt ended whose caller does not read, or is gone.
func (c *call) left() ending {
	return ending{outcome: route.Aborted, charged: true, why: "the caller left"}
}

// streamed is the end of a stream: whole, or cut.
func (c *call) streamed(a *attempt, res *http.Response, verdict *upstream.Verdict, out *serve.Stream, rest []byte) ending {
	verdict.Read(rest)
	if !verdict.Whole() {
		return ending{failed: true, why: "ended its answer in the middle"}
	}
	if said := data(rest); !c.begun {
		if len(said) == 0 {
			return ending{failed: true, why: "answered with nothing"}
		}
		c.begin(a, res)
	}
	if rest = bytes.TrimRight(rest, "\r\n"); len(rest) > 0 {
		if _, err := out.Write(append(rest, "\n\n"...)); err != nil {
			return c.left()
		}
	}
	c.answer = func() {
		cost := c.money(c.cost)
		_, _ = fmt.Fprintf(out, ": %s %s\n", HeaderCost, cost)
		c.w.Header().Set(HeaderCost, cost)
		_ = out.Flush()
		serve.Hurry(c.w)
	}
	return ending{outcome: route.Done, charged: true}
}

// begin is the moment from which the caller has something of this answer.
func (c *call) begin(a *attempt, res *http.Response) {
	c.head(a, res)
	c.w.Header().Set("Trailer", HeaderCost)
	c.w.WriteHeader(res.StatusCode)
	c.begun, c.line.Status = true, res.StatusCode
}

// count measures an event.
func (a *attempt) count(said []byte, now time.Time) {
	n := tokens(said)
	if a.out += n; n > 0 && a.first.IsZero() {
		a.first = now
	}
}

// breakOff tells a caller whose answer has begun that it will not end.
func (c *call) breakOff(a *attempt, end ending) {
	advice := "Send the request again for another one."
	if end.outcome == route.Cut {
		advice, _ = c.afterCut(a.choice)
	}
	e := failedAt("The answer is not whole: provider %s %s. %s %s", redact.URL(a.choice.Endpoint.ID), end.why, c.charged(), advice)
	e.Code = "answer_broken"
	out := c.out
	_, _ = out.Write(e.event(c.q.path))
	c.w.Header().Set(HeaderCost, c.money(c.cost))
	_ = out.Flush()
	serve.Hurry(c.w)
	c.line.Error = e.Code
}
