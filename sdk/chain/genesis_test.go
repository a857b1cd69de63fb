package chain_test

import (
	"context"
	"errors"
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// pruned is an endpoint that gives away no block 0.
type pruned struct{ chain.Backend }

func (p pruned) HeaderByNumber(ctx context.Context, number *big.Int) (*types.Header, error) {
	if number != nil && number.Sign() == 0 {
		return nil, errors.New("pruned history unavailable")
	}
	return p.Backend.HeaderByNumber(ctx, number)
}

// A database takes the first block that it is shown for its chain's; what shows none is neither refused nor kept.
func TestGenesis(t *testing.T) {
	one, other := chaintest.Anvil(t), chaintest.Anvil(t, "--timestamp", "1700000000")
	s, _ := openStore(t, file(t))
	for i, step := range []struct {
		backend chain.Backend
		want    error
	}{
		{pruned{one.Backend}, nil}, {one.Backend, nil}, {other.Backend, chain.ErrChainID}, {pruned{other.Backend}, nil}, {one.Backend, nil},
	} {
		if err := s.CheckGenesis(t.Context(), step.backend); !errors.Is(err, step.want) || err != nil && step.want == nil {
			t.Errorf("step %d: %v, want %v", i, err, step.want)
		}
	}
	agreeing, err := chain.Connect(t.Context(), other.URL+","+badrpc.New(t, other.URL).URL, nil)
	if err == nil {
		err = s.CheckGenesis(t.Context(), agreeing)
	}
	if !errors.Is(err, chain.ErrChainID) {
		t.Errorf("two endpoints of another chain are taken: %v", err)
	}
	contradicting, err := chain.Connect(t.Context(), one.URL+","+other.URL, nil)
	if err == nil {
		err = s.CheckGenesis(t.Context(), contradicting)
	}
	if err != nil {
		t.Errorf("of two endpoints one alone stops a program: %v", err)
	}
}
