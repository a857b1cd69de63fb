// Package badrpc gives tests a JSON-RPC endpoint that misbehaves: a proxy before a real node that leaves out fields of its
// answers, nulls them, delays, repeats, ages or contradicts them, by method. What it answers where no fault is set is what
// the node says.
package badrpc

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// An Error is a JSON-RPC error.
type Error struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// An Exchange is one request and the node's answer to it, which a Fault may change.
type Exchange struct {
	Method string
	Params json.RawMessage
	Result json.RawMessage // nil beside an Error
	Error  *Error
	Status int // HTTP status to answer with instead; 0: 200

	first json.RawMessage // the method's first answer to these parameters since the fault was set
}

// A Fault changes an answer before the client has it.
type Fault func(*Exchange)

// An Endpoint is the proxy. It is safe for concurrent use.
type Endpoint struct {
	URL string

	target string
	mu     sync.Mutex
	faults map[string][]Fault
	mute   map[string]Fault // requests that never reach the node
	counts map[string]int
	firsts map[string]json.RawMessage

	behind uint64 // see Balance
	turns  int
	always []string
	stuck  uint64 // see Stick
}

// New starts a proxy before the node at target and ends it with the test.
func New(t testing.TB, target string) *Endpoint {
	t.Helper()
	e := &Endpoint{target: target}
	e.Heal()
	server := httptest.NewServer(e)
	t.Cleanup(server.Close)
	e.URL = server.URL
	return e
}

// On adds a fault to all answers to a method.
func (e *Endpoint) On(method string, faults ...Fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults[method] = append(e.faults[method], faults...)
}

// Instead answers a method without asking the node.
func (e *Endpoint) Instead(method string, fault Fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mute[method] = fault
}

// Heal takes all faults back.
func (e *Endpoint) Heal() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.behind, e.stuck = 0, 0
	e.faults, e.mute = make(map[string][]Fault), make(map[string]Fault)
	e.counts, e.firsts = make(map[string]int), make(map[string]json.RawMessage)
}

// Count is how many requests of a method came since the last Heal.
func (e *Endpoint) Count(method string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.counts[method]
}

type message struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Method  string          `json:"method,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *Error          `json:"error,omitempty"`
}

// ServeHTTP answers one request. Batches, which nothing here sends, are refused.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var asked message
	if err != nil || json.Unmarshal(body, &asked) != nil {
		http.Error(w, "badrpc takes single requests", http.StatusBadRequest)
		return
	}
	x := &Exchange{Method: asked.Method, Params: asked.Params}
	faults, instead := e.plan(asked.Method)
	body, known := e.lagging(x, body)
	if instead != nil {
		instead(x)
	} else if known || e.swallowed(x) {
		// the answer is that of a node that does not know the block, or passes nothing on
	} else if err := e.forward(r, body, x); err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	e.behindToo(x)
	e.remember(x)
	for _, fault := range faults {
		fault(x)
	}
	if x.Status != 0 {
		http.Error(w, "badrpc was told to fail", x.Status)
		return
	}
	answer := message{Version: "2.0", ID: asked.ID, Result: x.Result, Error: x.Error}
	if x.Error == nil && x.Result == nil {
		answer.Result = json.RawMessage("null")
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func (e *Endpoint) plan(method string) ([]Fault, Fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.counts[method]++
	return e.faults[method], e.mute[method]
}

func (e *Endpoint) forward(r *http.Request, body []byte, x *Exchange) error {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, e.target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var said message
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil {
		return err
	}
	x.Result, x.Error = said.Result, said.Error
	return nil
}

func (e *Endpoint) remember(x *Exchange) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := x.Method + string(x.Params)
	if e.firsts[key] == nil && x.Error == nil {
		e.firsts[key] = x.Result
	}
	x.first = e.firsts[key]
}

// Null answers null.
func Null(x *Exchange) { x.Result, x.Error = json.RawMessage("null"), nil }

// Aged answers what it first answered to the same question.
func Aged(x *Exchange) {
	if x.first != nil {
		x.Result, x.Error = x.first, nil
	}
}

// Fail answers with an error.
func Fail(code int, text string) Fault {
	return func(x *Exchange) { x.Result, x.Error = nil, &Error{Code: code, Message: text} }
}

// Status answers with an HTTP status and no JSON.
func Status(code int) Fault { return func(x *Exchange) { x.Status = code } }

// Delay answers late.
func Delay(d time.Duration) Fault { return func(*Exchange) { time.Sleep(d) } }

// Without leaves a field out of an object, or of every object of a list.
func Without(field string) Fault {
	return edit(func(object map[string]json.RawMessage) { delete(object, field) })
}

// With sets a field of an object, or of every object of a list.
func With(field string, value any) Fault {
	return edit(func(object map[string]json.RawMessage) {
		raw, err := json.Marshal(value)
		if err != nil {
			panic(err)
		}
		object[field] = raw
	})
}

// Says answers with a value.
func Says(value any) Fault {
	return func(x *Exchange) {
		raw, err := json.Marshal(value)
		if err != nil {
			panic(err)
		}
		x.Result, x.Error = raw, nil
	}
}

// Times lets a fault happen to the next n answers only.
func Times(n int, fault Fault) Fault {
	var mu sync.Mutex
	return func(x *Exchange) {
		mu.Lock()
		left := n
		n--
		mu.Unlock()
		if left > 0 {
			fault(x)
		}
	}
}

// About lets a fault happen to requests whose parameters hold a text, such as a hash.
func About(text string, fault Fault) Fault {
	return func(x *Exchange) {
		if bytes.Contains(bytes.ToLower(x.Params), bytes.ToLower([]byte(text))) {
			fault(x)
		}
	}
}

func edit(change func(map[string]json.RawMessage)) Fault {
	return func(x *Exchange) {
		var one map[string]json.RawMessage
		if json.Unmarshal(x.Result, &one) == nil && one != nil {
			change(one)
			x.Result = encode(one)
			return
		}
		var many []map[string]json.RawMessage
		if json.Unmarshal(x.Result, &many) != nil {
			return
		}
		for _, object := range many {
			change(object)
		}
		x.Result = encode(many)
	}
}

func encode(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}
