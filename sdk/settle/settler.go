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
	mu      sync.Mutex
	words   uint64                   // how often something was called urgent
	urgent  map[common.Hash]uint64   // and by which word, the newest
	claimed map[common.Hash]uint64   // somebody is settling it, and has heard this many words
	penalty map[common.Hash]*penalty // it failed alone
	ahead   map[common.Hash]ahead
	payouts payouts
	work    sync.WaitGroup
}

// penalty keeps a channel that failed out of the others' way for a while.
type penalty struct {
	since time.Time
	wait  time.Duration
	pace  chain.Backoff
}

// over reports whether the channel has waited long enough. A clock that was set back further than the wait ends it: otherwise
// a channel that closes could stay out for as long as the clock went back.
func (p *penalty) over(now time.Time) bool { return now.Sub(p.since).Abs() >= p.wait }

func (s *Settler) init() {
	s.once.Do(func() {
		s.wake = make(chan struct{}, 1)
		s.urgent = make(map[common.Hash]uint64)
		s.claimed = make(map[common.Hash]uint64)
		s.penalty = make(map[common.Hash]*penalty)
		s.ahead = make(map[common.Hash]ahead)
	})
}

// Urgent has a channel settled without waiting for value or age: its lease ended, or its payer wants out.
func (s *Settler) Urgent(id common.Hash) {
	s.init()
	s.mu.Lock()
	s.words++
	s.urgent[id] = s.words
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

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
		if err := s.sleep(ctx, min(wait, s.soonest())); err != nil {
			return err
		}
	}
}

func (s *Settler) sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.wake:
	case <-timer.C:
	}
	return nil
}

// soonest is when something urgent deserves another look.
func (s *Settler) soonest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.urgent) > 0 {
		return 5 * time.Second
	}
	return 24 * time.Hour
}

// pass starts the settlement of everything that is due.
func (s *Settler) pass(ctx context.Context) error {
	if err := s.resume(ctx); err != nil {
		return err
	}
	if err := s.payWaiting(ctx, s.worth); err != nil { // no reason not to settle: what is set aside is safe, and a voucher is not
		if ctx.Err() != nil {
			return err
		}
		s.log().Warn("a payout waits", "err", err)
	}
	heard := s.heard()
	states, err := s.unsettled(ctx)
	if err != nil {
		return err
	}
	s.calm(states, heard)
	due, err := s.due(ctx, states, heard)
	if err != nil || len(due) == 0 {
		return err
	}
	due = s.claim(due)
	read := s.now()
	due, err = s.refresh(ctx, due)
	if err != nil {
		s.release(due)
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
		defer s.release(batch)
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
	mine, err := s.acquire(ctx, only(states, ids))
	if err != nil {
		return err
	}
	read := s.now()
	fresh, err := s.refresh(ctx, mine)
	defer s.release(fresh)
	if err != nil {
		return err
	}
	for _, batch := range s.batches(fresh) {
		err = errors.Join(err, s.settle(ctx, batch, read, func() {}))
	}
	if len(ids) > 0 {
		return errors.Join(err, s.payWaiting(ctx, s.worth))
	}
	s.Recall()
	return errors.Join(err, s.payWaiting(ctx, whatever))
}

// acquire claims all of the channels, waiting for who settles them already.
func (s *Settler) acquire(ctx context.Context, states []channel.State) ([]channel.State, error) {
	var mine []channel.State
	for {
		got := s.claim(states)
		mine = append(mine, got...)
		states = except(states, got)
		if len(states) == 0 {
			return mine, nil
		}
		if err := chain.Pause(ctx, 100*time.Millisecond); err != nil {
			s.release(mine)
			return nil, err
		}
	}
}

// claim takes those of the channels that nobody else settles at this moment.
func (s *Settler) claim(states []channel.State) []channel.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	var mine []channel.State
	for _, state := range states {
		if _, taken := s.claimed[state.ID]; !taken {
			s.claimed[state.ID] = s.words
			mine = append(mine, state)
		}
	}
	return mine
}

func (s *Settler) release(states []channel.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, state := range states {
		delete(s.claimed, state.ID)
	}
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
		mine := s.claim(states)
		if len(mine) == 0 {
			continue
		}
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			defer s.release(mine)
			defer s.expect(ctx, tx.Call.Channels)
			if _, err := s.await(ctx, tx.ID, tx.Call.Channels); err != nil && ctx.Err() == nil {
				s.log().Warn("resumed transaction", "tx", tx.ID, "call", tx.Call.String(), "err", err)
			}
		}()
	}
	return nil
}

// heard is how many words of urgency there were so far: what is read after it includes what they are about.
func (s *Settler) heard() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.words
}

// fulfil forgets that a channel was called urgent before it was claimed: what was accepted until then is settled. A word
// that came later may be about more.
func (s *Settler) fulfil(id common.Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.urgent[id] <= s.claimed[id] {
		delete(s.urgent, id)
	}
}

// calm forgets penalties of channels that have nothing to settle, and their urgency of before that was read.
func (s *Settler) calm(unsettled []channel.State, heard uint64) {
	waiting := make(map[common.Hash]bool, len(unsettled))
	for _, state := range unsettled {
		waiting[state.ID] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, word := range s.urgent {
		if !waiting[id] && word <= heard {
			delete(s.urgent, id)
		}
	}
	for id := range s.penalty {
		if !waiting[id] {
			delete(s.penalty, id)
		}
	}
}

// punish keeps a channel away for a while. A tenth of the grace period is the longest: there must be many tries left
// before its payer can take the money back.
func (s *Settler) punish(id common.Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.penalty[id]
	if p == nil {
		p = &penalty{pace: chain.Backoff{Least: 10 * time.Second, Most: min(10*time.Minute, s.Contract.Grace()/10)}}
		s.penalty[id] = p
	}
	p.since, p.wait = s.now(), p.pace.Next()
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
