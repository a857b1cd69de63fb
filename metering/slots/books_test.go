package slots_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/merkle"
	"github.com/gpupay/gpupay/metering/slots"
)

// honest is evidence of three requests of a second each, of which two ran at once and the last one failed, and the renter's books
// of them: its clock is an hour ahead, and each took 20 ms longer there.
func honest(t *testing.T) (metering.Evidence, slots.Books) {
	s := newService(t, 4, gpu)
	s.every(1000, 9000)
	books := slots.Books{Own: make(map[uint64]slots.Own)}
	for i, from := range []int64{2000, 2500, 5000} {
		id := uint64(i + 1)
		s.take(lease, id, from)
		books.Own[id] = slots.Own{From: 3600e9 + (from-10)*ms, To: 3600e9 + (from+1010)*ms, Failed: id == 3}
	}
	s.give(lease, 1, 3000, metering.RequestDone)
	s.give(lease, 2, 3500, metering.RequestAborted)
	s.give(lease, 3, 6000, metering.RequestFailed)
	return s.cut(lease, false), books
}

// lie changes evidence so that its own figures still agree.
func lie(e metering.Evidence, change func(s *metering.SlotEvidence)) metering.Evidence {
	s := *e.Slots
	s.Requests = append([]metering.Request(nil), s.Requests...)
	change(&s)
	s.SlotNanos = s.MoreNanos
	var tree merkle.Tree
	for _, r := range s.Requests {
		s.SlotNanos += r.Nanos
		tree.Add(r.Encode())
	}
	if s.More == 0 {
		s.Root = tree.Root()
	}
	before := e.Total - e.Nanos
	var err error
	if e.Nanos, s.Rest, err = s.Share().Bill(s.SlotNanos, s.Carried); err != nil {
		panic(err)
	}
	e.Total, e.Slots = before+e.Nanos, &s
	return e
}

func TestBooksAcceptWhatIsHonest(t *testing.T) {
	e, books := honest(t)
	next, err := books.Check(e, slots.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if len(next.Own) != 0 || next.Over != 0 || len(books.Own) != 3 {
		t.Errorf("%+v after %+v", next, books)
	}
	if _, err := next.Check(e, slots.Limits{}); !errors.Is(err, slots.ErrOvercharged) {
		t.Errorf("the same record again: %v", err)
	}
	next.Total, next.Rest = 0, 0
	if _, err := next.Check(e, slots.Limits{}); !errors.Is(err, slots.ErrOvercharged) {
		t.Errorf("the same requests again: %v", err)
	}
}

// TestBooksRefuse has what a provider can bill too much, and what the renter says: which request, and by how much.
func TestBooksRefuse(t *testing.T) {
	tests := []struct {
		name string
		lie  func(s *metering.SlotEvidence)
		says string
	}{
		{"three seconds more", func(s *metering.SlotEvidence) {
			r := &s.Requests[1]
			r.To, r.Nanos = r.To+3e9, r.Nanos+3e9
		}, "request 2 is billed 4s, at most 3.02s can be: 980ms too much: it took 1.02s here"},
		{"a second more, before it was sent", func(s *metering.SlotEvidence) {
			r := &s.Requests[1]
			r.From, r.Nanos = r.From-1e9, r.Nanos+1e9
		}, "are moved against each other by 980ms"},
		{"one that was not sent", func(s *metering.SlotEvidence) { s.Requests[1].ID = 9 }, "request 9 is billed 1s, at most 0s can be: 1s too much"},
		{"one that failed", func(s *metering.SlotEvidence) {
			r := &s.Requests[2]
			r.Outcome, r.To, r.Nanos = metering.RequestDone, r.To+2e9, 3e9
		}, "request 3 is billed 3s, at most 2s can be: 1s too much: it failed"},
		{"requests at once that were not", func(s *metering.SlotEvidence) {
			s.Requests[1].From, s.Requests[1].To = s.Requests[0].From, s.Requests[0].To
		}, "are moved against each other by 480ms, at most 101.52ms is between two clocks: 378.48ms too much"},
		{"requests far from each other", func(s *metering.SlotEvidence) { s.Requests[1].From, s.Requests[1].To = 7e9, 8e9 }, "requests 2 and 1 cannot both have run when it says"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, books := honest(t)
			e = lie(e, tt.lie)
			if err := e.Validate(); err != nil {
				t.Fatalf("the lie is found without books: %v", err)
			}
			next, err := books.Check(e, slots.Limits{})
			if !errors.Is(err, slots.ErrOvercharged) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v", err)
			}
			if len(next.Own) != 3 {
				t.Error("a record that was refused changed the books")
			}
		})
	}
}

// TestBooksAddUp: what is too little to see in one request is seen in many, once a lease.
func TestBooksAddUp(t *testing.T) {
	_, books := honest(t)
	over := time.Duration(0)
	for id := uint64(1); ; id++ {
		s := newService(t, 4, gpu)
		s.every(1000, 5000)
		s.take(lease, id, 2000)
		s.give(lease, id, 2040, metering.RequestDone)
		books.Own, books.Total, books.Rest = map[uint64]slots.Own{id: {From: 0, To: 0}}, 0, 0
		next, err := books.Check(s.cut(lease, false), slots.Limits{})
		over += 40 * time.Millisecond
		if over <= slots.DefaultTolerance {
			if err != nil {
				t.Fatal(err)
			}
			books = next
			continue
		}
		if !errors.Is(err, slots.ErrOvercharged) || !strings.Contains(err.Error(), "40ms too much") {
			t.Errorf("after %s: %v", over, err)
		}
		return
	}
}

// TestBooksHoldWhatIsLeftOut: requests that are in no list fit into what the renter's own took, over all records.
func TestBooksHoldWhatIsLeftOut(t *testing.T) {
	const sent = 100
	s := newService(t, 200, gpu)
	s.every(1000, 5000)
	books := slots.Books{Own: make(map[uint64]slots.Own)}
	for id := uint64(1); id <= sent; id++ {
		s.take(lease, id, 2000)
		books.Own[id] = slots.Own{From: 2000 * ms, To: 3001 * ms}
	}
	for id := uint64(1); id <= sent; id++ {
		s.give(lease, id, 3000, metering.RequestDone)
	}
	e := s.cut(lease, false)
	next, err := books.Check(e, slots.Limits{})
	if err != nil || next.LeftOut != sent-metering.MaxRequests || len(next.Own) != sent-metering.MaxRequests {
		t.Fatalf("%v: %d left out, %d not named", err, next.LeftOut, len(next.Own))
	}
	for says, change := range map[string]func(*metering.SlotEvidence){
		"3s too much":              func(s *metering.SlotEvidence) { s.MoreNanos += 5e9 + 36*ms },
		"37 requests are billed":   func(s *metering.SlotEvidence) { s.More++ },
		"and 36 were sent":         func(s *metering.SlotEvidence) { s.More++ },
		"no record names are bill": func(s *metering.SlotEvidence) { s.MoreNanos += 10e9 },
	} {
		if _, err := books.Check(lie(e, change), slots.Limits{}); !errors.Is(err, slots.ErrOvercharged) || !strings.Contains(err.Error(), says) {
			t.Errorf("want %q, got %v", says, err)
		}
	}
	for id, own := range books.Own {
		own.Failed = id > metering.MaxRequests
		books.Own[id] = own
	}
	if _, err := books.Check(e, slots.Limits{}); !errors.Is(err, slots.ErrOvercharged) {
		t.Errorf("those that were left out failed: %v", err)
	}
}

// secondEach is a meter and the books of so many requests that ran at once, a second each, and its first record.
func secondEach(t *testing.T, requests uint64) (*service, metering.Evidence, slots.Books) {
	s := newService(t, 200, gpu)
	s.every(1000, 5000)
	books := slots.Books{Own: make(map[uint64]slots.Own)}
	for id := uint64(1); id <= requests; id++ {
		s.take(lease, id, 2000)
		books.Own[id] = slots.Own{From: 2000 * ms, To: 3000 * ms}
	}
	for id := uint64(1); id <= requests; id++ {
		s.give(lease, id, 3000, metering.RequestDone)
	}
	return s, s.cut(lease, false), books
}

// TestBooksHoldWhatIsLeftOutAndNamed: what one record leaves out is not billed again by the next one that names it, nor does one tolerance
// count for both.
func TestBooksHoldWhatIsLeftOutAndNamed(t *testing.T) {
	s, e, books := secondEach(t, 128)
	next, err := books.Check(e, slots.Limits{})
	if err != nil || next.LeftOut != 64 {
		t.Fatalf("%v: %+v", err, next)
	}
	s.every(6000, 9000)
	named := lie(s.cut(lease, false), func(s *metering.SlotEvidence) {
		for id := uint64(65); id <= 128; id++ {
			s.Requests = append(s.Requests, metering.Request{From: 2000 * ms, ID: id, Nanos: 1000 * ms, Outcome: metering.RequestDone, To: 3000 * ms})
		}
	})
	if _, err := next.Check(named, slots.Limits{}); !errors.Is(err, slots.ErrOvercharged) || !strings.Contains(err.Error(), "64 requests are billed that no record names, and 0 were sent") {
		t.Errorf("64 requests that were left out, and named: %v", err)
	}

	next, err = books.Check(lie(e, func(s *metering.SlotEvidence) { s.MoreNanos += 2e9 }), slots.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	next.Own[200] = slots.Own{From: 6000 * ms, To: 7000 * ms}
	_, e, _ = secondEach(t, 1)
	e = lie(e, func(s *metering.SlotEvidence) {
		s.Requests[0] = metering.Request{From: 2000 * ms, ID: 200, Nanos: 3000 * ms, Outcome: metering.RequestDone, To: 5000 * ms}
	})
	next.Total, next.Rest = 0, 0
	if _, err := next.Check(e, slots.Limits{}); !errors.Is(err, slots.ErrOvercharged) {
		t.Errorf("2 s too many that were left out, and 2 s of one that is named: %v", err)
	}
}

// TestBooksMeetDisputes: what two honest sides can see otherwise of one request costs some of the tolerance, and blocks no lease.
func TestBooksMeetDisputes(t *testing.T) {
	tests := []struct {
		name   string
		happen func(s *service, books *slots.Books)
		over   int64
	}{
		{"the link broke: an abort to one side, a failure to the other", func(s *service, books *slots.Books) {
			s.give(lease, 2, 2500, metering.RequestAborted)
			books.Own[2] = slots.Own{From: 2000 * ms, To: 2500 * ms, Failed: true}
		}, 500 * ms},
		{"an abort that was noticed late", func(s *service, books *slots.Books) {
			s.give(lease, 2, 3200, metering.RequestAborted)
			books.Own[2] = slots.Own{From: 2000 * ms, To: 3000 * ms}
		}, 200 * ms},
		{"an unknown one that costs nothing", func(s *service, books *slots.Books) {
			s.give(lease, 2, 2500, metering.RequestFailed)
		}, 0},
		{"the provider ended it where its offer says so", func(s *service, books *slots.Books) {
			s.give(lease, 2, 3000, metering.Outcome("limit"))
			books.Own[2] = slots.Own{From: 2000 * ms, To: 3000 * ms}
		}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(t, 4, gpu)
			s.every(1000, 2000)
			books := slots.Books{Own: map[uint64]slots.Own{1: {From: 2000 * ms, To: 2600 * ms}}}
			s.take(lease, 1, 2000)
			s.take(lease, 2, 2000)
			s.give(lease, 1, 2600, metering.RequestDone)
			tt.happen(s, &books)
			s.every(3000, 5000)
			next, err := books.Check(s.cut(lease, false), slots.Limits{})
			if err != nil || next.Over != tt.over || len(next.Own) != 0 {
				t.Errorf("%v: %+v, want %d ns over", err, next, tt.over)
			}
		})
	}
}
