package x402server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// Claims make this gateway the only one to serve a channel, for as long as that takes. When it dies, the others wait until its
// claim has ended.
type Claims struct {
	Shared bool // other gateways serve the same channels
	Locks  leasestore.Locks
	Life   func() context.Context // claims are renewed until it ends
	Poll   time.Duration          // how often one that another gateway has is asked for
	Log    *slog.Logger

	held sync.Map // *heldClaim, by channel
}

type heldClaim struct{ claim *leasestore.Lock }

// Take waits for the claim of a channel: nil where this gateway is alone anyway.
func (c *Claims) Take(ctx context.Context, id common.Hash) (*leasestore.Lock, error) {
	if !c.Shared {
		return nil, nil
	}
	if h, ok := c.held.LoadAndDelete(id); ok {
		claim := h.(*heldClaim).claim
		err := claim.Held(ctx)
		if err == nil {
			return claim, nil
		}
		if claim.Release(ctx); !errors.Is(err, leasestore.ErrLockLost) {
			return nil, err
		}
	}
	return c.Locks.Take(ctx, c.Life(), "x402 "+id.Hex(), c.Poll, c.Log)
}

// Hold keeps a claim for the channel's next request here, where one was corrected that will come again, and gives it back if
// that does not come in time.
func (c *Claims) Hold(id common.Hash, claim *leasestore.Lock, within time.Duration) {
	if claim == nil {
		return
	}
	h := &heldClaim{claim}
	c.held.Store(id, h)
	time.AfterFunc(within, func() {
		if c.held.CompareAndDelete(id, h) {
			claim.Release(context.Background())
		}
	})
}
