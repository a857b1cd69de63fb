package tower_test

import (
	"bytes"
	"context"
	"errors"
	"math/big"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// lame is an endpoint that fails at one moment of a withdrawal and serves everything else.
type lame struct {
	chain.Backend
	settle, withdraw         []byte      // what the calls begin with
	noSettling, noHeaders    atomic.Bool // what fails
	settlements, withdrawals atomic.Int64
}

func (e *lame) EstimateGas(ctx context.Context, call ethereum.CallMsg) (uint64, error) {
	switch {
	case bytes.HasPrefix(call.Data, e.withdraw):
		e.withdrawals.Add(1)
	case bytes.HasPrefix(call.Data, e.settle) && e.noSettling.Load():
		e.settlements.Add(1)
		return 0, rpc.ErrClientQuit
	}
	return e.Backend.EstimateGas(ctx, call)
}

func (e *lame) HeaderByNumber(ctx context.Context, number *big.Int) (*types.Header, error) {
	if e.noHeaders.Load() {
		return nil, rpc.ErrClientQuit
	}
	return e.Backend.HeaderByNumber(ctx, number)
}

// A payer's withdrawal waits while what the payee is due cannot be brought to the chain, or the chain's time cannot be
// read: an endpoint that fails then costs the payee nothing, and nobody is told that the grace period is not over.
func TestTowerWithdrawsNothingOnABrokenEndpoint(t *testing.T) {
	l := newLookout(t, nil)
	terms := l.Open(1, 1000)
	v := l.sign(l.Payer, terms, 400)
	backend := &lame{Backend: l.Backend, settle: l.Contract.SettleCall(terms, v.Cumulative.Int, v.Signature).Data[:4], withdraw: l.Contract.WithdrawCall(terms).Data[:4]}
	backend.noSettling.Store(true)
	l.stop()
	l.config.Chain.Backend = backend
	l.up()
	l.voucher(v)
	if status, answer := l.post("/close-requests", l.request(l.Payer, terms, 0, 1<<40)); status != http.StatusOK {
		t.Fatalf("%d %s", status, answer)
	}
	l.AdvanceTime(t, chaintest.Grace)

	for range 3 {
		tried := backend.settlements.Load()
		err := l.tower.Withdraw(t.Context(), terms)
		if !errors.Is(err, chain.ErrUnreachable) {
			t.Errorf("withdrawn without settling first: %v", err)
		}
		if backend.settlements.Load() == tried {
			t.Error("no settlement was tried")
		}
	}
	backend.noHeaders.Store(true)
	if status, answer := l.post("/withdrawals", wire.NewTerms(terms)); status != http.StatusServiceUnavailable {
		t.Errorf("without the chain's time: %d %s", status, answer)
	}
	backend.noHeaders.Store(false)
	if n := backend.withdrawals.Load(); n != 0 || l.view(terms).Finalized {
		t.Fatalf("%d withdrawals were tried before the settlement", n)
	}

	backend.noSettling.Store(false)
	l.Eventually("it is withdrawn", func() bool { return l.view(terms).Finalized })
	l.paidOut(400, 0)
	if l.sent() != 3 { // request, settlement, withdrawal
		t.Errorf("the tower sent %d transactions, want 3", l.sent())
	}
}
