package tower

import (
	"context"
	"slices"
	"time"

	"github.com/gpupay/gpupay/channel"
)

// Teller is a feed to one tower that tells when it is asked to, at a time of the test's.
type Teller struct {
	feed *Feed
	to   *listener
}

func NewTeller(f *Feed) *Teller { return &Teller{f, newListener()} }

func (t *Teller) Tell(ctx context.Context, url string, at time.Time) error {
	t.feed.now = func() time.Time { return at }
	return t.feed.tell(ctx, url, t.to)
}

// Order has what is due in the order in which it is settled at a time, by the chain's clock.
func (t *Tower) Order(now time.Time, due []channel.State) {
	other := dutyStore{watched: t.watched}
	other.now.Store(now.Unix())
	slices.SortStableFunc(due, other.first)
}

// Leaves is how many leaves are looked after, -1 where they cannot be read.
func (t *Tower) Leaves(ctx context.Context) int {
	open, err := t.relay.leaves.open(ctx)
	if err != nil {
		return -1
	}
	return len(open)
}

// Ending is how many leaves seem to be over.
func (t *Tower) Ending() int {
	t.relay.endings.mu.Lock()
	defer t.relay.endings.mu.Unlock()
	return len(t.relay.endings.all)
}

// Age has leaves seem to be over for so much longer, and looked at now.
func (t *Tower) Age(by time.Duration) {
	t.relay.endings.mu.Lock()
	defer t.relay.endings.mu.Unlock()
	for id, e := range t.relay.endings.all {
		t.relay.endings.all[id] = ending{e.since.Add(-by), e.block}
		t.relay.tire(id, nil)
	}
}
