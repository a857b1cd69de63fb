package tower

import (
	"context"
	"time"

	"github.com/ethereum/go-ethereum/common"
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
