package cluster

import (
	"maps"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/pgtest"
)

// standing is a gateway whose endpoint may be without a new block for a minute, at its first look.
type standing struct {
	*testing.T
	Standstill
	at time.Duration // of the first look
}

func standingAt(t *testing.T, head uint64, others ...uint64) *standing {
	s := &standing{T: t, Standstill: Standstill{After: time.Minute}}
	s.looks(false, 0, head, others...)
	return s
}

// looks has it look after a time, and wants it to stand still or not.
func (s *standing) looks(stands bool, after time.Duration, head uint64, others ...uint64) {
	s.Helper()
	s.at += after
	began := time.Unix(1<<30, 0)
	s.SetClock(func() time.Time { return began.Add(s.at) })
	heads := make(map[string]uint64)
	for i, other := range others {
		heads[string(rune('a'+i))] = other
	}
	if err := s.Check(head, heads); (err != nil) != stands {
		s.Errorf("after %s, with block %d beside %d: %v", s.at, head, others, err)
	}
}

// TestStandstill: an endpoint that has no new block while another gateway's has is told from a chain that stands still, and from one that
// is only behind.
func TestStandstill(t *testing.T) {
	const hour = time.Hour
	t.Run("no other gateway", func(t *testing.T) {
		s := standingAt(t, 7)
		s.looks(false, hour, 7)
	})
	t.Run("nobody has a new block", func(t *testing.T) {
		s := standingAt(t, 7, 7)
		s.looks(false, hour, 7, 7)
	})
	t.Run("it stands still", func(t *testing.T) {
		s := standingAt(t, 7, 7)
		s.looks(false, 30*time.Second, 7, 8)
		s.looks(false, 30*time.Second, 7, 9)
		s.looks(true, 1, 7, 9)
		s.looks(true, hour, 6, 9)
		s.looks(false, hour, 8, 9)
	})
	t.Run("the other one answers of older blocks, too", func(t *testing.T) {
		s := standingAt(t, 7, 7)
		s.looks(false, 20*time.Second, 7, 8)
		s.looks(false, 20*time.Second, 7, 10)
		s.looks(false, 20*time.Second, 7, 9)
		s.looks(true, 20*time.Second, 7, 10)
	})
	t.Run("it answers of older blocks", func(t *testing.T) {
		s := standingAt(t, 7, 7)
		s.looks(false, 20*time.Second, 5, 8)
		s.looks(false, 20*time.Second, 6, 9)
		s.looks(false, 20*time.Second, 7, 9)
		for range 9 {
			s.looks(true, 20*time.Second, 5, 9)
			s.looks(true, 20*time.Second, 6, 9)
			s.looks(true, 20*time.Second, 7, 9)
		}
	})
	t.Run("it goes on after it stood still", func(t *testing.T) {
		s := standingAt(t, 7, 7)
		s.looks(false, 59*time.Second, 7, 8)
		s.looks(true, hour, 7, 9)
		s.looks(false, 1, 9, 9)
		s.looks(false, hour, 9, 9)
		s.looks(false, 1, 9, 10)
		s.looks(true, 1, 9, 11)
	})
	t.Run("another is behind", func(t *testing.T) {
		s := standingAt(t, 7, 4)
		s.looks(false, 20*time.Second, 7, 5)
		s.looks(false, 20*time.Second, 7, 6)
		s.looks(false, hour, 7, 7)
	})
	t.Run("the others are gone", func(t *testing.T) {
		s := standingAt(t, 7, 7)
		s.looks(false, 20*time.Second, 7, 8)
		s.looks(false, 20*time.Second, 7, 9)
		s.looks(false, hour, 7)
	})
}

// TestStandstillBesideFalseHeads: what an endpoint says for a moment hides no standstill and makes none, be it another gateway's or its
// own, and one block that is said for ever is none that follows the chain.
func TestStandstillBesideFalseHeads(t *testing.T) {
	const never, minute = 1 << 40, time.Minute
	t.Run("its own, once", func(t *testing.T) {
		s := standingAt(t, 1000, 1000)
		s.looks(false, minute/2, never, 1001)
		for i := range uint64(20) { // it is well until then
			s.looks(false, minute/4, 1002+i/3, 1002+i/3)
		}
		for range 4 {
			s.looks(false, minute/6, 1008, 1009+uint64(s.at/time.Second))
		}
		s.looks(true, minute/2, 1008, 2000)
	})
	t.Run("its own, when it stands still since", func(t *testing.T) {
		s := standingAt(t, 1000, 1000)
		s.looks(false, minute/2, never, 1001)
		for s.at < 11*minute/4 {
			s.looks(false, minute/4, 1002, 1001+uint64(s.at/time.Second))
		}
		s.looks(true, minute/4, 1002, 2000)
	})
	t.Run("its own, for ever", func(t *testing.T) {
		s := standingAt(t, never, 7)
		s.looks(false, minute, never, 12)
		s.looks(false, minute, never, 17)
		s.looks(true, minute, never, 22)
	})
	t.Run("another's, for ever", func(t *testing.T) {
		s := standingAt(t, 7, never, 7)
		s.looks(false, 4*minute, 7, never, 7)
		s.looks(false, 4*minute, 7, never, 8) // the chain goes on: it may have come this moment
		s.looks(true, minute/4, 7, never, 9)
	})
	t.Run("another's, later", func(t *testing.T) {
		s := standingAt(t, 7, 7)
		for range 9 {
			s.looks(false, 2*minute, 7, never)
		}
	})
	t.Run("another's, now and then", func(t *testing.T) {
		s := standingAt(t, 7, 7)
		for range 9 {
			s.looks(false, 2*minute, 7, never)
			s.looks(false, minute, 7, 7)
		}
	})
	t.Run("another's, of another chain", func(t *testing.T) {
		s := standingAt(t, 7, never)
		for i := range uint64(9) {
			s.looks(false, minute, 8+i, never+i)
		}
	})
}

// TestOthersHeads: what counts is what gateways that live say, and not what this one said itself.
func TestOthersHeads(t *testing.T) {
	m := Members{DB: openTables(t, pgtest.URL(t))}
	for id, head := range map[string]uint64{"us": 40, "a": 20, "b": 1 << 63, "dead": 30} {
		if err := m.TellHead(t.Context(), id, head); err != nil {
			t.Fatal(err) // before it lives: nothing is kept
		}
		if err := m.Heartbeat(t.Context(), id, time.Hour, nil); err != nil {
			t.Fatal(err)
		}
		if head>>63 == 0 {
			if err := m.TellHead(t.Context(), id, head); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := m.Deregister(t.Context(), "dead"); err != nil {
		t.Fatal(err)
	}
	if heads, err := m.OthersHeads(t.Context(), "us"); err != nil || !maps.Equal(heads, map[string]uint64{"a": 20}) {
		t.Errorf("the others have the blocks %v, %v", heads, err)
	}
	if err := m.TellHead(t.Context(), "b", 1<<63); err != nil {
		t.Fatal(err)
	}
	if heads, err := m.OthersHeads(t.Context(), "us"); err != nil || !maps.Equal(heads, map[string]uint64{"a": 20, "b": 1<<63 - 1}) {
		t.Errorf("the others have the blocks %v, %v", heads, err)
	}
}
