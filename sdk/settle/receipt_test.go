package settle_test

import (
	"context"
	"errors"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/rig"
)

// unindexed has a till begin anew on a node that shows no receipt of some transactions.
func (k *till) unindexed() *rig.Unindexed {
	u := &rig.Unindexed{Backend: k.Backend}
	k.Restart(u)
	return u
}

// serves runs everything, and has what closes settled at once, as a Service does.
func (k *till) serves() {
	k.Watcher.OnChange = func(_, now channel.State) {
		if now.Status == channel.Closing {
			k.Settler.Urgent(now.ID)
		}
	}
	k.Run(k.Sender.Run)
	k.Run(k.Settler.Run)
	k.Run(k.Watcher.Run)
}

// Calls of Settle beside a settlement that is under way hold no channel while they wait for that one: what is free is settled
// at once, and each call ends once everything is.
func TestSettleHoldsNothingWhileItWaits(t *testing.T) {
	k := newTill(t)
	a, b := k.Open(1, 1000), k.Open(2, 1000)
	k.Mine(t, 5)
	k.Accept(a, 100)
	k.serves()
	flying := func(n int) func() bool {
		return func() bool { f, err := k.Sender.InFlight(t.Context()); return err == nil && len(f) == n }
	}
	k.Automine(t, false)
	k.Settler.Urgent(a.ID())
	k.Eventually("a settlement is under way", flying(1))
	k.Accept(a, 150)
	k.Accept(b, 700)
	done := make(chan error, 3)
	for range cap(done) {
		go func() { done <- k.Settler.Settle(t.Context()) }()
	}
	k.Eventually("the other channel is being settled, too", flying(2))
	k.Automine(t, true)
	k.Mine(t, 1)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	k.Balance(850)
	if n := nonceOf(t, k); n != 3 {
		t.Errorf("%d transactions, want three settlements", n)
	}
}

// A call of Settle that has waited for another settlement says what fails when its own turn comes: it does not end as if all were
// settled.
func TestSettleSaysWhatFailsAfterItWaited(t *testing.T) {
	k := newTill(t)
	node := &stubborn{Backend: k.Backend}
	k.Restart(node)
	a := k.Open(1, 1000)
	k.Mine(t, 5)
	k.Accept(a, 100)
	k.serves()
	k.Automine(t, false)
	k.Settler.Urgent(a.ID())
	k.Eventually("a settlement is under way", func() bool { f, err := k.Sender.InFlight(t.Context()); return err == nil && len(f) == 1 })
	k.Accept(a, 150)
	done := make(chan error)
	go func() { done <- k.Settler.Settle(t.Context(), a.ID()) }()
	select {
	case err := <-done:
		t.Fatalf("it did not wait for the settlement that is under way: %v", err)
	case <-time.After(500 * time.Millisecond): // its first look is over
	}
	node.refuses.Store(true)
	k.Automine(t, true)
	k.Mine(t, 1)
	if err := <-done; err == nil || !strings.Contains(err.Error(), errStubborn.Error()) || !strings.Contains(err.Error(), a.ID().String()) {
		t.Errorf("150 are accepted, 100 settled, and the call of Settle says %v", err)
	}
}

var errStubborn = errors.New("the wallet of this node is locked")

// A stubborn node takes no transaction for a while, nor says what one would cost, nor how many an account has sent.
type stubborn struct {
	chain.Backend
	refuses, forgets atomic.Bool
}

func (s *stubborn) EstimateGas(ctx context.Context, call ethereum.CallMsg) (uint64, error) {
	if s.refuses.Load() {
		return 0, errStubborn
	}
	return s.Backend.EstimateGas(ctx, call)
}

func (s *stubborn) NonceAt(ctx context.Context, of common.Address, block *big.Int) (uint64, error) {
	if s.forgets.Load() {
		return 0, errStubborn
	}
	return s.Backend.NonceAt(ctx, of, block)
}

// A settlement of which an endpoint shows neither the receipt nor whether its nonce is used ends when the contract shows exactly as much
// settled as it is for.
func TestSettlementEndsByTheContract(t *testing.T) {
	k := newTill(t)
	base := &stubborn{Backend: k.Backend}
	node := &rig.Unindexed{Backend: base}
	k.Restart(node)
	a := k.Open(1, 1000)
	k.Mine(t, 5)
	k.Accept(a, 100)
	node.HideNext()
	done := make(chan error)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { done <- k.Settler.Settle(ctx, a.ID()) }()
	k.Eventually("the settlement is on the chain", func() bool { return k.Tokens(t, k.Key.Address()) == 100 })
	base.forgets.Store(true)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := k.State(a); !is(s.Settled, 100) {
		t.Errorf("settled %s", s.Settled.Dec())
	}
}

// A payout whose receipt does not come, of money that is safe, holds up no settlement.
func TestPayoutWithoutReceiptHoldsUpNothing(t *testing.T) {
	k := newTill(t)
	node := k.unindexed()
	k.Sender.Unseen = time.Hour
	a, b := k.Open(1, 1000), k.Open(2, 1000)
	k.Mine(t, 5)
	k.Accept(a, 100)
	resume := k.PauseToken(t)
	_ = k.Settler.Settle(t.Context()) // the token refuses: it is credited
	node.HideNext()
	resume()
	k.serves()
	k.Eventually("the payout is on the chain", func() bool { return k.Tokens(t, k.Key.Address()) == 100 })
	k.Accept(b, 700)
	k.RequestClose(b)
	k.Eventually("what closes is settled", func() bool { s := k.State(b); return is(s.Settled, 700) })
	k.Balance(800)
}

// A payout whose receipt does not come ends when the contract says that nothing is due any more: who settles does not wait for the
// receipt, and what is credited later is paid out.
func TestPayoutEndsByTheContract(t *testing.T) {
	k := newTill(t)
	node := k.unindexed()
	a := k.Open(1, 1000)
	k.Mine(t, 5)
	for _, total := range []uint64{100, 300} {
		k.Accept(a, total)
		resume := k.PauseToken(t)
		if err := k.Settler.Settle(t.Context()); err == nil {
			t.Fatal("the token did not refuse")
		}
		node.HideNext()
		resume()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := k.Settler.Settle(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		k.Balance(total)
		if held := k.Settler.Held(); !held.IsZero() {
			t.Errorf("%s are held", held.Dec())
		}
	}
	if n := nonceOf(t, k); n != 4 {
		t.Errorf("%d transactions, want two settlements and two payouts", n)
	}
}

// A settlement whose receipt does not come lets go of its channels when its nonce is used, also after a restart: what is
// vouchered since is settled once, and so are the others, and a call of Settle ends.
func TestSettlementWithoutReceiptLetsGo(t *testing.T) {
	for name, restart := range map[string]bool{"at once": false, "after a restart": true} {
		t.Run(name, func(t *testing.T) {
			k := newTill(t)
			node := k.unindexed()
			a, b := k.Open(1, 1000), k.Open(2, 1000)
			k.Mine(t, 5)
			k.Accept(a, 100)
			node.HideNext()
			if restart {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				_ = k.Settler.Settle(ctx)
				cancel()
				k.Restart(node)
			}
			k.serves()
			k.Settler.Urgent(a.ID())
			k.Eventually("the settlement is on the chain", func() bool { return k.Tokens(t, k.Key.Address()) == 100 })
			k.Accept(a, 300)
			k.Accept(b, 700)
			k.RequestClose(a)
			k.Eventually("what closes is settled", func() bool { s := k.State(a); return is(s.Settled, 300) })
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := k.Settler.Settle(ctx); err != nil {
				t.Error(err)
			}
			k.Balance(1000)
			if n := nonceOf(t, k); n != 3 {
				t.Errorf("%d transactions, want three settlements", n)
			}
		})
	}
}

// TestAFailingReceiptHoldsUpNoOther: the receipt of one settlement is answered with an error, and the channel of another payer, who
// wants to leave, is settled in time; a call of Settle that is not in time names the receipt, for the channel that it is about.
func TestAFailingReceiptHoldsUpNoOther(t *testing.T) {
	k := newTill(t)
	node := k.unindexed()
	node.Says = errors.New("pruned history unavailable")
	a, b := k.Open(1, 1000), k.Open(2, 1000)
	k.Mine(t, 5)
	k.Accept(a, 100)
	node.HideNext()
	k.serves()
	k.Sender.Unseen = time.Hour
	k.Settler.Urgent(a.ID())
	k.Eventually("the settlement is on the chain", func() bool { return k.Tokens(t, k.Key.Address()) == 100 })
	k.Mine(t, 80)
	k.Accept(b, 700)
	k.RequestClose(b)
	k.Eventually("what closes is settled", func() bool { s := k.State(b); return is(s.Settled, 700) })
	k.Accept(a, 300)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	err := k.Settler.Settle(ctx)
	if err == nil || !strings.Contains(err.Error(), "pruned history unavailable") || !strings.Contains(err.Error(), a.ID().String()) {
		t.Errorf("the call of Settle says %v", err)
	}
}
