package chain_test

import (
	"context"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
)

// A sick node answers for the receipts of some transactions in a way of its own.
type sick struct {
	chain.Backend
	mu  sync.Mutex
	how map[common.Hash]func(context.Context, *types.Receipt) (*types.Receipt, error)
}

func (s *sick) TransactionReceipt(ctx context.Context, hash common.Hash) (*types.Receipt, error) {
	s.mu.Lock()
	how := s.how[hash]
	s.mu.Unlock()
	r, err := s.Backend.TransactionReceipt(ctx, hash)
	if how == nil || err != nil {
		return r, err
	}
	return how(ctx, r)
}

// TestAReceiptHoldsUpItsTransactionAlone: where a node answers for one receipt with an error, without a field or not at all, the other
// transactions are looked at and new ones are sent, nothing is signed in its place, and once the node answers it is what it was.
func TestAReceiptHoldsUpItsTransactionAlone(t *testing.T) {
	for name, how := range map[string]func(context.Context, *types.Receipt) (*types.Receipt, error){
		"an error": func(context.Context, *types.Receipt) (*types.Receipt, error) {
			return nil, errors.New("pruned history unavailable")
		},
		"without a field": func(_ context.Context, r *types.Receipt) (*types.Receipt, error) {
			bare := *r
			bare.BlockHash = common.Hash{}
			return &bare, nil
		},
		"no answer": func(ctx context.Context, _ *types.Receipt) (*types.Receipt, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.sender(t, w.Keys[0])
			node := &sick{Backend: w.Backend, how: make(map[common.Hash]func(context.Context, *types.Receipt) (*types.Receipt, error))}
			s.Backend, s.Timeout, s.Stuck, s.Resend, s.Finality = node, 2*time.Second, 50*time.Millisecond, 50*time.Millisecond, 3
			about := func(n uint64) chain.Call {
				call := w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(n))
				call.Channels = []common.Hash{{byte(n)}}
				return call
			}
			id, err := s.Submit(t.Context(), about(1))
			if err != nil {
				t.Fatal(err)
			}
			row, err := s.Store.Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			node.mu.Lock()
			node.how[row.Attempts[0].Signed.Hash()] = how
			node.mu.Unlock()
			for n := range uint64(6) {
				if err := s.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				send(t, s, about(2+n))
				w.Mine(t, 2)
			}
			if why := s.Untold(t.Context(), common.Hash{1}); why == nil || !strings.Contains(why.Error(), string(id)) {
				t.Errorf("why it is held up is %v", why)
			}
			if why := s.Untold(t.Context(), common.Hash{2}); why != nil {
				t.Error(why)
			}
			if got := w.nonce(t, s.Address()); got != 7 {
				t.Errorf("%d transactions, want 7", got)
			}
			if now, err := s.Store.Get(t.Context(), id); err != nil || len(now.Attempts) != 1 || now.Nonce != row.Nonce {
				t.Errorf("%d versions, nonce %d (%v)", len(now.Attempts), now.Nonce, err)
			}
			node.mu.Lock()
			clear(node.how)
			node.mu.Unlock()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if result, err := s.Wait(ctx, id, 1); err != nil || result.Hash != row.Attempts[0].Signed.Hash() {
				t.Error(result, err)
			}
		})
	}
}

// TestADeadEndpointFailsTheLook: where nothing is answered at all, who looks is told.
func TestADeadEndpointFailsTheLook(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[0])
	if _, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))); err != nil {
		t.Fatal(err)
	}
	s.Backend = dead{w.Backend}
	again := &chain.Sender{Backend: s.Backend, Key: s.Key, Store: s.Store}
	if err := again.Sync(t.Context()); !errors.Is(err, chain.ErrUnreachable) {
		t.Errorf("the look says %v", err)
	}
}

// A dead node says which chain it is of, and nothing else.
type dead struct{ chain.Backend }

func (dead) HeaderByNumber(context.Context, *big.Int) (*types.Header, error) { return nil, errGone }
func (dead) TransactionReceipt(context.Context, common.Hash) (*types.Receipt, error) {
	return nil, ethereum.NotFound
}

// A narrow node takes a transaction only at fees between two bounds, in wei per gas, and counts whose receipts it is asked for.
type narrow struct {
	chain.Backend
	mu          sync.Mutex
	least, most *big.Int
	receipts    int
}

func (n *narrow) takes(least, most *big.Int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.least, n.most = least, most
}

func (n *narrow) asked() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.receipts
}

func (n *narrow) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case tx.GasFeeCap().Cmp(n.most) > 0:
		return errors.New("tx fee (1.20 ether) exceeds the configured cap (1.00 ether)")
	case tx.GasFeeCap().Cmp(n.least) < 0:
		return errors.New("transaction underpriced")
	}
	return n.Backend.SendTransaction(ctx, tx)
}

func (n *narrow) TransactionReceipt(ctx context.Context, hash common.Hash) (*types.Receipt, error) {
	n.mu.Lock()
	n.receipts++
	n.mu.Unlock()
	return n.Backend.TransactionReceipt(ctx, hash)
}

// TestVersionsHaveAnEnd: where a node calls one fee too low and the next too high, some tens of versions are signed and no more, a look
// asks for few receipts, and once the node takes what an old version offers, that one is mined.
func TestVersionsHaveAnEnd(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[0])
	node := &narrow{Backend: w.Backend, least: big.NewInt(90e9), most: big.NewInt(80e9)}
	s.Backend, s.Stuck, s.Resend = node, time.Millisecond, time.Millisecond
	w.Automine(t, false)
	w.base(t, 20)
	w.approve(t, s, 1, 1)
	looks := func(n int) {
		for range n {
			w.base(t, 20)
			if err := s.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	looks(80)
	signed, before := versions(t, s), node.asked()
	looks(20)
	if n := len(versions(t, s)); n > 40 || n != len(signed) {
		t.Errorf("%d versions, and then %d", len(signed), n)
	}
	if n := node.asked() - before; n > 20*4 {
		t.Errorf("20 looks ask for %d receipts", n)
	}
	old := signed[2].Signed
	node.takes(old.GasFeeCap(), old.GasFeeCap())
	w.Automine(t, true)
	within(t, "an old version is mined", func() bool { looks(1); return w.nonce(t, s.Address()) == 1 })
}
