package settle

import (
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
)

// A queue is which channels are urgent, which are being settled, and which are kept back since their settlement failed alone.
// A channel is settled by one goroutine at a time.
type queue struct {
	mu       sync.Mutex
	sequence uint64                   // how often something was called urgent
	urged    map[common.Hash]uint64   // and at which number, the newest
	claims   uint64                   // how often channels were claimed in order to settle them
	claimed  map[common.Hash]claim    // somebody is settling it
	tried    map[common.Hash]attempt  // and has done so
	kept     map[common.Hash]*backoff // it failed alone
}

// A claim is one goroutine's, for as long as its own transaction of the channel takes and no longer: who waits for others meanwhile
// holds none.
type claim struct {
	heard  uint64 // how often something had been called urgent
	number uint64 // among all claims; 0: nothing is settled, what is under way is waited for
}

// An attempt is what came of the newest claim of a channel that is over.
type attempt struct {
	number uint64 // the claim's
	err    error
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

// claim takes those of the channels that nobody else settles at this moment, in order to settle them.
func (q *queue) claim(states []channel.State) []channel.State {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.claims++
	return q.take(states, q.claims)
}

// watch takes those for which a transaction is under way.
func (q *queue) watch(states []channel.State) []channel.State {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.take(states, 0)
}

// take is claim under a number. The lock is held.
func (q *queue) take(states []channel.State, number uint64) (mine []channel.State) {
	if q.claimed == nil {
		q.claimed, q.tried = make(map[common.Hash]claim), make(map[common.Hash]attempt)
	}
	for _, state := range states {
		if _, taken := q.claimed[state.ID]; !taken {
			q.claimed[state.ID] = claim{q.sequence, number}
			mine = append(mine, state)
		}
	}
	return mine
}

// mark is what claims are newer than that begin from now on.
func (q *queue) mark() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.claims
}

// sort claims those of the channels that are free, and tells those that somebody else has tried by a claim since a mark from those
// that somebody has.
func (q *queue) sort(states []channel.State, since uint64) (mine, tried, left []channel.State) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, state := range states {
		if q.tried[state.ID].number > since {
			tried = append(tried, state)
		} else {
			left = append(left, state)
		}
	}
	q.claims++
	mine = q.take(left, q.claims)
	return mine, tried, except(left, mine)
}

// release gives channels back as they were.
func (q *queue) release(states []channel.State) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, state := range states {
		delete(q.claimed, state.ID)
	}
}

// why is what the newest claim of a channel failed by; nil: by nothing that concerns it.
func (q *queue) why(id common.Hash) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.tried[id].err
}

// done gives channels back that were settled, or could not be (err). Of each is kept what concerns it: its neighbours' are not its own.
func (q *queue) done(states []channel.State, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, state := range states {
		if c := q.claimed[state.ID]; c.number > 0 {
			q.tried[state.ID] = attempt{c.number, outcome.About(err, state.ID)}
		}
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
	if q.urged[id] <= q.claimed[id].heard {
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
	for id := range q.tried {
		if !waiting[id] {
			delete(q.tried, id)
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
