package chain_test

import (
	"testing"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A transaction that the outbox does not know may be on its way at one endpoint of several only, whichever that is.
func TestUnknownAtAnyEndpoint(t *testing.T) {
	w := newWorld(t)
	var ends []*badrpc.Endpoint
	urls := ""
	for range 3 {
		e := badrpc.New(t, w.URL)
		ends, urls = append(ends, e), urls+e.URL+","
	}
	backend, err := chain.Connect(t.Context(), urls, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range ends {
		s := w.sender(t, w.Keys[0])
		s.Backend = backend
		e.On("eth_getTransactionCount", badrpc.About("pending", badrpc.Says("0x1")))
		if n, err := s.Unknown(t.Context()); err != nil || n != 1 {
			t.Errorf("endpoint %d of three shows one on its way: %d unknown, %v", i, n, err)
		}
		e.Heal()
	}
	s := w.sender(t, w.Keys[0])
	s.Backend = backend
	if n, err := s.Unknown(t.Context()); err != nil || n != 0 {
		t.Errorf("none shows one: %d unknown, %v", n, err)
	}
}
