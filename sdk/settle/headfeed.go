package settle

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/sdk/chain"
)

// headFeed announces new blocks where the endpoint does (WebSocket). It is never relied on: a subscription can end, or go
// quiet, so its user also looks from time to time.
type headFeed struct {
	backend chain.Backend
	log     *slog.Logger

	sub     ethereum.Subscription
	heads   chan *types.Header
	polling bool // the endpoint cannot announce
	retry   time.Time
	pace    chain.Backoff
}

// open subscribes if there is no subscription and it is time to try.
func (f *headFeed) open(ctx context.Context) {
	if f.sub != nil || f.polling || time.Now().Before(f.retry) {
		return
	}
	heads := make(chan *types.Header, 16)
	sub, err := f.backend.SubscribeNewHead(ctx, heads)
	switch {
	case err == nil:
		f.sub, f.heads = sub, heads
		f.pace.Reset()
	case errors.Is(err, rpc.ErrNotificationsUnsupported):
		f.polling = true
	default:
		f.retry = time.Now().Add(f.pace.Next())
		f.log.Warn("subscribing to new blocks; polling meanwhile", "err", err)
	}
}

// live reports whether blocks are announced at this moment.
func (f *headFeed) live() bool { return f.sub != nil }

// next waits for a new block, but no longer than d.
func (f *headFeed) next(ctx context.Context, d time.Duration) error {
	if f.sub == nil {
		return chain.Pause(ctx, d)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-f.sub.Err():
		f.log.Warn("subscription to new blocks ended; polling meanwhile", "err", err)
		f.close()
		f.retry = time.Now().Add(f.pace.Next())
	case <-f.heads:
		f.drain()
	case <-timer.C:
	}
	return nil
}

// drain drops announcements that piled up: the newest block is read anyway.
func (f *headFeed) drain() {
	for {
		select {
		case <-f.heads:
		default:
			return
		}
	}
}

func (f *headFeed) close() {
	if f.sub != nil {
		f.sub.Unsubscribe()
		f.sub = nil
	}
}
