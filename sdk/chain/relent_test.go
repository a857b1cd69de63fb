package chain_test

import (
	"context"
	"errors"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A picky node refuses what its operator bounds, in go-ethereum's words.
type picky struct {
	chain.Backend
	mu      sync.Mutex
	most    int64  // gwei that a call may offer for a unit of its gas, which is what a bound of the whole comes to; 0: any
	bytes   int    // of data; 0: any
	drops   bool   // what it takes
	garbled bool   // it says nothing that can be made out
	room    uint64 // gas of a block that it says; 0: the chain's
	allows  bool   // no estimate
}

func (p *picky) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *picky) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.garbled:
		return errors.New("out of order")
	case p.most > 0 && len(tx.Data()) > 0 && tx.GasFeeCap().Cmp(big.NewInt(p.most*1e9)) > 0:
		return errors.New("tx fee (1.20 ether) exceeds the configured cap (1.00 ether)")
	case p.bytes > 0 && len(tx.Data()) > p.bytes:
		return errors.New("oversized data: transaction size 144310, limit 131072")
	case p.drops:
		return nil
	}
	return p.Backend.SendTransaction(ctx, tx)
}

func (p *picky) HeaderByNumber(ctx context.Context, n *big.Int) (*types.Header, error) {
	head, err := p.Backend.HeaderByNumber(ctx, n)
	if err == nil && p.room > 0 {
		head.GasLimit = p.room
	}
	return head, err
}

func (p *picky) EstimateGas(ctx context.Context, msg ethereum.CallMsg) (uint64, error) {
	if p.allows {
		return 0, errors.New("gas required exceeds allowance (50000000)")
	}
	return p.Backend.EstimateGas(ctx, msg)
}

func (w *world) picky(t *testing.T) (*chain.Sender, *picky) {
	t.Helper()
	s := w.sender(t, w.Keys[0])
	node := &picky{Backend: w.Backend}
	s.Backend, s.Stuck, s.Resend = node, 100*time.Millisecond, 50*time.Millisecond
	w.Automine(t, false)
	return s, node
}

// approve queues a call about so many channels.
func (w *world) approve(t *testing.T, s *chain.Sender, amount uint64, channels int) chain.TxID {
	t.Helper()
	call := w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(amount))
	for i := range channels {
		call.Channels = append(call.Channels, common.Hash{byte(i + 1), byte(amount)})
	}
	id, err := s.Submit(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (w *world) base(t *testing.T, gwei int64) {
	t.Helper()
	w.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(big.NewInt(gwei*1e9)))
	w.Mine(t, 1)
}

func (w *world) mined(t *testing.T, s *chain.Sender, what string) {
	t.Helper()
	within(t, what, func() bool {
		w.looks(t, s, 1)
		flying, err := s.InFlight(t.Context())
		return err == nil && len(flying) == 0
	})
}

// What every node refused for its price in a spike of fees is signed for less when the spike is over, and holds up nothing behind it.
func TestRefusedInASpikeIsSignedForLess(t *testing.T) {
	w := newWorld(t)
	s, node := w.picky(t)
	node.most = 100
	w.base(t, 200)
	first := w.approve(t, s, 1, 0)
	dear := versions(t, s)[0].Signed
	second := w.approve(t, s, 2, 0)
	w.base(t, 1)
	w.mined(t, s, "both are mined")
	for _, id := range []chain.TxID{first, second} {
		result, err := s.Wait(t.Context(), id, 1)
		if err != nil {
			t.Fatal(err)
		}
		if price := result.Receipt.EffectiveGasPrice; price.Cmp(big.NewInt(10e9)) > 0 || result.Hash == dear.Hash() {
			t.Errorf("mined for %s wei a gas", price)
		}
	}
}

// Where fees stay high less than twice the base fee is offered, for as long as a block takes it: the node's bound may lie between.
func TestRefusedInASpikeIsMinedInIt(t *testing.T) {
	w := newWorld(t)
	s, node := w.picky(t)
	node.most = 310
	w.base(t, 200)
	id := w.approve(t, s, 1, 0)
	within(t, "it is mined", func() bool {
		w.at(t, s, 200, 1)
		flying, err := s.InFlight(t.Context())
		return err == nil && len(flying) == 0
	})
	if _, err := s.Wait(t.Context(), id, 1); err != nil {
		t.Error(err)
	}
}

// What is too large for every node is given up for its nonce, and what waits behind it is mined.
func TestTooLargeIsGivenUp(t *testing.T) {
	w := newWorld(t)
	s, node := w.picky(t)
	node.bytes = 60
	large := w.approve(t, s, 1, 2)
	node.set(func() { node.bytes = 100 })
	behind := w.approve(t, s, 2, 0)
	node.set(func() { node.bytes = 60 })
	within(t, "the nonce is used up", func() bool {
		w.looks(t, s, 1)
		flying, err := s.InFlight(t.Context())
		return err == nil && !slices.ContainsFunc(flying, func(tx chain.Tx) bool { return tx.ID == large })
	})
	_, err := s.Wait(t.Context(), large, 1)
	var reverted *chain.Reverted
	if !errors.As(err, &reverted) || !errors.Is(err, chain.ErrTooLarge) {
		t.Errorf("who waits for it hears %v", err)
	}
	node.set(func() { node.bytes = 0 })
	if _, err := s.Wait(t.Context(), behind, 1); err != nil {
		t.Error(err)
	}
}

// Too dear for many channels together, at fees that stay: it is given up, so that fewer can be settled at a time. One for a single
// channel waits.
func TestTooDearTogetherIsGivenUp(t *testing.T) {
	w := newWorld(t)
	s, node := w.picky(t)
	w.base(t, 200)
	node.most = 150
	many := w.approve(t, s, 1, 2)
	one := w.approve(t, s, 2, 1)
	within(t, "it is given up", func() bool {
		w.at(t, s, 200, 1)
		all, err := s.Find(t.Context(), common.Hash{1, 1})
		return err == nil && all[0].State != chain.Pending
	})
	if _, err := s.Wait(t.Context(), many, 1); !errors.Is(err, chain.ErrTooLarge) {
		t.Errorf("who waits for it hears %v", err)
	}
	w.at(t, s, 200, 8)
	for _, a := range versions(t, s) {
		if len(a.Signed.Data()) == 0 {
			t.Error("the one for a single channel was given up")
		}
	}
	w.base(t, 1)
	w.mined(t, s, "the other one is mined")
	if _, err := s.Wait(t.Context(), one, 1); err != nil {
		t.Error(err)
	}
}

// What somebody may have is replaced by what offers more, and by nothing else: by no lower fee, though each node refuses what was
// signed after it. It is sent again until it is mined.
func TestWhatWasTakenIsNotUnderbid(t *testing.T) {
	for name, more := range map[string]int64{"refused since": -1, "what comes after it is refused": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s, node := w.picky(t)
			node.drops = true
			w.base(t, 10)
			id := w.approve(t, s, 1, 2)
			taken := versions(t, s)[0].Signed
			node.set(func() { node.most = new(big.Int).Div(taken.GasFeeCap(), big.NewInt(1e9)).Int64() + more })
			w.at(t, s, 10, 16)
			all := versions(t, s)
			if len(all) < 2 {
				t.Fatal("no second version")
			}
			for _, a := range all[1:] {
				if a.Signed.GasFeeCap().Cmp(taken.GasFeeCap()) <= 0 || len(a.Signed.Data()) == 0 {
					t.Errorf("%s wei a gas takes the place of %s", a.Signed.GasFeeCap(), taken.GasFeeCap())
				}
			}
			node.set(func() { node.drops, node.most = false, max(0, more)*node.most })
			w.mined(t, s, "it is mined")
			if result, err := s.Wait(t.Context(), id, 1); err != nil || more > 0 && result.Hash != taken.Hash() {
				t.Errorf("mined in %+v, %v", result, err)
			}
		})
	}
}

// A refusal in words that nobody knows leaves open whether the node has the version: none for less takes its place.
func TestRefusalInUnknownWordsIsNotUnderbid(t *testing.T) {
	w := newWorld(t)
	s, node := w.picky(t)
	node.garbled = true
	w.base(t, 50)
	id := w.approve(t, s, 1, 2)
	w.base(t, 1)
	w.at(t, s, 1, 12)
	all := versions(t, s)
	for i, a := range all[1:] {
		if a.Signed.GasFeeCap().Cmp(all[i].Signed.GasFeeCap()) <= 0 {
			t.Errorf("version %d offers %s, the one before %s", i+1, a.Signed.GasFeeCap(), all[i].Signed.GasFeeCap())
		}
	}
	node.set(func() { node.garbled = false })
	w.mined(t, s, "it is mined")
	if _, err := s.Wait(t.Context(), id, 1); err != nil {
		t.Error(err)
	}
}

// Of two endpoints one takes a transaction, be it that its answer is lost, and the other one refuses it for its price: it waits as it
// is.
func TestOneEndpointsBoundUnderbidsNothing(t *testing.T) {
	const send, bound = "eth_sendRawTransaction", "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)"
	for name, other := range map[string]func(*badrpc.Endpoint){
		"takes it":           func(*badrpc.Endpoint) {},
		"its answer is lost": func(two *badrpc.Endpoint) { two.On(send, badrpc.Status(http.StatusServiceUnavailable)) },
		"refuses it too":     func(two *badrpc.Endpoint) { two.Instead(send, badrpc.Fail(-32000, bound)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.sender(t, w.Keys[0])
			backend, one, two, _ := w.pair(t)
			s.Backend, s.Stuck, s.Resend = backend, 100*time.Millisecond, 50*time.Millisecond
			w.Automine(t, false)
			w.base(t, 50)
			one.Instead(send, badrpc.Fail(-32000, bound))
			other(two)
			w.approve(t, s, 1, 2)
			for range 12 { // no block comes
				time.Sleep(s.Stuck / 4)
				_ = s.Sync(t.Context())
			}
			if n := len(versions(t, s)); (n > 1) != (name == "refuses it too") {
				t.Errorf("%d versions", n)
			}
		})
	}
}

// What no node would take is refused before a nonce is signed for it: too much data, or more gas for several channels than half
// of a block or than a node estimates.
func TestTooLargeIsNotSigned(t *testing.T) {
	w := newWorld(t)
	s, node := w.picky(t)
	call := w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))
	large := call
	large.Data = append(slices.Clone(call.Data), make([]byte, 96<<10)...)
	if _, err := s.Submit(t.Context(), large); !errors.Is(err, chain.ErrTooLarge) {
		t.Errorf("%d bytes: %v", len(large.Data), err)
	}
	call.Channels = []common.Hash{{1}, {2}}
	node.allows = true
	if _, err := s.Submit(t.Context(), call); !errors.Is(err, chain.ErrTooLarge) {
		t.Errorf("beyond the node's allowance: %v", err)
	}
	node.allows, node.room = false, 150_000
	if _, err := s.Submit(t.Context(), call); !errors.Is(err, chain.ErrTooLarge) {
		t.Errorf("more than half of a block: %v", err)
	}
	if flying, err := s.InFlight(t.Context()); err != nil || len(flying) > 0 {
		t.Errorf("%d are in the outbox, %v", len(flying), err)
	}
	call.Channels = call.Channels[:1]
	if _, err := s.Submit(t.Context(), call); err != nil {
		t.Errorf("for one channel: %v", err)
	}
	if text := chain.ErrTooLarge.Error(); !strings.Contains(text, "fewer channels") {
		t.Error(text)
	}
}
