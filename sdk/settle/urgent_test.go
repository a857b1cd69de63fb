package settle_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// aside settles another channel urgently: a look that would take along what is urgent still.
func (k *till) aside(salt byte) {
	k.T.Helper()
	terms := k.Open(salt, 1000)
	k.Accept(terms, 50)
	k.Settler.Urgent(terms.ID())
	k.Eventually("another channel is settled", func() bool { s := k.State(terms); return is(s.Settled, 50) })
}

// What was called urgent is settled once: a voucher that comes while that is under way waits for the policy. One that is
// urgent itself does not.
func TestUrgencyEndsWithItsSettlement(t *testing.T) {
	k := newTill(t)
	backend := &meddler{Backend: k.Backend}
	k.Restart(backend)
	terms := k.Open(1, 1000)
	k.Accept(terms, 200)
	backend.before = func() { k.Accept(terms, 300) } // of the next lease
	k.Run(k.Settler.Run)
	k.Settler.Urgent(terms.ID())
	k.Eventually("the ended lease is settled", func() bool { s := k.State(terms); return is(s.Settled, 200) })
	k.aside(2)
	if s := k.State(terms); !is(s.Settled, 200) || !is(s.Accepted, 300) {
		t.Errorf("%s of %s is settled", s.Settled.Dec(), s.Accepted.Dec())
	}
	backend.once, backend.before = sync.Once{}, func() {
		k.Accept(terms, 500)
		k.Settler.Urgent(terms.ID())
	}
	k.Settler.Urgent(terms.ID())
	k.Eventually("both leases after it are settled", func() bool { s := k.State(terms); return is(s.Settled, 500) })
	k.Balance(550)
}

// What somebody else settled is urgent no more.
func TestUrgencyEndsWithAnothersSettlement(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Accept(terms, 200)
	s := k.State(terms)
	k.Send(k.Others, k.Contract.SettleCall(terms, s.Accepted, s.Signature))
	k.Settler.Urgent(terms.ID())
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.Accept(terms, 300)
	k.Run(k.Settler.Run)
	k.aside(2)
	if s := k.State(terms); !is(s.Settled, 200) || !is(s.Accepted, 300) {
		t.Errorf("%s of %s is settled", s.Settled.Dec(), s.Accepted.Dec())
	}
}

// hasty does something just after the first look at what is unsettled.
type hasty struct {
	channel.Store
	then func()
	done atomic.Bool
}

func (h *hasty) Unsettled(ctx context.Context) ([]channel.State, error) {
	states, err := h.Store.Unsettled(ctx)
	if h.done.CompareAndSwap(false, true) {
		h.then()
	}
	return states, err
}

// A lease that ends between the settler's look at the store and what it makes of it is urgent all the same.
func TestUrgentDuringALook(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Register(terms)
	k.Payee.Store = &hasty{Store: k.Payee.Store, then: func() {
		k.Accept(terms, 200)
		k.Settler.Urgent(terms.ID())
	}}
	k.Run(k.Settler.Run)
	k.Eventually("it is settled", func() bool { s := k.State(terms); return is(s.Settled, 200) })
}

// faint is an endpoint that fails once when a call is tried.
type faint struct {
	chain.Backend
	tried atomic.Int64
}

func (f *faint) EstimateGas(ctx context.Context, call ethereum.CallMsg) (uint64, error) {
	if f.tried.Add(1) == 1 {
		return 0, rpc.ErrClientQuit
	}
	return f.Backend.EstimateGas(ctx, call)
}

// What is urgent stays so while it could not be settled, and is tried again long before the next look that is due.
func TestUrgencyOutlivesAFailure(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	backend := &faint{Backend: k.Backend}
	k.Restart(backend)
	k.Settler.Policy.Interval = time.Hour
	k.Accept(terms, 200)
	k.Settler.Urgent(terms.ID())
	k.Run(k.Settler.Run)
	k.Eventually("it is settled", func() bool { s := k.State(terms); return is(s.Settled, 200) })
	if n := backend.tried.Load(); n != 2 {
		t.Errorf("tried %d times, want 2", n)
	}
}
