package tower

import (
	"context"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// Teller is a feed to one tower that tells when it is asked to, at a time of the test's.
type Teller struct {
	feed *Feed
	told map[common.Hash]heard
}

func NewTeller(f *Feed) *Teller { return &Teller{f, make(map[common.Hash]heard)} }

func (t *Teller) Tell(ctx context.Context, url string, at time.Time) error {
	t.feed.now = func() time.Time { return at }
	return t.feed.tell(ctx, url, t.told)
}

// Order has what is due in the order in which it is settled at a time, by the chain's clock.
func (t *Tower) Order(now time.Time, due []channel.State) {
	other := Tower{config: t.config, escrow: t.escrow, least: t.least}
	other.now.Store(now.Unix())
	slices.SortStableFunc(due, other.first)
}
