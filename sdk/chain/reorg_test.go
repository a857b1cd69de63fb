package chain_test

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// Every kind of transaction, undone by re-orgs of 1 to 20 blocks, each: it comes back by itself, once, and the channel ends as
// if nothing had happened.
func TestReorgMatrix(t *testing.T) {
	kinds := []struct {
		name string
		call func(t *testing.T, w *world, s *chain.Sender, terms channel.Terms) chain.Call
	}{
		{"open", func(t *testing.T, w *world, _ *chain.Sender, terms channel.Terms) chain.Call {
			return w.escrow.OpenAuthorizedCall(terms, w.authorize(t, 1000, channel.OpenNonce(terms.Payer, terms)))
		}},
		{"top up", func(t *testing.T, w *world, s *chain.Sender, terms channel.Terms) chain.Call {
			w.open(t, s, terms.Salt[31], 1000)
			nonce := channel.TopUpNonce(terms.ID(), *uint256.NewInt(50), w.payer.Address(), common.Hash{1})
			return w.escrow.TopUpAuthorizedCall(terms, common.Hash{1}, w.authorize(t, 50, nonce))
		}},
		{"settle", func(t *testing.T, w *world, s *chain.Sender, terms channel.Terms) chain.Call {
			w.open(t, s, terms.Salt[31], 1000)
			v := w.voucher(t, terms, 400)
			return w.escrow.SettleCall(terms, v.Accepted, v.Signature)
		}},
		{"batch", func(t *testing.T, w *world, s *chain.Sender, terms channel.Terms) chain.Call {
			w.open(t, s, terms.Salt[31], 1000)
			call, err := w.escrow.SettleBatchCall(terms.Payee, terms.Token, []channel.State{w.voucher(t, terms, 300), w.voucher(t, terms, 500)})
			if err != nil {
				t.Fatal(err)
			}
			return call
		}},
		{"request close", func(t *testing.T, w *world, s *chain.Sender, terms channel.Terms) chain.Call {
			w.open(t, s, terms.Salt[31], 1000)
			request, err := w.payer.Sign(t.Context(), w.escrow.Domain().RequestCloseDigest(terms.ID(), 0, far))
			if err != nil {
				t.Fatal(err)
			}
			return w.escrow.RequestCloseAuthorizedCall(terms, far, request)
		}},
		{"close", func(t *testing.T, w *world, s *chain.Sender, terms channel.Terms) chain.Call {
			w.open(t, s, terms.Salt[31], 1000)
			v := w.voucher(t, terms, 250)
			return w.escrow.CloseCall(terms, v.Accepted, v.Signature)
		}},
		{"withdraw", func(t *testing.T, w *world, s *chain.Sender, terms channel.Terms) chain.Call {
			w.open(t, s, terms.Salt[31], 1000)
			request, err := w.payer.Sign(t.Context(), w.escrow.Domain().RequestCloseDigest(terms.ID(), 0, far))
			if err != nil {
				t.Fatal(err)
			}
			send(t, s, w.escrow.RequestCloseAuthorizedCall(terms, far, request))
			w.AdvanceTime(t, 2*chaintest.Grace)
			return w.escrow.WithdrawCall(terms)
		}},
	}
	for _, kind := range kinds {
		for first := 1; first <= 2; first++ {
			w := newWorld(t) // of its own: anvil forgets the state of blocks that are some hundreds deep
			s := w.sender(t, w.Keys[1])
			for depth := first; depth <= 20; depth += 2 {
				terms := w.terms(byte(depth))
				t.Run(fmt.Sprintf("%s/%d", kind.name, depth), func(t *testing.T) {
					call := kind.call(t, w, s, terms)
					w.Mine(t, depth) // nothing else of the channel's is in reach of the re-org
					undo(t, w, s, terms, call, depth)
				})
			}
		}
	}
}

// undo sends a call, undoes it, and waits until it is there again.
func undo(t *testing.T, w *world, s *chain.Sender, terms channel.Terms, call chain.Call, depth int) {
	t.Helper()
	view := func() channel.ChainView {
		views, err := w.escrow.Views(t.Context(), []common.Hash{terms.ID()})
		if err != nil {
			t.Fatal(err)
		}
		if views[0].CloseRequestedAt != 0 {
			views[0].CloseRequestedAt = 1 // the block's time is another one afterwards
		}
		return views[0]
	}
	before, nonce, tokens := view(), w.nonce(t, s.Address()), w.Tokens(t, w.payee.Address())
	result := send(t, s, call)
	after, paid := view(), w.Tokens(t, w.payee.Address())
	if before == after {
		t.Fatal("the call changed nothing")
	}
	w.Mine(t, depth-1)
	w.Reorg(t, depth)
	if got := view(); got != before || w.Tokens(t, w.payee.Address()) != tokens {
		t.Fatalf("not undone: %+v", got)
	}
	within(t, "it is back", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Wait(ctx, result.ID, 1)
		return err == nil && view() == after
	})
	w.Mine(t, 2)
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.nonce(t, s.Address()); got != nonce+1 {
		t.Errorf("%d transactions, want 1", got-nonce)
	}
	if got := w.Tokens(t, w.payee.Address()); got != paid {
		t.Errorf("payee has %d, want %d", got, paid)
	}
}

// A re-org deeper than Finality: the next transaction finds the gap, and the forgotten one is sent before it.
func TestReorgDeeperThanFinality(t *testing.T) {
	w := newWorld(t)
	w.Mine(t, 10)
	s := w.sender(t, w.Keys[0])
	s.Finality = 2
	result := send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1000)))
	w.Mine(t, 5)
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Reorg(t, 6)
	if got := w.nonce(t, w.payer.Address()); got != 0 {
		t.Fatalf("nonce %d: the re-org undid nothing", got)
	}
	second := w.token.ApproveCall(common.Address{7}, *uint256.NewInt(1))
	send(t, s, second)
	if _, err := s.Wait(t.Context(), result.ID, 1); err != nil {
		t.Fatal(err)
	}
	allowance, err := w.token.Allowance(t.Context(), w.payer.Address(), w.escrow.Address())
	if err != nil || !allowance.Eq(uint256.NewInt(1000)) {
		t.Errorf("allowance %s, %v", allowance.Dec(), err)
	}
	if got := w.nonce(t, w.payer.Address()); got != 2 {
		t.Errorf("nonce %d, want 2", got)
	}
	w.explainGas(t, s)
}

// A re-org undoes a transaction while the node cannot tell what it has: it is sent again once the node can, though no block
// comes. On a chain that makes blocks only of transactions, the next one waits for it, and no block for either.
func TestReorgWhileTheNodeCannotTell(t *testing.T) {
	for name, hide := range map[string]func(b *badrpc.Endpoint, mined *types.Receipt, head uint64){
		"indexing": func(b *badrpc.Endpoint, _ *types.Receipt, _ uint64) {
			b.On(receiptMethod, badrpc.Fail(-32000, "transaction indexing is in progress"))
		},
		"shows what was": func(b *badrpc.Endpoint, mined *types.Receipt, _ uint64) {
			b.On(receiptMethod, badrpc.About(mined.TxHash.Hex(), badrpc.Says(mined)))
		},
		"counts what was": func(b *badrpc.Endpoint, _ *types.Receipt, head uint64) {
			b.On("eth_getTransactionCount", badrpc.About(hexutil.EncodeUint64(head), badrpc.Says("0x1")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, bad, _ := w.badSender(t)
			s.Finality = 64
			first := send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
			w.Reorg(t, 1)
			if got := w.nonce(t, s.Address()); got != 0 {
				t.Fatalf("nonce %d: the re-org undid nothing", got)
			}
			hide(bad, first.Receipt, w.Head(t))
			second, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(2)))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := w.nonce(t, s.Address()); got != 0 {
				t.Fatalf("nonce %d while the node could not tell", got)
			}
			bad.Heal()
			for range 3 {
				if err := s.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := w.nonce(t, s.Address()); got != 2 {
				t.Fatalf("nonce %d, want 2: what the re-org undid is not sent again", got)
			}
			for _, id := range []chain.TxID{first.ID, second} {
				if _, err := s.Wait(t.Context(), id, 1); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// hung is a backend that never answers.
type hung struct{ chain.Backend }

func (hung) HeaderByNumber(ctx context.Context, _ *big.Int) (*types.Header, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// An endpoint that keeps the line open and says nothing is given up after the timeout.
func TestHungEndpoint(t *testing.T) {
	w := newWorld(t)
	store, _ := openStore(t, file(t))
	s := &chain.Sender{Backend: hung{w.Backend}, Key: w.payer, Store: store, Timeout: 200 * time.Millisecond}
	began := time.Now()
	_, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
	if !errors.Is(err, chain.ErrUnreachable) || time.Since(began) > 20*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}
