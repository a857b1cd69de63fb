package inventory

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering/usage"
)

// paper is a book of one process, whose clock stands still.
type paper struct {
	rows    map[string]Rest
	put     int    // how often it was written
	meeting func() // while it is
}

func (p *paper) Put(_ context.Context, news []Rest) ([]Rest, error) {
	p.put++
	var has []Rest
	for _, r := range news {
		if r.Healed && r.Version != p.rows[r.Device].Version {
			continue // another process has written since
		}
		r.Version = p.rows[r.Device].Version + 1
		p.rows[r.Device] = r
		has = append(has, r)
	}
	if p.meeting != nil {
		p.meeting()
	}
	return has, nil
}

func (p *paper) Redate(context.Context) error { return nil }

func (p *paper) All(context.Context) (all []Rest, err error) {
	for _, r := range p.rows {
		all = append(all, r)
	}
	return all, nil
}

// sharedOn is two quarantines that hear the same, as of a gateway and its allocator, with a book and a clock.
func sharedOn(book RestBook) (*Sharing, func(time.Duration)) {
	now := time.Now()
	s := &Sharing{Book: book, Sick: []*Quarantine{{}, {}}, Log: slog.New(slog.DiscardHandler), Alone: true}
	for _, q := range s.Sick {
		q.SetClock(func() time.Time { return now })
	}
	return s, func(by time.Duration) { now = now.Add(by) }
}

func (s *Sharing) lets(t *testing.T, want bool, when string) {
	t.Helper()
	for i, q := range s.Sick {
		if fit := q.rested([]string{"a"}); (len(fit) == 1) != want {
			t.Errorf("%s: quarantine %d lets it: %t", when, i, !want)
		}
	}
}

func (s *Sharing) hear(what func(*Quarantine, string)) {
	for _, q := range s.Sick {
		what(q, "a")
	}
}

// TestRestsAreWrittenSeldom: a device that fails on is written when it begins, when its rest has grown by a quarter and when no more is
// heard of it, and nothing is written or read while nothing happens. The end of its rest is known.
func TestRestsAreWrittenSeldom(t *testing.T) {
	book := &paper{rows: make(map[string]Rest)}
	s, pass := sharedOn(book)
	for range 100 {
		s.Pass(t.Context())
	}
	if book.put != 0 {
		t.Errorf("nothing happened, and was written %d times", book.put)
	}
	for range 60 {
		s.hear((*Quarantine).Fails)
		s.Pass(t.Context())
		pass(time.Second)
	}
	if book.put < 4 || book.put > 5 {
		t.Errorf("a minute of failures was written %d times", book.put)
	}
	put := book.put
	for range 10 {
		pass(time.Second)
		s.Pass(t.Context())
	}
	if r := book.rows["a"]; book.put != put+1 || r.Left < 57*time.Second || r.Left > 58*time.Second {
		t.Errorf("its end was written %d times, as %+v", book.put-put, r)
	}
	s.lets(t, false, "within its rest")
	pass(50 * time.Second)
	s.lets(t, true, "after it")
}

// TestRestsHeardWhileTheyAreWritten: what is heard while the book is written is younger than what the book has then, and is written next.
func TestRestsHeardWhileTheyAreWritten(t *testing.T) {
	book := &paper{rows: make(map[string]Rest)}
	s, pass := sharedOn(book)
	s.hear((*Quarantine).Fails)
	book.meeting = func() { book.meeting = nil; pass(time.Millisecond); s.hear((*Quarantine).Heals) }
	s.Pass(t.Context())
	s.lets(t, true, "healed while its failure was written")
	s.Pass(t.Context())
	if r := book.rows["a"]; !r.Healed || r.Left != 0 {
		t.Errorf("the book has %+v", r)
	}
	book.meeting = func() { book.meeting = nil; pass(time.Millisecond); s.hear((*Quarantine).Fails) }
	pass(time.Second)
	s.hear((*Quarantine).Fails)
	pass(time.Second)
	s.hear((*Quarantine).Heals) // it failed twice: it rests to the end
	pass(2 * time.Minute)
	s.lets(t, true, "after its rest")
	s.Pass(t.Context())
	s.lets(t, false, "failed while its heal was written")
	s.Pass(t.Context())
	if r := book.rows["a"]; r.Healed || r.Left < 3*time.Minute {
		t.Errorf("the book has %+v", r)
	}
}

// TestRestHeardBesideAnothers: a failure that is heard here while another process has written a heal stands, a heal beside a failure of
// another process does not, and what was served for nothing here is forgotten when another process has billed the device.
func TestRestHeardBesideAnothers(t *testing.T) {
	book := &paper{rows: map[string]Rest{"a": {Device: "a", Version: 7, Span: 4 * time.Minute, Healed: true}}}
	s, pass := sharedOn(book)
	s.Pass(t.Context())
	lost := func() {
		s.hear(func(q *Quarantine, uuid string) {
			q.serves(uuid, usage.Interval{Class: usage.Gap, Nanos: int64(time.Second)}, 10*time.Second)
		})
	}
	lost()
	s.lets(t, true, "healed elsewhere")
	book.rows["a"] = Rest{Device: "a", Version: 8, Span: 4 * time.Minute, Left: 4 * time.Minute}
	s.Alone = false
	s.Pass(t.Context())
	s.lets(t, false, "failed elsewhere")
	if len(s.Sick[1].lost) != 1 {
		t.Error("what was served for nothing is forgotten at a failure")
	}
	book.rows["a"] = Rest{Device: "a", Version: 9, Span: 4 * time.Minute, Healed: true}
	s.Pass(t.Context())
	if s.lets(t, true, "healed elsewhere again"); len(s.Sick[0].lost)+len(s.Sick[1].lost) != 0 {
		t.Error("what was served for nothing is not forgotten when it is billed elsewhere")
	}
	for _, q := range s.Sick {
		q.learn([]Rest{{Device: "a", Version: 10, Span: 4 * time.Minute, Left: time.Minute}}, nil, q.now(), 0)
	}
	pass(time.Second)
	s.hear((*Quarantine).Heals)
	for _, q := range s.Sick {
		q.learn([]Rest{{Device: "a", Version: 11, Span: 8 * time.Minute, Left: 8 * time.Minute}}, nil, q.now().Add(-time.Millisecond), 0)
	}
	pass(2 * time.Minute)
	s.lets(t, false, "healed here while it failed elsewhere")
	pass(7 * time.Minute)
	s.hear((*Quarantine).Fails)
	for _, q := range s.Sick {
		q.learn([]Rest{{Device: "a", Version: 12, Span: 8 * time.Minute, Healed: true}}, nil, q.now().Add(-time.Millisecond), 0)
	}
	s.lets(t, false, "failed here while it was healed elsewhere")
	if news, _ := s.Sick[0].news(); len(news) != 1 || news[0].Healed || news[0].Version != 12 || news[0].Span != 16*time.Minute {
		t.Errorf("the book hears %+v", news)
	}
	pass(5 * time.Minute)
	s.hear((*Quarantine).outlives)
	if news, _ := s.Sick[0].news(); len(news) != 1 || news[0].Healed {
		t.Errorf("a failure here counts as another's: the book hears %+v", news)
	}
}

// TestRestsThatTheBookForgot: the memory of a process is no longer than that of its book, and what the book forgot while it lasts is written
// again.
func TestRestsThatTheBookForgot(t *testing.T) {
	for _, alone := range []bool{false, true} {
		book := &paper{rows: map[string]Rest{"a": {Device: "a", Version: 7, Span: time.Minute, Left: time.Minute}}}
		s, pass := sharedOn(book)
		s.Alone = alone
		s.Pass(t.Context())
		if !alone {
			delete(book.rows, "a")
			pass(20 * time.Second)
			s.Pass(t.Context())
			s.lets(t, false, "within its rest")
			s.Pass(t.Context())
			if r := book.rows["a"]; r.Left.Round(time.Second) != 40*time.Second || r.Span != time.Minute {
				t.Errorf("the book has %+v", r)
			}
			if !s.Sick[0].rests["a"].others {
				t.Error("what another process wrote counts as heard here")
			}
		}
		pass(time.Minute)
		delete(book.rows, "a")
		if alone {
			pass(loneEvery)
		}
		s.Pass(t.Context())
		if n := len(s.Sick[0].rests) + len(s.Sick[1].rests); n != 0 {
			t.Errorf("alone: %t: %d rests are remembered", alone, n)
		}
	}
}

// TestRestThatABookOfBeforeHas: a book that was put back to an earlier moment hears again what was known since, a heal as well as a failure.
func TestRestThatABookOfBeforeHas(t *testing.T) {
	book := &paper{rows: map[string]Rest{"a": {Device: "a", Version: 7, Span: 2 * time.Minute, Left: 2 * time.Minute}}}
	s, pass := sharedOn(book)
	s.Alone = false
	s.Pass(t.Context())
	pass(2 * time.Minute)
	s.hear((*Quarantine).Heals)
	s.Pass(t.Context())
	book.rows["a"] = Rest{Device: "a", Version: 5, Span: time.Hour, Left: 50 * time.Minute}
	s.Pass(t.Context())
	s.lets(t, true, "healed, beside a book that was put back")
	s.Pass(t.Context())
	if r := book.rows["a"]; !r.Healed || r.Left != 0 || r.Span != 2*time.Minute {
		t.Errorf("the book has %+v", r)
	}
	s.hear((*Quarantine).Fails)
	s.Pass(t.Context())
	book.rows["a"] = Rest{Device: "a", Version: 4, Healed: true}
	s.Pass(t.Context())
	s.lets(t, false, "failed, beside a book that was put back")
	s.Pass(t.Context())
	if r := book.rows["a"]; r.Healed || r.Left.Round(time.Second) != 4*time.Minute {
		t.Errorf("the book has %+v", r)
	}
}

// TestHealOfAnothersFailure: who meters a device heals it again when another process says that it failed, and only once that would have
// failed again by then; a failure of its own ends as it did.
func TestHealOfAnothersFailure(t *testing.T) {
	book := &paper{rows: map[string]Rest{"a": {Device: "a", Version: 7, Span: time.Minute, Left: time.Minute}}}
	s, pass := sharedOn(book)
	s.Alone = false
	s.Pass(t.Context())
	s.hear((*Quarantine).outlives)
	s.lets(t, false, "failed this moment at another process")
	pass(time.Minute/renewed + settled)
	s.hear((*Quarantine).outlives)
	s.lets(t, false, "may go on failing at another process")
	pass(2 * time.Second)
	s.hear((*Quarantine).outlives)
	s.lets(t, true, "metered here, and well at the other process")
	s.Pass(t.Context())
	if r := book.rows["a"]; !r.Healed {
		t.Errorf("the book has %+v", r)
	}
	s.hear((*Quarantine).Fails)
	s.Pass(t.Context())
	pass(110 * time.Second)
	s.hear((*Quarantine).outlives)
	s.lets(t, false, "failed here")
	if !s.Sick[0].rests["a"].healed.IsZero() {
		t.Error("a failure of its own is over for a reading that bills")
	}
	(&Quarantine{}).outlives("a") // of nothing known
}

// TestRestsAreWrittenAtTheEnd: what a process that stops heard while its book was away is written once more.
func TestRestsAreWrittenAtTheEnd(t *testing.T) {
	book := &paper{rows: make(map[string]Rest)}
	s, _ := sharedOn(book)
	s.away = true
	s.hear((*Quarantine).Fails)
	over, end := context.WithCancel(t.Context())
	end()
	if s.Run(over); book.rows["a"].Left != time.Minute {
		t.Errorf("the book has %+v", book.rows)
	}
}
