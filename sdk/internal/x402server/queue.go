package x402server

import (
	"context"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/wire"
)

// CorrectedWithin is how long a queue waits for a request that was told the right
// amount. A stock client asks again at once, and only once.
const CorrectedWithin = 2 * time.Second

// Queue lets the requests of each channel pass one after the other. Each changes what the next must have signed, so a
// request that is corrected goes before those that have not been looked at: of many at once each is corrected once and
// served.
type Queue struct {
	Most int           // that may wait of one channel
	All  int           // that may wait of all of them
	Hold time.Duration // for the one that was corrected

	mu      sync.Mutex
	byID    map[common.Hash]*line
	waiting int
}

type line struct {
	busy   bool
	queue  []*waiter
	expect *uint256.Int // only who brings exactly this passes
	timer  *time.Timer  // ends that
}

type waiter struct {
	amount   uint256.Int
	told     bool // the line waited for this amount
	admitted chan struct{}
}

// Turn is the right to be the only request that is served on a channel. Leave gives it back, once; with an amount, the
// line waits a moment for a request that brings that.
type Turn struct {
	Told  bool // the request brings the amount that the last one was told
	queue *Queue
	id    common.Hash
}

// Enter waits for its turn among the requests of a channel.
func (q *Queue) Enter(ctx context.Context, id common.Hash, amount uint256.Int) (Turn, error) {
	t := Turn{queue: q, id: id}
	q.mu.Lock()
	if q.byID == nil {
		q.byID = make(map[common.Hash]*line)
	}
	l := q.byID[id]
	if l == nil {
		l = &line{}
		q.byID[id] = l
	}
	if !l.busy && (l.expect == nil || *l.expect == amount) {
		t.Told = l.admit()
		q.mu.Unlock()
		return t, nil
	}
	if len(l.queue) >= q.Most || q.waiting >= q.All {
		q.mu.Unlock()
		return t, wire.TooMany.With("too many requests wait on channel %s, or on all: wait for the answers", id)
	}
	w := &waiter{amount: amount, admitted: make(chan struct{})}
	l.queue = append(l.queue, w)
	q.waiting++
	q.mu.Unlock()
	select {
	case <-w.admitted:
		t.Told = w.told
		return t, nil
	case <-ctx.Done():
		q.abandon(t, w)
		return t, ctx.Err()
	}
}

// admit begins a turn, and reports whether the line waited for it. The caller holds mu.
func (l *line) admit() (told bool) {
	told = l.expect != nil
	l.busy, l.expect = true, nil
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	return told
}

// abandon takes one that does not want to wait any longer out of the line.
func (q *Queue) abandon(t Turn, w *waiter) {
	q.mu.Lock()
	l := q.byID[t.id]
	for i, other := range l.queue {
		if other == w {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			q.waiting--
			q.next(t.id, l)
			q.mu.Unlock()
			return
		}
	}
	q.mu.Unlock()
	t.Leave(nil) // it was its turn already
}

// Leave ends a turn.
func (t Turn) Leave(expect *uint256.Int) {
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	l := t.queue.byID[t.id]
	l.busy, l.expect = false, expect
	if expect != nil {
		l.timer = time.AfterFunc(t.queue.Hold, func() { t.queue.give(t.id, l, expect) })
	}
	t.queue.next(t.id, l)
}

// give ends the wait for a corrected request that did not come.
func (q *Queue) give(id common.Hash, l *line, expect *uint256.Int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l.expect == expect {
		l.expect, l.timer = nil, nil
		q.next(id, l)
	}
}

// next admits whose turn it is. The caller holds mu.
func (q *Queue) next(id common.Hash, l *line) {
	if l.busy {
		return
	}
	for i, w := range l.queue {
		if l.expect == nil || *l.expect == w.amount {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			q.waiting--
			w.told = l.admit()
			close(w.admitted)
			return
		}
	}
	if l.expect == nil && len(l.queue) == 0 {
		delete(q.byID, id)
	}
}
