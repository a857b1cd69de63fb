package settle

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/run"
)

// Feed tells watchtowers of a payee's newest vouchers.
type Feed interface {
	Run(ctx context.Context) error
	Hurry() // tells them at once
}

// Book is one escrow contract's channels: its Watcher keeps them as the chain has them, its Settler fetches what was vouchered.
type Book struct {
	Watcher *Watcher
	Settler *Settler

	looked atomic.Int64 // when the watcher had looked last, nanoseconds since the service began
}

// Blindness is how long one of several processes may go on to serve whose looks at the chain fail: three that take as long as one
// may. The grace period of an escrow is several times that.
const Blindness = 3 * time.Minute

// Service watches every contract of a payee, works the outbox, settles and tells the watchtowers. Of the processes that share a
// database one runs it at a time: two would pay the gas of each settlement twice.
type Service struct {
	Sender *chain.Sender
	Feed   Feed
	Books  []*Book
	// Blind is how long its looks at the chain may fail, though its endpoint answers, before Run ends: another process may have
	// another endpoint. 0: for ever.
	Blind time.Duration
	// Beside runs with the rest, by the one process that settles; nil: nothing.
	Beside func(ctx context.Context) error
	began  time.Time
}

// NewService returns a service over books whose settlers send by sender. Its settlers hear of what the watchers see, before each
// Watcher's own OnChange and OnLook.
func NewService(sender *chain.Sender, feed Feed, books ...*Book) *Service {
	s := &Service{Sender: sender, Feed: feed, Books: books, began: time.Now()}
	for _, b := range books {
		s.observe(b)
	}
	return s
}

// observe has the book's settler and the watchtowers hear of what its watcher sees.
func (s *Service) observe(b *Book) {
	change, look := b.Watcher.OnChange, b.Watcher.OnLook
	b.Watcher.OnChange = func(old, now channel.State) {
		if now.Settled.Gt(&old.Settled) {
			b.Settler.Expect(now.Terms) // by whom or what for: a refund claims, too, and who asked for it may have given up
		}
		if now.Status == channel.Closing && now.CloseRequested() {
			b.Settler.Urgent(now.ID) // the grace period runs
			s.Feed.Hurry()
		}
		if change != nil {
			change(old, now)
		}
	}
	b.Watcher.OnLook = func() {
		b.looked.Store(int64(time.Since(s.began)))
		if look != nil {
			look()
		}
	}
}

// Run works until ctx ends or a part of the service fails for good.
func (s *Service) Run(ctx context.Context) error {
	parts := []func(context.Context) error{s.Sender.Run, s.Feed.Run}
	for _, b := range s.Books {
		parts = append(parts, b.Watcher.Run, b.Settler.Run)
	}
	if s.Blind > 0 {
		parts = append(parts, s.watchLooks)
	}
	if s.Beside != nil {
		parts = append(parts, s.Beside)
	}
	return run.Together(ctx, parts...)
}

// Settle fetches from every contract what has been vouchered. Its errors name the channels that could not be settled.
func (s *Service) Settle(ctx context.Context) error {
	var err error
	for _, b := range s.Books {
		err = errors.Join(err, b.Settler.Settle(ctx))
	}
	return err
}

// Urgent has a channel whose lease ended settled soon, if the policy of its contract wants that.
func (s *Service) Urgent(t channel.Terms) {
	for _, b := range s.Books {
		if b.Settler.Payee.Domain.Holds(t) == nil && b.Settler.Policy.Ended() {
			b.Settler.Urgent(t.ID())
		}
	}
}

// Expect has what the channel's contract set aside for its payee fetched with the next settlement.
func (s *Service) Expect(t channel.Terms) {
	for _, b := range s.Books {
		if b.Settler.Payee.Domain.Holds(t) == nil {
			b.Settler.Expect(t)
		}
	}
}

// Reload has each contract asked anew for what it holds for the payee: another process may have known more. See Settler.Recall.
func (s *Service) Reload() {
	for _, b := range s.Books {
		b.Settler.Recall()
	}
}

// Held is what was settled and waits in the contracts, base units.
func (s *Service) Held() (total uint256.Int) {
	for _, b := range s.Books {
		amount := b.Settler.Held()
		total.Add(&total, &amount)
	}
	return total
}

// Looked is when every contract was last looked at to the chain's newest block; zero before the first look at one of them.
func (s *Service) Looked() (oldest time.Time) {
	for _, b := range s.Books {
		seen := b.Watcher.Looked()
		if seen.IsZero() {
			return seen
		}
		if oldest.IsZero() || seen.Before(oldest) {
			oldest = seen
		}
	}
	return oldest
}

// watchLooks ends where the service is blind, whatever its other parts wait for.
func (s *Service) watchLooks(ctx context.Context) error {
	for chain.Pause(ctx, min(2*time.Second, s.Blind)) == nil {
		if err := s.CheckLooks(s.Blind); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// CheckLooks fails where a contract's channels were not read for longer than limit: its payers may ask to close unseen.
func (s *Service) CheckLooks(limit time.Duration) error {
	for _, b := range s.Books {
		if since := time.Since(s.began) - time.Duration(b.looked.Load()); since > limit {
			return fmt.Errorf("the channels of %s were not read for %s: another gateway may do it, with its endpoint", b.Watcher.Contract.Address(), since.Round(time.Second))
		}
	}
	return nil
}
