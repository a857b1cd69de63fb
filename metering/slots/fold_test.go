package slots_test

import (
	"errors"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/slots"
)

// TestFold: what is forgotten one by one takes no memory, and still bounds what is left out and what is named after all.
func TestFold(t *testing.T) {
	_, e, books := secondEach(t, 128)
	books.Own[128] = slots.Own{From: 2000 * ms, To: 3000 * ms, Failed: true}
	e = lie(e, func(s *metering.SlotEvidence) { s.MoreNanos -= 1e9 })
	folded := books.Fold(func(id uint64, _ slots.Own) bool { return id > 60 })
	if len(folded.Own) != 60 || len(books.Own) != 128 || folded.Folded != (slots.Folded{Requests: 68, Nanos: 67e9, Highest: 128}) {
		t.Fatalf("%+v", folded.Folded)
	}
	next, err := folded.Check(e, slots.Limits{})
	if err != nil || len(next.Own) != 0 || next.LeftOut != 68 || next.LeftOutNanos != 67e9 {
		t.Errorf("%v: %d left out with %s, %d remembered", err, next.LeftOut, time.Duration(next.LeftOutNanos), len(next.Own))
	}
	for name, change := range map[string]func(*metering.SlotEvidence){
		"more time than they took": func(s *metering.SlotEvidence) { s.MoreNanos += 2e9 + 1 },
		"one that was not sent":    func(s *metering.SlotEvidence) { s.Requests[63].ID = 129 },
		"more than were sent":      func(s *metering.SlotEvidence) { s.More++ },
	} {
		if _, err := folded.Check(lie(e, change), slots.Limits{}); !errors.Is(err, slots.ErrOvercharged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBooksOverARestart: a renter that was rebooted between two requests of one record has each by another clock.
func TestBooksOverARestart(t *testing.T) {
	s := newService(t, 4, gpu)
	s.every(1000, 2000)
	s.take(lease, 1, 2000)
	s.give(lease, 1, 3000, metering.RequestDone)
	s.take(lease, 2, 4000)
	s.give(lease, 2, 5000, metering.RequestDone)
	s.every(3000, 6000)
	e := s.cut(lease, false)
	books := slots.Books{Own: map[uint64]slots.Own{1: {From: 700e9, To: 701e9}, 2: {From: 5e9, To: 6e9}}}
	if _, err := books.Check(e, slots.Limits{}); !errors.Is(err, slots.ErrOvercharged) {
		t.Errorf("by one clock: %v", err)
	}
	books.Own[2] = slots.Own{From: 5e9, To: 6e9, Epoch: 1}
	if _, err := books.Check(e, slots.Limits{}); err != nil {
		t.Errorf("by two clocks: %v", err)
	}
}
