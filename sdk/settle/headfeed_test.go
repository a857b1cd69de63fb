package settle

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/sdk/chain"
)

// announcer is an endpoint of which only the subscription matters.
type announcer struct {
	chain.Backend
	refuses int
}

func (a *announcer) SubscribeNewHead(context.Context, chan<- *types.Header) (ethereum.Subscription, error) {
	if a.refuses--; a.refuses >= 0 {
		return nil, errors.New("not now")
	}
	return &subscription{}, nil
}

type subscription struct{ ethereum.Subscription }

// TestSubscriptionPauseBeginsAnew: what broke again after it worked is not retried as late as what never worked.
func TestSubscriptionPauseBeginsAnew(t *testing.T) {
	f := &headFeed{backend: &announcer{refuses: 5}, log: slog.New(slog.DiscardHandler)}
	for f.sub == nil {
		f.retry = time.Time{}
		f.open(t.Context())
	}
	if f.pace != (chain.Backoff{}) {
		t.Errorf("after it worked: %+v", f.pace)
	}
}
