package cluster

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/database"
)

// TellHead says which block is the newest that a gateway's endpoint has.
func (m Members) TellHead(ctx context.Context, id string, head uint64) error {
	return m.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE gateways SET head = ? WHERE id = ?`), int64(min(head, math.MaxInt64)), id)
		return err
	})
}

// OthersHeads are the newest blocks that the endpoints of the other gateways that live have, by gateway.
func (m Members) OthersHeads(ctx context.Context, id string) (map[string]uint64, error) {
	var rows []struct {
		ID   string `db:"id"`
		Head uint64 `db:"head"`
	}
	db := m.DB.View()
	if err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT id, head FROM gateways WHERE id <> ? AND head > 0 AND expires > `+database.ServerNow), id); err != nil {
		return nil, err
	}
	heads := make(map[string]uint64, len(rows))
	for _, row := range rows {
		heads[row.ID] = row.Head
	}
	return heads, nil
}

// Heads is what a gateway and the others know of the newest block of the chain.
type Heads struct {
	Members
	Name     func() string // of this gateway
	Endpoint chain.Backend // of this gateway
	Within   time.Duration // how long it may take

	Standstill
}

// Tell has the others know how far the chain is, so that one which leads with an endpoint that stands still lets go.
func (h *Heads) Tell(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.Within)
	defer cancel()
	head, err := h.newest(ctx)
	if err != nil {
		return err
	}
	return h.TellHead(ctx, h.Name(), head)
}

// See fails where this gateway's endpoint does not answer, or stands still while the chain goes on. It is asked after what the others
// said: it is not behind for a block that came between.
func (h *Heads) See(ctx context.Context) error {
	others, err := h.OthersHeads(ctx, h.Name())
	if err != nil {
		return fmt.Errorf("the newest block that other gateways have: %w", err)
	}
	head, err := h.newest(ctx)
	if err != nil {
		return err
	}
	return h.Check(head, others)
}

func (h *Heads) newest(ctx context.Context) (uint64, error) {
	header, err := h.Endpoint.HeaderByNumber(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("reading the newest block: %w", err)
	}
	return header.Number.Uint64(), nil
}

// A Standstill notices that this gateway's endpoint answers and has stopped following the chain. An endpoint that has new blocks is
// believed, however far ahead another one says the chain is: that one may be of another chain, or lie. That the chain goes on is believed of
// an endpoint that has new blocks itself, whatever their numbers are. Its times are of the monotonic clock.
type Standstill struct {
	After time.Duration // how long an endpoint may be without a new block that others have

	mu    sync.Mutex
	now   func() time.Time // nil: the time
	head  uint64
	since time.Time // when it was seen first
	seen  time.Time // when it was seen last
	older bool      // it answered an older one last

	others map[string]otherHead // of the gateways that live
}

// otherHead is what another gateway said, and how often it had a newer block since this one's endpoint had its newest.
type otherHead struct {
	head uint64
	rose int
}

// goesOn is how often an endpoint has a newer block that follows the chain: one that says something for a moment has one once, and then an
// older one.
const goesOn = 2

// SetClock has it measure by a clock for how long an endpoint had no new block.
func (s *Standstill) SetClock(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

// Check fails where the endpoint has had no new block for longer than After, and another gateway's has, by the newest blocks of these.
func (s *Standstill) Check(head uint64, others map[string]uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.now != nil {
		now = s.now()
	}
	s.see(head, now)
	stood := now.Sub(s.since)
	if on, newest := s.hear(others, stood > s.After); on && stood > s.After {
		return fmt.Errorf("this gateway's endpoint stands still: its newest block is %d for %s, and another gateway's goes on, to block %d: look at the endpoint, or name another one in RPC",
			s.head, stood.Round(time.Second), newest)
	}
	return nil
}

// hear hears which blocks are the newest of others, and reports whether one of them has had new ones, and its newest. Where this gateway's
// endpoint stood for a short time only, one that has no newer block than that may have been behind, on a chain that has none. The caller
// holds mu.
func (s *Standstill) hear(others map[string]uint64, long bool) (on bool, newest uint64) {
	heard := make(map[string]otherHead, len(others))
	for id, head := range others {
		o, known := s.others[id]
		switch {
		case !known: // it may stand still as well
		case head < o.head && o.rose < goesOn:
			o.rose = 0 // what it said was for a moment
		case head > o.head && (long || head > s.head):
			o.rose++
		}
		heard[id] = otherHead{head, o.rose}
		if o.rose >= goesOn {
			on, newest = true, max(newest, head)
		}
	}
	s.others = heard
	return on, newest
}

// see hears which block is the endpoint's newest. One that it answers no more for After, and older ones instead, was said for a moment: from
// then on what counts are those. The caller holds mu.
func (s *Standstill) see(head uint64, now time.Time) {
	switch {
	case head > s.head || s.since.IsZero():
		for id, o := range s.others {
			s.others[id] = otherHead{head: o.head}
		}
		s.head, s.since, s.seen, s.older = head, now, now, false
	case head == s.head:
		s.seen, s.older = now, false
	case s.older && now.Sub(s.seen) > s.After:
		s.head, s.since, s.seen, s.older = head, now, now, false
	default:
		s.older = true
	}
}
