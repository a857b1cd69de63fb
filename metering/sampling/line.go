package sampling

import (
	"container/heap"
	"sync"
	"time"
)

const (
	// relieveAfter is how long a call may take before another goroutine goes on
	// with the devices that wait behind it.
	relieveAfter = 10 * time.Millisecond
	// behind is how late a reading may be before another goroutine helps, and
	// helpers is how many help at most.
	behind  = 100 * time.Millisecond
	helpers = 8
	// grain is the longest time that a reading waits for others, so that one sleep
	// serves many: a hundredth of the tick, and no more than this.
	grain = 10 * time.Millisecond
)

// line is who waits for its turn.
type line struct {
	mu      sync.Mutex
	now     []*turn // due, since nowAt
	nowAt   int64
	later   map[int64][]*turn // by moment
	moments moments           // the keys of later
	spare   [][]*turn
	looked  int64 // when those in now were found to be due
	workers int   // neither asleep nor held up by a call
	asleep  bool  // one sleeps until the first moment
	until   int64 // it sleeps until then
	wake    chan struct{}
}

// put has a device read at a time, and sees to it that somebody does.
func (s *Scheduler) put(t *turn, at int64) {
	s.line.mu.Lock()
	defer s.line.mu.Unlock()
	s.queue(t, at)
}

// queue is put for who holds the line's mu.
func (s *Scheduler) queue(t *turn, at int64) {
	step := int64(min(t.of.tick/100, grain))
	if step > 0 {
		at += (step - at%step) % step
	}
	l := &s.line
	waiting, ok := l.later[at]
	if !ok {
		if l.later == nil {
			l.later = make(map[int64][]*turn)
		}
		if n := len(l.spare); n > 0 {
			waiting, l.spare = l.spare[n-1], l.spare[:n-1]
		}
		heap.Push(&l.moments, at)
	}
	l.later[at] = append(waiting, t)
	t.due.Store(at)
	switch {
	case l.asleep && at < l.until:
		select {
		case l.wake <- struct{}{}:
		default: // it is about to look anyway
		}
	case !l.asleep && l.workers == 0:
		s.hire()
	}
}

// hire starts a goroutine that reads. The caller holds the line's mu.
func (s *Scheduler) hire() {
	s.line.workers++
	go s.work()
}

// work reads what is due, sleeps until more is, and ends where another one
// sleeps already.
func (s *Scheduler) work() {
	w := &worker{s: s}
	w.mu.Lock() // on a machine that stands still for long enough check runs before guard is set
	w.guard = time.AfterFunc(relieveAfter, w.check)
	w.mu.Unlock()
	defer w.rest()
	for s.life.Err() == nil {
		t, at := s.line.take(s)
		switch {
		case t != nil:
			w.read(t, at)
		case at < 0:
			return
		default:
			w.rest()
			s.sleep(at)
			s.line.rise()
			w.watch()
		}
	}
}

// sleep returns at a time, or earlier.
func (s *Scheduler) sleep(until int64) {
	then := s.clock.After(time.Duration(until - s.clock.Now().Mono))
	if s.clock.Now().Mono >= until { // a clock that somebody moves may have been moved before the timer was set
		return
	}
	select {
	case <-s.life.Done():
	case <-then:
	case <-s.line.wake:
	}
}

// take is the next device that is due, and since when; or none, and when the next
// one is, less than zero where nobody needs to sleep until then.
func (l *line) take(s *Scheduler) (*turn, int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for n := len(l.now); n > 0; n = len(l.now) {
			t := l.now[n-1]
			l.now = l.now[:n-1]
			if t.due.CompareAndSwap(l.nowAt, 0) { // else it was put somewhere else since
				return t, l.looked
			}
		}
		l.looked = s.clock.Now().Mono
		if !l.advance(s) {
			break
		}
	}
	l.workers--
	if l.asleep || len(l.moments) == 0 {
		return nil, -1
	}
	l.asleep, l.until = true, l.moments[0]
	return nil, l.until
}

// advance moves those of the first moment that has come to now, if one has.
func (l *line) advance(s *Scheduler) bool {
	if len(l.moments) == 0 || l.moments[0] > l.looked {
		return false
	}
	if l.now != nil && len(l.spare) < 128 {
		l.spare = append(l.spare, l.now)
	}
	l.nowAt = heap.Pop(&l.moments).(int64)
	l.now = l.later[l.nowAt]
	delete(l.later, l.nowAt)
	if l.looked-l.nowAt > int64(behind) && l.workers < helpers {
		s.hire()
	}
	return true
}

// rise counts one that slept among the workers again.
func (l *line) rise() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asleep = false
	l.workers++
}

// worker is one goroutine that reads.
type worker struct {
	s     *Scheduler
	guard *time.Timer

	mu    sync.Mutex
	call  *turn // that is under way
	since int64
	calls uint64
	seen  uint64 // calls when the guard looked last
	held  bool   // somebody else goes on meanwhile
	idle  bool   // asleep or gone: there is nothing to guard
}

// read makes one call of a device that was due at a time.
func (w *worker) read(t *turn, since int64) {
	if !t.begin() {
		return
	}
	w.mu.Lock()
	w.call, w.since = t, since
	w.calls++
	w.mu.Unlock()
	r, err := t.read()
	w.mu.Lock()
	held := w.held
	w.call, w.held = nil, false
	w.mu.Unlock()
	if held {
		l := &w.s.line
		l.mu.Lock()
		l.workers++
		l.mu.Unlock()
		w.watch()
	}
	t.finish(r, err)
}

func (w *worker) watch() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle = false
	w.guard.Reset(relieveAfter)
}

func (w *worker) rest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle = true
	w.guard.Stop()
}

// check has another goroutine go on if the same call is under way as when it
// looked last, and has that call looked at again when it counts as hung.
func (w *worker) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle {
		return
	}
	if w.call == nil || w.calls != w.seen {
		w.seen = w.calls
		w.guard.Reset(relieveAfter)
		return
	}
	w.held = true
	w.s.put(w.call, w.since+int64(w.call.of.timeout))
	l := &w.s.line
	l.mu.Lock()
	defer l.mu.Unlock()
	l.workers--
	if !l.asleep && l.workers == 0 {
		w.s.hire()
	}
}

// moments is a heap of times.
type moments []int64

func (m moments) Len() int           { return len(m) }
func (m moments) Less(i, j int) bool { return m[i] < m[j] }
func (m moments) Swap(i, j int)      { m[i], m[j] = m[j], m[i] }
func (m *moments) Push(x any)        { *m = append(*m, x.(int64)) }
func (m *moments) Pop() any {
	old := *m
	x := old[len(old)-1]
	*m = old[:len(old)-1]
	return x
}
