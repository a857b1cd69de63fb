package settle_test

import (
	"context"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A picky node refuses what its operator bounds, in go-ethereum's words.
type picky struct {
	chain.Backend
	most  *big.Int // wei of one transaction; nil: any
	bytes int      // of data; 0: any
}

func (p picky) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	if p.most != nil && new(big.Int).Mul(tx.GasFeeCap(), new(big.Int).SetUint64(tx.Gas())).Cmp(p.most) > 0 {
		return errors.New("tx fee (1.20 ether) exceeds the configured cap (1.00 ether)")
	}
	if p.bytes > 0 && len(tx.Data()) > p.bytes {
		return errors.New("oversized data: transaction size 144310, limit 131072")
	}
	return p.Backend.SendTransaction(ctx, tx)
}

// A settlement that the only node refuses for its price in a spike of fees (geth: --rpc.txfeecap) is on disk with its nonce: when the
// spike is over it is settled, and so is what a payer wants out of behind it.
func TestBoundOfANodeDoesNotOutliveTheSpike(t *testing.T) {
	k := newTill(t)
	a, b := k.Open(1, 1000), k.Open(2, 1000)
	k.Restart(picky{Backend: k.Backend, most: big.NewInt(320 * 1e9 * 100_000)}) // 100,000 gas at 320 gwei
	k.Mine(t, 5)
	k.Sender.Stuck = 300 * time.Millisecond
	k.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", hexutil.EncodeBig(big.NewInt(400*1e9)))
	k.Mine(t, 1)
	k.Accept(a, 100)
	k.Run(k.Sender.Run)
	k.Run(k.Settler.Run)
	k.Run(k.Watcher.Run)
	k.Settler.Urgent(a.ID())
	k.Eventually("it is in the outbox", func() bool { f, err := k.Sender.InFlight(t.Context()); return err == nil && len(f) == 1 })
	k.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", hexutil.EncodeBig(big.NewInt(1e9)))
	k.Mine(t, 3)
	k.Accept(b, 700)
	k.RequestClose(b)
	k.Eventually("both are settled", func() bool {
		k.Mine(t, 1)
		return is(k.State(a).Settled, 100) && is(k.State(b).Settled, 700)
	})
}

// A batch that every node refuses for its size is given up for its nonce and settled in smaller ones, and holds up nobody who wants
// out behind it.
func TestOversizedBatchIsSettledInSmallerOnes(t *testing.T) {
	k := newTill(t)
	k.Restart(picky{Backend: k.Backend, bytes: 700})
	k.Sender.Stuck = 300 * time.Millisecond
	out := k.Open(99, 1000)
	var terms []channel.Terms
	for i := range byte(8) {
		terms = append(terms, k.Open(i, 1000))
		k.Accept(terms[i], 100)
	}
	k.Mine(t, 5)
	k.Run(k.Sender.Run)
	k.Settler.Policy.MinValue.SetUint64(1)
	k.Run(k.Settler.Run)
	k.Run(k.Watcher.Run)
	k.Eventually("it is in the outbox", func() bool { f, err := k.Sender.InFlight(t.Context()); return err == nil && len(f) > 0 })
	k.Accept(out, 700)
	k.RequestClose(out)
	k.Eventually("all is settled", func() bool {
		k.Mine(t, 1)
		for _, one := range terms {
			if !is(k.State(one).Settled, 100) {
				return false
			}
		}
		return is(k.State(out).Settled, 700)
	})
	k.Balance(1500)
}

// A batch that is more than half of a block is settled in smaller ones, and none of it is signed for before.
func TestBatchBeyondABlockIsHalved(t *testing.T) {
	k := newTill(t)
	k.Restart(cramped{k.Backend})
	for i := range byte(8) {
		k.Accept(k.Open(i, 1000), 100)
	}
	k.Mine(t, 5)
	k.Run(k.Sender.Run)
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Error(err)
	}
	k.Balance(800)
	if n := len(k.Settlements()); n != 2 {
		t.Errorf("%d settlements", n)
	}
}

// cramped is a chain with blocks of 320,000 gas.
type cramped struct{ chain.Backend }

func (c cramped) HeaderByNumber(ctx context.Context, n *big.Int) (*types.Header, error) {
	head, err := c.Backend.HeaderByNumber(ctx, n)
	if err == nil {
		head.GasLimit = 320_000
	}
	return head, err
}
