package x402client

import (
	"context"
	"errors"
	"math/big"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

// TestX402LeavesNotBehindADeposit: while a deposit may still arrive nothing is withdrawn, and who stops waiting for it is
// not told that it is over.
func TestX402LeavesNotBehindADeposit(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	s := n.account()
	s.Deposit = &x402.Deposit{Authorization: x402.Authorization{ValidBefore: x402.Seconds(time.Now().Add(time.Hour).Unix()), Salt: x402.Hash{1}}}
	s.Deposit.Amount.Int = *uint256.NewInt(1)
	if err := n.x.accounts().Save(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	paid, err := n.x.payer.State(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	b := &leaving{ledger{x: n.x, terms: paid.Terms, id: s.ID}}
	if _, err := b.beginLeaving(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if n.account().Leaving {
		t.Error("it left behind a deposit that may still arrive")
	}
}

// plain is an endpoint of a token that does nothing when it is asked for ERC-3009.
type plain struct{ chain.Backend }

func (p plain) CallContract(ctx context.Context, call ethereum.CallMsg, block *big.Int) ([]byte, error) {
	if call.From != (common.Address{}) {
		return nil, nil
	}
	return p.Backend.CallContract(ctx, call, block)
}

// TestX402SignsNoDepositThatCannotWork: a deposit that the token cannot move, or that is not there, is not signed.
func TestX402SignsNoDepositThatCannotWork(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	b := &ledger{x: n.x, terms: channel.Terms{Payer: n.key.Address()}}
	for amount, want := range map[uint64]error{1: nil, tenantPurse: nil, tenantPurse + 1: wallet.ErrBalance} {
		if err := b.afford(t.Context(), *uint256.NewInt(amount)); !errors.Is(err, want) {
			t.Errorf("%d: %v, want %v", amount, err, want)
		}
	}
	var err error
	if n.x.w.Token, err = chain.NewToken(t.Context(), plain{n.Backend}, n.Config.Token); err != nil {
		t.Fatal(err)
	}
	if err := b.afford(t.Context(), *uint256.NewInt(1)); !errors.Is(err, ErrNotOffered) {
		t.Errorf("a token without ERC-3009: %v", err)
	}
}

// full is a disk that takes nothing more.
type full struct{ channel.PayerStore }

var errFull = errors.New("no space left")

func (full) Update(context.Context, common.Hash, string, func(*channel.PayerState, channel.Budget) error) (channel.PayerState, error) {
	return channel.PayerState{}, errFull
}

// TestX402BooksWhatItSees: what the chain says of a channel and the disk does not take was not seen: nothing is paid on it.
func TestX402BooksWhatItSees(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	n.x.payer.Store = full{n.x.payer.Store}
	b := &ledger{x: n.x, id: n.account().ID}
	if _, _, err := b.observe(t.Context()); !errors.Is(err, errFull) {
		t.Errorf("%v", err)
	}
}

// hiccup is an endpoint that may not answer the next question about a contract.
type hiccup struct {
	chain.Backend
	next atomic.Bool
}

func (h *hiccup) CallContract(ctx context.Context, call ethereum.CallMsg, block *big.Int) ([]byte, error) {
	if h.next.Swap(false) {
		return nil, chain.ErrUnreachable
	}
	return h.Backend.CallContract(ctx, call, block)
}

// TestX402DepositThatCannotBeLookedFor: a deposit that was used, of which the endpoint does not say whether it arrived, is not sent
// again, nor counted a second time; the next request looks again, and needs none.
func TestX402DepositThatCannotBeLookedFor(t *testing.T) {
	t.Parallel()
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	s.Instead = func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
		s.Bank(p)
		w.WriteHeader(http.StatusBadGateway)
		return true
	}
	if resp, err := s.get(x); err != nil || resp.StatusCode != http.StatusBadGateway {
		t.Fatal(resp, err)
	}
	s.Instead = nil
	endpoint := &hiccup{Backend: s.Backend}
	var err error
	if x.escrow, err = chain.NewBatchSettlement(t.Context(), endpoint); err != nil {
		t.Fatal(err)
	}
	endpoint.next.Store(true)
	if _, err := s.get(x); !errors.Is(err, chain.ErrUnreachable) || len(s.Paid) != 1 {
		t.Errorf("%v, %d payments", err, len(s.Paid))
	}
	if s.buy(x); s.Paid[len(s.Paid)-1].Payload.Deposit != nil {
		t.Error("the deposit was sent again")
	}
}
