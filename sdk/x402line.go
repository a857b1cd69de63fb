package sdk

import (
	"context"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/wire"
)

// correctedWithin is how long a line waits for a request that was told the right
// amount. A stock client asks again at once, and only once.
const correctedWithin = 2 * time.Second

// lines let the requests of each channel pass one after the other. Each changes
// what the next must have signed, so a request that is corrected goes before
// those that have not been looked at: of many at once each is corrected once
// and served.
type lines struct {
	most int           // that may wait in one line
	all  int           // that may wait in all of them
	hold time.Duration // for the one that was corrected

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

// turn is the right to be the only request that is served on a channel. leave
// gives it back, once; with an amount, the line waits a moment for a request
// that brings that.
type turn struct {
	lines *lines
	id    common.Hash
	told  bool // the request brings the amount that the last one was told
}

// enter waits for its turn in the line of a channel.
func (q *lines) enter(ctx context.Context, id common.Hash, amount uint256.Int) (turn, error) {
	t := turn{lines: q, id: id}
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
		t.told = l.admit()
		q.mu.Unlock()
		return t, nil
	}
	if len(l.queue) >= q.most || q.waiting >= q.all {
		q.mu.Unlock()
		return t, wire.TooMany.With("too many requests wait on channel %s, or on all: wait for the answers", id)
	}
	w := &waiter{amount: amount, admitted: make(chan struct{})}
	l.queue = append(l.queue, w)
	q.waiting++
	q.mu.Unlock()
	select {
	case <-w.admitted:
		t.told = w.told
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
func (q *lines) abandon(t turn, w *waiter) {
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
	t.leave(nil) // it was its turn already
}

func (t turn) leave(expect *uint256.Int) {
	t.lines.mu.Lock()
	defer t.lines.mu.Unlock()
	l := t.lines.byID[t.id]
	l.busy, l.expect = false, expect
	if expect != nil {
		l.timer = time.AfterFunc(t.lines.hold, func() { t.lines.give(t.id, l, expect) })
	}
	t.lines.next(t.id, l)
}

// give ends the wait for a corrected request that did not come.
func (q *lines) give(id common.Hash, l *line, expect *uint256.Int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l.expect == expect {
		l.expect, l.timer = nil, nil
		q.next(id, l)
	}
}

// next admits whose turn it is. The caller holds mu.
func (q *lines) next(id common.Hash, l *line) {
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
