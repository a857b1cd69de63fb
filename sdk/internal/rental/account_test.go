package rental

import (
	"context"
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// oneBlock is an endpoint that says when its newest block was.
type oneBlock struct {
	chain.Backend
	time uint64
}

func (b oneBlock) HeaderByNumber(context.Context, *big.Int) (*types.Header, error) {
	return &types.Header{Number: big.NewInt(7), Time: b.time}, nil
}

// TestNoBlockIsLaterThanOurClock: whatever time an endpoint says of a block, what is read as of it is no later than our own clock,
// or than that may be off.
func TestNoBlockIsLaterThanOurClock(t *testing.T) {
	const now, off = 1_900_000_000, 60
	for _, said := range []uint64{0, now - 1, now + off/2, now + 2*off, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64} {
		a := &Account{wallet: &wallet.Wallet{Backend: oneBlock{time: said}, Now: func() time.Time { return time.Unix(now, 0) }, ClockOff: off * time.Second}}
		at, err := a.Moment(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if at.time != min(said, now) || at.mined != min(said, now+off) {
			t.Errorf("a block of %d counts as of %d, mined at %d", said, at.time, at.mined)
		}
	}
}
