package rig

import (
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/gpupay/gpupay/sdk/x402"
)

// FaultyTransport loses, breaks off or alters answers to x402 payments, as a test wants it.
type FaultyTransport struct {
	mu    sync.Mutex
	Paid  []string // payments that were answered
	Cut   int      // answers that never come
	Short int      // answers that break off behind their header
	Alter func(*http.Response)
}

// RoundTrip is of http.RoundTripper.
func (l *FaultyTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(req)
	payment := req.Header.Get(x402.HeaderSignature)
	if err != nil || payment == "" || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.Paid = append(l.Paid, payment)
	switch {
	case l.Cut > 0:
		l.Cut--
		resp.Body.Close()
		return nil, io.ErrUnexpectedEOF
	case l.Short > 0:
		l.Short--
		resp.Body.Close()
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"leaseId"`), broken{}))
	case l.Alter != nil:
		l.Alter(resp)
	}
	return resp, nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
