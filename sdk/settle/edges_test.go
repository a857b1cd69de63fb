package settle_test

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/settle"
)

// faulty is a store that cannot read one channel.
type faulty struct {
	channel.Store
	broken bool
}

var errDisk = errors.New("disk on fire")

func (f *faulty) Load(ctx context.Context, id common.Hash) (channel.State, error) {
	if f.broken {
		return channel.State{}, errDisk
	}
	return f.Store.Load(ctx, id)
}

// TestUnreadableChannelIsSaid: what could not be read was neither watched nor settled.
func TestUnreadableChannelIsSaid(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Accept(terms, 300)
	store := &faulty{Store: k.Payee.Store}
	k.Payee.Store = store
	store.broken = true
	if err := k.Watcher.Check(t.Context()); !errors.Is(err, errDisk) {
		t.Errorf("watching: %v", err)
	}
	if err := k.Settler.Settle(t.Context()); !errors.Is(err, errDisk) {
		t.Errorf("settling: %v", err)
	}
	store.broken = false
	k.Balance(0)
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Error(err)
	}
	k.Balance(300)
}

// TestDearestFirst: of what does not fit into one transaction the most is fetched first, and what closes before all.
func TestDearestFirst(t *testing.T) {
	k := newTill(t)
	k.Settler.Policy.MaxBatch = 1
	var ids []common.Hash
	for i, amount := range []uint64{20, 50, 30, 10} {
		terms := k.Open(byte(i), 1000)
		k.Accept(terms, amount)
		ids = append(ids, terms.ID())
		if amount == 10 {
			k.RequestClose(terms)
		}
	}
	k.Mine(t, 3) // the deposits have their confirmations
	k.Check()
	k.Settler.Recall()
	if err := k.Settler.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	var order []common.Hash
	var paid []uint256.Int
	all, block := k.Settlements(), func(s settle.Settlement) uint64 {
		receipt, err := k.Backend.TransactionReceipt(t.Context(), s.Tx)
		if err != nil {
			t.Fatal(err)
		}
		return receipt.BlockNumber.Uint64()
	}
	slices.SortFunc(all, func(a, b settle.Settlement) int { return cmp.Compare(block(a), block(b)) })
	for _, s := range all {
		order, paid = append(order, s.Channels...), append(paid, s.Paid)
	}
	if want := []common.Hash{ids[3], ids[1], ids[2], ids[0]}; !slices.Equal(order, want) {
		t.Errorf("settled %v, in the order %v", paid, order)
	}
	k.Balance(110)
}

// TestTheVeryNextBlockIsRead: a request to close right after a look is seen at the next one, though more blocks came.
func TestTheVeryNextBlockIsRead(t *testing.T) {
	k := newTill(t)
	terms := k.Open(1, 1000)
	k.Mine(t, 5)
	k.Check()
	k.RequestClose(terms)
	k.Mine(t, 3)
	k.Check()
	if s := k.State(terms); s.Status != channel.Closing {
		t.Errorf("the channel is %s", s.Status)
	}
}
