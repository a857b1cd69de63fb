package chain_test

import (
	"context"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

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

// asked are marks of which somebody asks what is unknown between the mark of a transaction and its place in the outbox.
type asked struct {
	*marks
	sender  *chain.Sender
	unknown chan uint64
}

func (a *asked) RaiseNonce(ctx context.Context, key common.Address, id, nonce uint64) error {
	err := a.marks.RaiseNonce(ctx, key, id, nonce)
	begun := make(chan struct{})
	go func() {
		close(begun)
		n, err := a.sender.Unknown(ctx)
		if err != nil {
			n = 100
		}
		a.unknown <- n
	}()
	<-begun
	time.Sleep(50 * time.Millisecond)
	return err
}

// TestTransactionThatIsBeingWrittenIsKnown: nothing is refused, as after a restore, while this program writes down what it sends.
func TestTransactionThatIsBeingWrittenIsKnown(t *testing.T) {
	w := newWorld(t)
	s, _, m := w.marked(t, "only")
	a := &asked{marks: m, sender: s, unknown: make(chan uint64, 1)}
	s.Marks = a
	send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
	if n := <-a.unknown; n != 0 {
		t.Errorf("%d unknown", n)
	}
}
