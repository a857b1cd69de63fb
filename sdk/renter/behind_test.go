package renter_test

import (
	"context"
	"math/big"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// behind is an endpoint of two nodes, one of which is two blocks late.
type behind struct {
	chain.Backend
	calls atomic.Int64
}

func (b *behind) BlockNumber(ctx context.Context) (uint64, error) {
	head, err := b.Backend.BlockNumber(ctx)
	if b.calls.Add(1)%2 == 0 {
		head -= min(head, 2)
	}
	return head, err
}

// TestBooksOfTheEnd: one node says that the channel is closed, the next one does
// not know yet. The renter writes down what was settled in the end, and nothing
// from before.
func TestBooksOfTheEnd(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	for range 4 { // the nodes take turns, so that either may be asked first
		config := renterrig.Config(t, m, m.Newcomer(t))
		config.Chain.Backend = &behind{Backend: m.Backend}
		r := renterrig.Open(t, config)
		l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		done := renterrig.Background(t.Context(), l)
		testrig.Eventually(t, "a paid record", func() bool { s := l.Snapshot(); return !s.Paid.IsZero() })
		m.Mine(t, 3) // both know that it was opened
		// The late node catches up when there are blocks.
		blocks := time.AfterFunc(500*time.Millisecond, func() { _ = m.Backend.Client().Call(nil, "anvil_mine", "0x4") })
		closing, err := l.Close(t.Context())
		blocks.Stop()
		<-done
		if err != nil || closing.Settled.IsZero() || closing.Settled != closing.Owed {
			t.Fatalf("owed %s, settled %s: %v", closing.Owed.Dec(), closing.Settled.Dec(), err)
		}
	}
}

// farBehind is an endpoint that stopped following the chain some blocks ago, while late is not zero.
type farBehind struct {
	chain.Backend
	late atomic.Int64
}

func (b *farBehind) HeaderByNumber(ctx context.Context, number *big.Int) (*types.Header, error) {
	head, err := b.Backend.HeaderByNumber(ctx, number)
	if late := b.late.Load(); err == nil && number == nil && late != 0 {
		return b.Backend.HeaderByNumber(ctx, new(big.Int).SetUint64(head.Number.Uint64()-uint64(late)))
	}
	return head, err
}

// TestEndBesideAnEndpointThatStandsStill: a rental that ended stays so where the endpoint is behind its end, by some blocks or
// by more than any re-org undoes.
func TestEndBesideAnEndpointThatStandsStill(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	m.Mine(t, 100) // that it can be behind by
	config := renterrig.Config(t, m, m.Payer)
	endpoint := &farBehind{Backend: m.Backend}
	config.Chain.Backend = endpoint
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, late := range []int64{1, 33, 100} {
		endpoint.late.Store(late)
		if all, err := r.Rentals(t.Context()); err != nil || len(all) != 1 || all[0].Phase != renter.PhaseClosed {
			t.Errorf("an endpoint that is %d blocks behind: %+v, %v", late, all, err)
		}
	}
}
