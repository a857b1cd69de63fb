package settle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A Settlement is one transaction that was mined and what it brought.
type Settlement struct {
	Tx       common.Hash
	Channels []common.Hash // those that were paid
	Skipped  []chain.Skipped
	Paid     uint256.Int // base units, to all of them together
	Gas      *big.Int    // wei
}

// A Settler fetches what payers have vouchered: in batches of one payee and token, one transaction for claim and payout.
// It believes the contract and nothing else: a channel counts as settled when the contract says so after the
// transaction's block. A channel that cannot be settled is reported and retried alone, ever more seldom, and holds up
// none of the others. Fields are set before first use.
type Settler struct {
	Payee    *channel.Payee
	Contract chain.Contract
	Sender   *chain.Sender
	Policy   Policy

	// First says which of two channels is settled first, where one transaction does not hold both or
	// there is no coin for all; nil: what is closing, and then what brings most.
	First func(a, b channel.State) int

	OnSettled func(Settlement) // after each transaction; may be nil
	Log       *slog.Logger
	Now       func() time.Time

	once    sync.Once
	wake    chan struct{}
	queue   queue
	mu      sync.Mutex
	ahead   map[common.Hash]ahead
	payouts payouts
	work    sync.WaitGroup
}

func (s *Settler) init() {
	s.once.Do(func() {
		s.wake = make(chan struct{}, 1)
		s.ahead = make(map[common.Hash]ahead)
		s.payouts.payee, s.payouts.contract, s.payouts.sender, s.payouts.now = s.Payee, s.Contract, s.Sender, s.now
	})
}

// Urgent has a channel settled without waiting for value or age: its lease ended, or its payer wants out.
func (s *Settler) Urgent(id common.Hash) {
	s.init()
	s.queue.urge(id)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// urgentInterval is how soon something urgent is looked at again.
const urgentInterval = 5 * time.Second

// Run applies the policy until the context ends, and then waits for what it was doing. Failures of the endpoint are
// logged and retried with growing, jittered pauses.
func (s *Settler) Run(ctx context.Context) error {
	s.init()
	defer s.work.Wait()
	var pace chain.Backoff
	for {
		wait := cmp.Or(s.Policy.Interval, defaultInterval)
		if err := s.pass(ctx); err != nil {
			wait = pace.Next()
			s.log().Warn("settlement postponed", "err", err, "retry", wait)
			if err := chain.Pause(ctx, wait); err != nil { // even if urgent: the endpoint is what failed
				return err
			}
			continue
		}
		pace.Reset()
		if s.queue.hasUrgent() {
			wait = min(wait, urgentInterval)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		case <-time.After(wait):
		}
	}
}

// pass starts the settlement of everything that is due.
func (s *Settler) pass(ctx context.Context) error {
	if err := s.resume(ctx); err != nil {
		return err
	}
	if err := s.payouts.payWaiting(ctx, s.worth); err != nil { // no reason not to settle: what is set aside is safe, and a voucher is not
		if ctx.Err() != nil {
			return err
		}
		s.log().Warn("a payout waits", "err", err)
	}
	heard := s.queue.heard()
	states, err := s.unsettled(ctx)
	if err != nil {
		return err
	}
	s.queue.forget(states, heard)
	due, err := s.due(ctx, states, heard)
	if err != nil || len(due) == 0 {
		return err
	}
	due = s.queue.claim(due)
	read := s.now()
	due, err = s.refresh(ctx, due)
	if err != nil {
		s.queue.release(due)
		return err
	}
	for _, batch := range s.batches(due) {
		s.start(ctx, batch, read)
	}
	return nil
}

// start returns when the batch is in the outbox or was refused: what comes after it takes no coin from it.
func (s *Settler) start(ctx context.Context, batch []channel.State, read time.Time) {
	s.work.Add(1)
	submitted := make(chan struct{})
	sent := sync.OnceFunc(func() { close(submitted) })
	defer func() { <-submitted }()
	go func() {
		defer s.work.Done()
		defer s.queue.release(batch)
		defer sent()
		if err := s.settle(ctx, batch, read, sent); err != nil && ctx.Err() == nil {
			s.log().Error("settlement failed", "channels", len(batch), "err", err)
		}
	}()
}

// Settle settles channels now, and returns when that is done. If none is named it settles all that have something to
// settle, and fetches all that the contract set aside, however little: the policy plays no part. The
// error names every channel that could not be settled.
func (s *Settler) Settle(ctx context.Context, ids ...common.Hash) error {
	s.init()
	if err := s.resume(ctx); err != nil {
		return err
	}
	states, err := s.unsettled(ctx)
	if err != nil {
		return err
	}
	mine, err := s.queue.acquire(ctx, only(states, ids))
	if err != nil {
		return err
	}
	read := s.now()
	fresh, err := s.refresh(ctx, mine)
	defer s.queue.release(fresh)
	if err != nil {
		return err
	}
	for _, batch := range s.batches(fresh) {
		err = errors.Join(err, s.settle(ctx, batch, read, func() {}))
	}
	if len(ids) > 0 {
		return errors.Join(err, s.payouts.payWaiting(ctx, s.worth))
	}
	s.Recall()
	return errors.Join(err, s.payouts.payWaiting(ctx, whatever))
}

// State reads a channel from the contract, and counts as settled what a settlement of ours brought that one of two endpoints does not
// know yet: what the payee keeps of it may say less.
func (s *Settler) State(ctx context.Context, id common.Hash) (channel.State, error) {
	states, err := s.observe(ctx, []common.Hash{id}, 0)
	if err != nil {
		return channel.State{ID: id}, err
	}
	state, known := states[id]
	if !known {
		return channel.State{ID: id}, fmt.Errorf("channel %s: %w", id, channel.ErrUnknown)
	}
	return state, nil
}

// resume takes over what is under way already, since before the program last stopped or since a re-org undid it: those
// channels are settled by a transaction that is in the outbox, and a second one would only cost gas. What is sent for payers
// is not waited for.
func (s *Settler) resume(ctx context.Context) error {
	if err := s.Sender.Sync(ctx); err != nil {
		return err
	}
	flying, err := s.Sender.InFlight(ctx)
	if err != nil {
		return err
	}
	for _, tx := range flying {
		if tx.Call.To != s.Contract.Address() || tx.Most != nil {
			continue // another contract's, which the same key settles; or one for a payer, which gives way to a settlement
		}
		var states []channel.State
		for _, id := range tx.Call.Channels {
			states = append(states, channel.State{ID: id})
		}
		mine := s.queue.claim(states)
		if len(mine) == 0 {
			continue
		}
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			defer s.queue.release(mine)
			defer s.expect(ctx, tx.Call.Channels)
			if _, err := s.await(ctx, tx.ID, tx.Call.Channels); err != nil && ctx.Err() == nil {
				s.log().Warn("resumed transaction", "tx", tx.ID, "call", tx.Call.String(), "err", err)
			}
		}()
	}
	return nil
}

// backOff keeps a channel away for a while. A tenth of the grace period is the longest: there must be many tries left before its
// payer can take the money back.
func (s *Settler) backOff(id common.Hash) {
	s.queue.backOff(id, s.now(), min(10*time.Minute, s.Contract.Grace()/10))
}

func (s *Settler) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Settler) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.New(slog.DiscardHandler)
}

// only keeps the named states, all if none is named.
func only(states []channel.State, ids []common.Hash) []channel.State {
	if len(ids) == 0 {
		return states
	}
	named := make(map[common.Hash]bool, len(ids))
	for _, id := range ids {
		named[id] = true
	}
	var kept []channel.State
	for _, state := range states {
		if named[state.ID] {
			kept = append(kept, state)
		}
	}
	return kept
}

func except(states, without []channel.State) []channel.State {
	gone := make(map[common.Hash]bool, len(without))
	for _, state := range without {
		gone[state.ID] = true
	}
	var kept []channel.State
	for _, state := range states {
		if !gone[state.ID] {
			kept = append(kept, state)
		}
	}
	return kept
}

// Unsettled is the error of a channel that something kept from being settled.
func Unsettled(id common.Hash, err error) error {
	return fmt.Errorf("channel %s is not settled: %w", id, err)
}
