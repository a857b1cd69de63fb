package settle_test

import (
	"context"
	"math/big"
	"sync/atomic"
	"testing"

	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/sdk/chain"
)

// behind is a balancer over two nodes: once, after a transaction was mined, the one answers that does not know its block.
type behind struct {
	chain.Backend
	asked atomic.Int64 // for the newest block since; negative: nothing was sent
}

func (b *behind) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	b.asked.Store(0)
	return b.Backend.SendTransaction(ctx, tx)
}

func (b *behind) BlockNumber(ctx context.Context) (uint64, error) {
	n, err := b.Backend.BlockNumber(ctx)
	if b.asked.Load() >= 0 && b.asked.Add(1) == 2 { // the first says that it is mined, the second reads what it brought
		n--
	}
	return n, err
}

// HeaderByNumber answers for the newest block as the node does that is asked for its number next.
func (b *behind) HeaderByNumber(ctx context.Context, number *big.Int) (*types.Header, error) {
	head, err := b.Backend.HeaderByNumber(ctx, number)
	if err != nil || number != nil || b.asked.Load() != 1 {
		return head, err
	}
	return b.Backend.HeaderByNumber(ctx, new(big.Int).Sub(head.Number, big.NewInt(1)))
}

// What a settlement brought is read from a node that has its block, and a deposit that nobody confirmed yet is not believed
// on the way.
func TestSettlementIsReadFromANodeThatHasIt(t *testing.T) {
	k := newTill(t)
	backend := &behind{Backend: k.Backend}
	backend.asked.Store(-1)
	k.Restart(backend)
	terms := k.Open(1, 1000)
	k.Accept(terms, 400)
	k.TopUp(terms, 500, 1)
	if err := k.Settler.Settle(t.Context(), terms.ID()); err != nil {
		t.Fatal(err)
	}
	s := k.State(terms)
	if paid := k.Settlements(); !is(s.Settled, 400) || len(paid) != 1 || !is(paid[0].Paid, 400) {
		t.Errorf("settled %s, reported %+v", s.Settled.Dec(), paid)
	}
	if !is(s.Deposit, 1000) {
		t.Errorf("the deposit counts as %s before its confirmations", s.Deposit.Dec())
	}
}
