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

// OthersHead is the newest block that the endpoint of any other gateway that lives has; 0 where there is none.
func (m Members) OthersHead(ctx context.Context, id string) (head uint64, err error) {
	db := m.DB.View()
	err = db.GetContext(ctx, &head, db.Rebind(`SELECT COALESCE(MAX(head), 0) FROM gateways WHERE id <> ? AND expires > `+database.ServerNow), id)
	return head, err
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
	others, err := h.OthersHead(ctx, h.Name())
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
// believed, however far ahead another one says the chain is: that one may be of another chain, or lie. Its times are of the
// monotonic clock.
type Standstill struct {
	After time.Duration // how long an endpoint may be without a new block that others have

	mu    sync.Mutex
	now   func() time.Time // nil: the time
	head  uint64
	since time.Time // when it was seen first
}

// SetClock has it measure by a clock for how long an endpoint had no new block.
func (s *Standstill) SetClock(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

// Check fails where the endpoint has had no block after head for longer than After, and another gateway's has.
func (s *Standstill) Check(head, others uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.now != nil {
		now = s.now()
	}
	if head > s.head || s.since.IsZero() {
		s.head, s.since = head, now
	}
	if stood := now.Sub(s.since); stood > s.After && others > s.head {
		return fmt.Errorf("this gateway's endpoint stands still: its newest block is %d for %s, and another gateway's has block %d: look at the endpoint, or name another one in RPC",
			s.head, stood.Round(time.Second), others)
	}
	return nil
}
