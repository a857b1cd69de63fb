package settle_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/ethereum/go-ethereum/common"

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
