package upstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/serve"
)

// A Call is a request that was taken in. It is either forwarded or released.
type Call struct {
	proxy *Proxy
	w     http.ResponseWriter
	r     *http.Request
	route Route
	from  string // who sent it
	body  []byte
	held  int64 // of the memory for bodies

	state
}

// Accept takes a request in: it finds its route and reads its body. from is who sent it, and gets no more of the memory for bodies than an
// eighth, or one body. Where it returns no Call it has answered, and the Result says why.
func (p *Proxy) Accept(w http.ResponseWriter, r *http.Request, from string) (*Call, Result) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(p.config.BodyTimeout))
	route, ok := p.routes.match(r)
	if !ok { // net/http reads a body that was not read, so that the connection can be used again
		refuse(w, Route{}, http.StatusNotFound, NotServed)
		return nil, Result{Outcome: Rejected, Reason: NotServed}
	}
	c := &Call{proxy: p, w: w, r: r, route: route, from: from}
	status, reason := c.read()
	if reason == "" && route.Path == "/v1/responses" {
		status, reason = http.StatusBadRequest, inBackground(c.body)
	}
	if reason != "" {
		c.Release()
		refuse(w, route, status, reason)
		return nil, Result{Outcome: Rejected, Reason: reason}
	}
	return c, Result{}
}

// bodies counts the bytes of bodies that are kept.
type bodies struct {
	mu  sync.Mutex
	all int64
	of  map[string]int64 // by who sent them
}

// add counts n more of a sender's, or fewer, and returns what all have and what it has.
func (b *bodies) add(from string, n int64) (all, own int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all += n
	if b.of[from] += n; b.of[from] == 0 {
		delete(b.of, from)
	}
	return b.all, b.of[from]
}

// Release gives up a call that is not forwarded. It may be called more than once.
func (c *Call) Release() {
	c.proxy.bodies.add(c.from, -c.held)
	c.held, c.body = 0, nil
}

// read reads the body within its bounds. The deadline is lifted once it is there: where net/http waits for the client to leave already, as
// it does behind an empty body, a deadline that passes ends the request's context as if the client had left. It stays where the body
// is not read to its end: net/http would wait for the rest.
func (c *Call) read() (status int, reason Reason) {
	defer func() {
		if reason != "" {
			c.w.Header().Set("Connection", "close")
		}
	}()
	if c.r.Method == http.MethodGet && c.r.ContentLength != 0 {
		return http.StatusBadRequest, BadBody
	}
	if encoding := c.r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return http.StatusUnsupportedMediaType, BadBody
	}
	if c.r.ContentLength > c.proxy.config.MaxBody {
		return http.StatusRequestEntityTooLarge, TooLarge
	}
	body := http.MaxBytesReader(c.w, c.r.Body, c.proxy.config.MaxBody)
	var all bytes.Buffer
	for {
		n, err := io.CopyN(&all, body, piece)
		c.held += n
		switch all, own := c.proxy.bodies.add(c.from, n); {
		case all > c.proxy.config.BodyMemory:
			return http.StatusServiceUnavailable, Busy
		case own > max(c.proxy.config.BodyMemory/8, c.proxy.config.MaxBody):
			return http.StatusTooManyRequests, TooMany
		}
		var large *http.MaxBytesError
		switch {
		case err == nil:
		case err == io.EOF:
			_ = http.NewResponseController(c.w).SetReadDeadline(time.Time{})
			c.body = all.Bytes()
			return 0, ""
		case errors.As(err, &large):
			return http.StatusRequestEntityTooLarge, TooLarge
		case errors.Is(err, os.ErrDeadlineExceeded):
			return http.StatusRequestTimeout, SlowBody
		default:
			return http.StatusBadRequest, BadBody
		}
	}
}

// inBackground says why a request for a response is refused, if it is: it asks for work that goes on without it, or is read in another way
// by others. Python's JSON has NaN, and comes in UTF-16 too.
func inBackground(body []byte) Reason {
	var asked struct {
		Background json.RawMessage `json:"background"` // in any case, and the last one if there are several
	}
	if err := json.Unmarshal(body, &asked); err != nil {
		return BadBody
	}
	switch string(asked.Background) {
	case "", "false", "null":
		return ""
	}
	return Background
}

// refuse answers with an error in the shape that the route's clients read.
func refuse(w http.ResponseWriter, route Route, status int, reason Reason) {
	h := w.Header()
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		h.Set("Retry-After", "1")
	}
	var problem any = map[string]any{"error": map[string]any{"message": reason, "type": "upstream", "code": status}}
	if route.ollama {
		problem = map[string]any{"error": reason}
	}
	serve.Hurry(w)
	h.Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(problem) // the client is gone if this fails
}
