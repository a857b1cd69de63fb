package sdk

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// alone makes this gateway the only one to serve a channel, for as long as that takes: nil where it is alone anyway.
// When it dies, the others wait until its claim has ended.
func (d *x402Desk) alone(ctx context.Context, id common.Hash) (*leasestore.Lock, error) {
	if !d.shared {
		return nil, nil
	}
	if c := d.held.take(id); c != nil {
		err := c.Held(ctx)
		if err == nil {
			return c, nil
		}
		if c.Release(ctx); !errors.Is(err, leasestore.ErrLockLost) {
			return nil, err
		}
	}
	return d.store.Locks.Take(ctx, d.leases.lifetime(), "x402 "+id.Hex(), d.poll/4, d.config.Log)
}

// yield lets other gateways serve a channel: at once or, where a request was
// corrected that will come again, a moment later.
func (d *x402Desk) yield(ctx context.Context, id common.Hash, c *leasestore.Lock, later bool) {
	if c == nil || !later {
		c.Release(ctx)
		return
	}
	d.held.put(id, c, d.queue.Hold)
}

// heldClaims are claims of channels whose queue waits for a corrected request, by channel: heldClaim.
type heldClaims struct{ sync.Map }

type heldClaim struct{ claim *leasestore.Lock }

// put holds a claim for a while, and gives it back if nobody takes it.
func (h *heldClaims) put(id common.Hash, held *leasestore.Lock, hold time.Duration) {
	c := &heldClaim{held}
	h.Store(id, c)
	time.AfterFunc(hold, func() {
		if h.CompareAndDelete(id, c) {
			held.Release(context.Background())
		}
	})
}

// take hands a claim that is still held over to the next request.
func (h *heldClaims) take(id common.Hash) *leasestore.Lock {
	c, ok := h.LoadAndDelete(id)
	if !ok {
		return nil
	}
	return c.(*heldClaim).claim
}

// notice tells a lease that runs here what requests at other gateways reserved.
func (d *x402Desk) notice(ctx context.Context, l *lease.Lease) error {
	if d == nil || l.Credit.Postpaid() {
		return nil
	}
	note, err := d.Journal.Balance(ctx, l.Terms.ID())
	if err != nil {
		return err
	}
	if v, _ := l.Snapshot(); note.Reserved.Gt(&v.Reserved) {
		l.Reserve(note.Reserved)
	}
	return nil
}
