package settle_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A busyContract has something else of the payee's settled just after it was asked what it set aside.
type busyContract struct {
	chain.Contract
	asked   atomic.Int64
	settled func()
}

func (c *busyContract) PayoutCall(ctx context.Context, payee, token common.Address) (chain.Call, chain.Due, error) {
	call, amount, err := c.Contract.PayoutCall(ctx, payee, token)
	if c.asked.Add(1) == 1 {
		c.settled()
	}
	return call, amount, err
}

// What is set aside while a payout of the same purse is under way is looked for at the next pass, and not an hour later.
func TestExpectedDuringAPayout(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	busy := &busyContract{Contract: k.Settler.Contract}
	busy.settled = func() { k.Settler.Expect(channel.Terms{Payee: terms.Payee, Token: terms.Token}) }
	k.Settler.Contract = busy
	for range 2 {
		if err := k.Settler.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if asked := busy.asked.Load(); asked < 2 {
		t.Fatalf("the contract was asked %d time for what it set aside", asked)
	}
	if err := k.Settler.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	if asked := busy.asked.Load(); asked != 2 {
		t.Errorf("the contract was asked %d times, though nothing more was settled", asked)
	}
}

// What a settlement sets aside that is mined when nobody waits for it any more is looked for at the next pass, and not an hour
// later: whether the wait was given up, or the program that goes on finds its transaction on the way.
func TestExpectedAfterAWaitThatWasGivenUp(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	busy := &busyContract{Contract: k.Settler.Contract, settled: func() {}}
	k.Settler.Contract = busy
	if err := k.Settler.Once(t.Context()); err != nil { // looks into all purses, as at the start
		t.Fatal(err)
	}
	asked := busy.asked.Load()
	k.Settler.Policy.MinValue = *uint256.NewInt(500)
	k.Accept(terms, 500)
	k.Automine(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_ = k.Settler.Once(ctx) // it says in the log how its settlements went
	}()
	k.Eventually("the settlement is sent", func() bool {
		flying, err := k.Sender.InFlight(t.Context())
		return err == nil && len(flying) == 1
	})
	cancel()
	<-gone
	k.Mine(t, 1)
	k.Automine(t, true)
	for range 2 {
		if err := k.Settler.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if busy.asked.Load() == asked {
		t.Error("nobody asked for what the settlement set aside")
	}
}

// A behindContract says what it set aside as of its first block, which is before whatever was settled, where its node is behind.
type behindContract struct {
	chain.Contract
	asked  atomic.Int64
	behind atomic.Bool
}

func (c *behindContract) PayoutCall(ctx context.Context, payee, token common.Address) (chain.Call, chain.Due, error) {
	c.asked.Add(1)
	call, due, err := c.Contract.PayoutCall(ctx, payee, token)
	if c.behind.Load() {
		due = chain.Due{Known: 1, Newest: 1}
	}
	return call, due, err
}

// What a settlement sets aside is looked for at each pass until a node says it that knows the settlement, and then no more: no
// endpoint that is a balancer has a payout wait for an hour by being behind.
func TestNodeThatIsBehindForgetsNoPayout(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	contract := &behindContract{Contract: k.Settler.Contract}
	k.Settler.Contract = contract
	asks := func() int64 {
		before := contract.asked.Load()
		if err := k.Settler.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		return contract.asked.Load() - before
	}
	asks() // looks into all purses, as at the start
	k.Settler.Policy.MinValue = *uint256.NewInt(500)
	k.Accept(terms, 500)
	contract.behind.Store(true)
	if asks() == 0 {
		t.Fatal("nobody asked for what the settlement set aside")
	}
	for range 3 {
		if asks() != 1 {
			t.Fatal("it is forgotten what a node was asked for that did not know the settlement")
		}
	}
	contract.behind.Store(false)
	if asks() != 1 || asks() != 0 {
		t.Error("it is not looked for once by a node that knows the settlement")
	}
}
