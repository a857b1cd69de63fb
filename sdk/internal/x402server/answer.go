package x402server

import (
	"cmp"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Answer is what a request with a payment gets.
type Answer struct {
	Entry   Entry
	Receipt x402.SettleResponse
	Written bool // it was streamed: nothing is left to write
	Lost    bool // the client was not there to take it

	status int
	header http.Header
	body   []byte
}

// NewAnswer is an answer that is a document.
func NewAnswer(e Entry, receipt x402.SettleResponse, document any) (*Answer, error) {
	body, err := json.Marshal(document)
	header := http.Header{"Content-Type": {"application/json"}}
	return &Answer{Entry: e, Receipt: receipt, status: http.StatusOK, header: header, body: append(body, '\n')}, err
}

// Copy is the answer that was kept of a request.
func (t Account) Copy(e Entry) (*Answer, error) {
	receipt, err := t.Told(e)
	if err != nil {
		return nil, err
	}
	a := &Answer{Entry: e, Receipt: receipt, status: e.Status, body: e.Body}
	return a, json.Unmarshal([]byte(cmp.Or(e.Header, "{}")), &a.header)
}

// Send writes an answer behind its receipt. Its error is that of a client that was not there to take it.
func (a *Answer) Send(w http.ResponseWriter, r *http.Request) error {
	for name, values := range a.header {
		if !strings.HasPrefix(strings.ToUpper(name), "PAYMENT-") {
			w.Header()[name] = values
		}
	}
	if len(a.body) > 0 && w.Header().Get("Content-Length") == "" {
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	serve.Hurry(w)
	w.WriteHeader(a.status)
	if _, err := w.Write(a.body); err != nil {
		return err
	}
	_ = http.NewResponseController(w).Flush() // what stays in a buffer here is not lost yet
	return r.Context().Err()
}
