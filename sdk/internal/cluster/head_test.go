package cluster

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/pgtest"
)

// TestStandstill: an endpoint that has no new block while another gateway's has is told from a chain that stands still, from one that is
// only behind, and from another gateway that is of another chain or lies.
func TestStandstill(t *testing.T) {
	type look struct {
		after        time.Duration // of the first
		head, others uint64
		stands       bool
	}
	for name, looks := range map[string][]look{
		"no other gateway":                {{0, 7, 0, false}, {time.Hour, 7, 0, false}},
		"nobody has a new block":          {{0, 7, 7, false}, {time.Hour, 7, 7, false}},
		"it stands still":                 {{0, 7, 7, false}, {time.Minute, 7, 9, false}, {time.Minute + 1, 7, 8, true}, {time.Hour, 6, 8, true}, {time.Hour, 8, 9, false}},
		"it answers of older blocks":      {{0, 7, 7, false}, {time.Minute, 5, 9, false}, {2 * time.Minute, 6, 9, true}},
		"another is of another chain":     {{0, 7, 1 << 40, false}, {time.Minute, 8, 1 << 40, false}, {2 * time.Minute, 9, 1 << 40, false}},
		"it goes on after it stood still": {{0, 7, 7, false}, {time.Hour, 7, 8, true}, {time.Hour + 1, 9, 9, false}, {time.Hour + time.Minute, 9, 10, false}},
	} {
		began, s := time.Now(), Standstill{After: time.Minute}
		for _, l := range looks {
			s.SetClock(func() time.Time { return began.Add(l.after) })
			if err := s.Check(l.head, l.others); (err != nil) != l.stands {
				t.Errorf("%s: after %s, with block %d beside %d: %v", name, l.after, l.head, l.others, err)
			}
		}
	}
}

// TestOthersHead: what counts is what gateways that live say, and not what this one said itself.
func TestOthersHead(t *testing.T) {
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
	if head, err := m.OthersHead(t.Context(), "us"); err != nil || head != 20 {
		t.Errorf("the others have block %d, %v", head, err)
	}
	if err := m.TellHead(t.Context(), "b", 1<<63); err != nil {
		t.Fatal(err)
	}
	if head, err := m.OthersHead(t.Context(), "us"); err != nil || head != 1<<63-1 {
		t.Errorf("the others have block %d, %v", head, err)
	}
}
