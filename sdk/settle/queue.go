package settle

import (
	"context"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A queue is which channels are urgent, which are being settled, and which are kept back since their settlement failed alone.
// A channel is settled by one goroutine at a time.
type queue struct {
	mu       sync.Mutex
	sequence uint64                   // how often something was called urgent
	urged    map[common.Hash]uint64   // and at which number, the newest
	claimed  map[common.Hash]uint64   // somebody is settling it, and has heard this many
	kept     map[common.Hash]*backoff // it failed alone
}

// A backoff keeps a channel that failed out of the others' way for a while.
type backoff struct {
	since time.Time
	wait  time.Duration
	pace  chain.Backoff
}

// over reports whether the channel has waited long enough. A clock that was set back further than the wait ends it: otherwise
// a channel that closes could stay out for as long as the clock went back.
func (b *backoff) over(now time.Time) bool { return now.Sub(b.since).Abs() >= b.wait }

// urge has a channel settled without waiting for value or age.
func (q *queue) urge(id common.Hash) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.urged == nil {
		q.urged = make(map[common.Hash]uint64)
	}
	q.sequence++
	q.urged[id] = q.sequence
}

func (q *queue) urgent(id common.Hash) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.urged[id] > 0
}

func (q *queue) hasUrgent() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.urged) > 0
}

// heard is how often something was called urgent so far: what is read after it includes what that is about.
func (q *queue) heard() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.sequence
}

// claim takes those of the channels that nobody else settles at this moment.
func (q *queue) claim(states []channel.State) []channel.State {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.claimed == nil {
		q.claimed = make(map[common.Hash]uint64)
	}
	var mine []channel.State
	for _, state := range states {
		if _, taken := q.claimed[state.ID]; !taken {
			q.claimed[state.ID] = q.sequence
			mine = append(mine, state)
		}
	}
	return mine
}

// acquire claims all of the channels, waiting for who settles them already.
func (q *queue) acquire(ctx context.Context, states []channel.State) ([]channel.State, error) {
	var mine []channel.State
	for {
		got := q.claim(states)
		mine = append(mine, got...)
		states = except(states, got)
		if len(states) == 0 {
			return mine, nil
		}
		if err := chain.Pause(ctx, 100*time.Millisecond); err != nil {
			q.release(mine)
			return nil, err
		}
	}
}

func (q *queue) release(states []channel.State) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, state := range states {
		delete(q.claimed, state.ID)
	}
}

// free are those of the channels that are neither claimed nor kept back.
func (q *queue) free(states []channel.State, now time.Time) (free []channel.State) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, state := range states {
		_, taken := q.claimed[state.ID]
		if b := q.kept[state.ID]; !taken && (b == nil || b.over(now)) {
			free = append(free, state)
		}
	}
	return free
}

// served forgets that a channel was called urgent before it was claimed: what was accepted until then is settled. A word
// that came later may be about more.
func (q *queue) served(id common.Hash) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.urged[id] <= q.claimed[id] {
		delete(q.urged, id)
	}
}

// calm forgets the urgency, as of what was heard, of what is not worth a transaction: looking at it again and again does not make
// it more.
func (q *queue) calm(waiting []Waiting, heard uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range waiting {
		if q.urged[w.ID] <= heard {
			delete(q.urged, w.ID)
		}
	}
}

// forget forgets of channels that have nothing to settle that they are kept back, and their urgency of before that was read.
func (q *queue) forget(unsettled []channel.State, heard uint64) {
	waiting := make(map[common.Hash]bool, len(unsettled))
	for _, state := range unsettled {
		waiting[state.ID] = true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for id, word := range q.urged {
		if !waiting[id] && word <= heard {
			delete(q.urged, id)
		}
	}
	for id := range q.kept {
		if !waiting[id] {
			delete(q.kept, id)
		}
	}
}

// backOff keeps a channel back for a while, longer each time it fails, and most at most.
func (q *queue) backOff(id common.Hash, now time.Time, most time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.kept[id]
	if b == nil {
		if q.kept == nil {
			q.kept = make(map[common.Hash]*backoff)
		}
		b = &backoff{pace: chain.Backoff{Least: 10 * time.Second, Most: most}}
		q.kept[id] = b
	}
	b.since, b.wait = now, b.pace.Next()
}
