package sdk_test

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
	k.t.Helper()
	terms := k.open(salt, 1000)
	k.accept(terms, 50)
	k.settler.Urgent(terms.ID())
	k.within(30*time.Second, "another channel is settled", func() bool { s := k.state(terms); return is(s.Settled, 50) })
}

// What was called urgent is settled once: a voucher that comes while that is under way waits for the policy. One that is
// urgent itself does not.
func TestUrgencyEndsWithItsSettlement(t *testing.T) {
	k := newTill(t)
	backend := &meddler{Backend: k.Backend}
	k.restart(backend)
	terms := k.open(1, 1000)
	k.accept(terms, 200)
	backend.before = func() { k.accept(terms, 300) } // of the next lease
	k.run(k.settler.Run)
	k.settler.Urgent(terms.ID())
	k.within(30*time.Second, "the ended lease is settled", func() bool { s := k.state(terms); return is(s.Settled, 200) })
	k.aside(2)
	if s := k.state(terms); !is(s.Settled, 200) || !is(s.Accepted, 300) {
		t.Errorf("%s of %s is settled", s.Settled.Dec(), s.Accepted.Dec())
	}
	backend.once, backend.before = sync.Once{}, func() {
		k.accept(terms, 500)
		k.settler.Urgent(terms.ID())
	}
	k.settler.Urgent(terms.ID())
	k.within(30*time.Second, "both leases after it are settled", func() bool { s := k.state(terms); return is(s.Settled, 500) })
	k.balance(550)
}

// What somebody else settled is urgent no more.
func TestUrgencyEndsWithAnothersSettlement(t *testing.T) {
	k := newTill(t)
	terms := k.open(1, 1000)
	k.accept(terms, 200)
	s := k.state(terms)
	k.send(k.others, k.escrow.SettleCall(terms, s.Accepted, s.Signature))
	k.settler.Urgent(terms.ID())
	if err := k.settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.accept(terms, 300)
	k.run(k.settler.Run)
	k.aside(2)
	if s := k.state(terms); !is(s.Settled, 200) || !is(s.Accepted, 300) {
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
	terms := k.open(1, 1000)
	k.register(terms)
	k.payee.Store = &hasty{Store: k.payee.Store, then: func() {
		k.accept(terms, 200)
		k.settler.Urgent(terms.ID())
	}}
	k.run(k.settler.Run)
	k.within(30*time.Second, "it is settled", func() bool { s := k.state(terms); return is(s.Settled, 200) })
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
	terms := k.open(1, 1000)
	backend := &faint{Backend: k.Backend}
	k.restart(backend)
	k.settler.Policy.Interval = time.Hour
	k.accept(terms, 200)
	k.settler.Urgent(terms.ID())
	k.run(k.settler.Run)
	k.within(30*time.Second, "it is settled", func() bool { s := k.state(terms); return is(s.Settled, 200) })
	if n := backend.tried.Load(); n != 2 {
		t.Errorf("tried %d times, want 2", n)
	}
}
