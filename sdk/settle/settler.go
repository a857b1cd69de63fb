package settle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/big"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
)

// A Settlement is one transaction that was mined and what it brought. Where the contract shows that and no endpoint the receipt, Tx
// and Gas are zero.
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
	unseen  map[chain.TxID]uint64 // those whose receipt was waited for in vain, and their nonce, once it was read
	payouts payouts
	work    sync.WaitGroup
}

func (s *Settler) init() {
	s.once.Do(func() {
		s.wake = make(chan struct{}, 1)
		s.ahead = make(map[common.Hash]ahead)
		s.unseen = make(map[chain.TxID]uint64)
		s.payouts.payee, s.payouts.contract, s.payouts.sender, s.payouts.now = s.Payee, s.Contract, s.Sender, s.now
		s.payouts.slots = make(chan struct{}, atOnce)
	})
}

// Urgent has a channel settled without waiting for value or age: its lease ended, or its payer wants out.
func (s *Settler) Urgent(id common.Hash) {
	s.init()
	s.queue.urge(id)
	nudge(s)
}

// nudge has Run begin its next pass at once.
func nudge(s *Settler) {
	s.init()
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

// pass starts the settlement of everything that is due, and then the payout of what was set aside: that is safe, and a voucher is
// not. It waits for neither.
func (s *Settler) pass(ctx context.Context) error {
	if err := s.resume(ctx); err != nil {
		return err
	}
	err := s.startDue(ctx)
	if failed := s.startPayouts(ctx); failed != nil && ctx.Err() == nil {
		s.log().Warn("payouts wait", "err", failed)
	}
	return err
}

// startDue starts the settlement of what the policy wants settled.
func (s *Settler) startDue(ctx context.Context) error {
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
		s.start(ctx, &s.work, batch, read, func(err error) {
			if err != nil && ctx.Err() == nil {
				s.log().Error("settlement failed", "channels", len(batch), "err", err)
			}
			s.payBeside(ctx, purseOf(batch[0]))
		})
	}
	return nil
}

// start returns when the batch is in the outbox or was refused: what comes after it takes no coin from it. Its channels are given
// back when it is over, and then ended is called, before work is done.
func (s *Settler) start(ctx context.Context, work *sync.WaitGroup, batch []channel.State, read time.Time, ended func(error)) {
	submitted := make(chan struct{})
	sent := sync.OnceFunc(func() { close(submitted) })
	work.Go(func() {
		defer sent()
		err := s.settle(ctx, batch, read, sent)
		s.queue.done(batch, err)
		sent()
		ended(err)
	})
	<-submitted
}

// Settle settles channels now, and returns when that is done. If none is named it settles all that have something to
// settle, and fetches all that the contract set aside, however little: the policy plays no part. The
// error names every channel that could not be settled. What somebody else settles at this moment comes last, and nothing is held
// until then.
func (s *Settler) Settle(ctx context.Context, ids ...common.Hash) error {
	worth := s.worth
	if len(ids) == 0 {
		worth = whatever
	}
	return settleNow(ctx, s, ids, func() error {
		if len(ids) == 0 {
			s.Recall()
		}
		return s.payouts.payWaiting(ctx, worth)
	})
}

// SettleOnly is Settle for one channel, of which the payout is left to Run: neither it nor those of other purses are waited for, and
// what fails them is not in the error.
func (s *Settler) SettleOnly(ctx context.Context, id common.Hash) error {
	defer nudge(s)
	return settleNow(ctx, s, []common.Hash{id}, func() error { return nil })
}

// settleNow settles channels, all if none is named. What it settles is paid out before it waits for what others settle, and after.
func settleNow(ctx context.Context, s *Settler, ids []common.Hash, payOut func() error) error {
	s.init()
	if err := s.resume(ctx); err != nil {
		return err
	}
	since := s.queue.mark()
	states, err := s.unsettled(ctx)
	if err != nil {
		return err
	}
	left, err := s.settleFree(ctx, only(states, ids), since)
	err = errors.Join(err, payOut())
	if len(left) == 0 {
		return err
	}
	for len(left) > 0 {
		if ended := chain.Pause(ctx, 100*time.Millisecond); ended != nil {
			for _, state := range left {
				why := s.Sender.Untold(context.WithoutCancel(ctx), state.ID)
				err = errors.Join(err, Unsettled(state.ID, fmt.Errorf("a transaction that settles it is under way: %w", errors.Join(ended, why))))
			}
			return err
		}
		var failed error
		left, failed = s.settleFree(ctx, left, since)
		err = errors.Join(err, failed)
	}
	return errors.Join(err, payOut())
}

// settleFree settles those of the channels that nobody else settles. It returns those that somebody does, if it was not in time
// for what had been accepted at the mark.
func (s *Settler) settleFree(ctx context.Context, states []channel.State, since uint64) (left []channel.State, err error) {
	mine, tried, left := s.queue.sort(states, since)
	err = missed(ctx, s, tried)
	read := s.now()
	fresh, failed := s.refresh(ctx, mine)
	if failed != nil {
		s.queue.release(fresh)
		return left, errors.Join(err, failed)
	}
	var work sync.WaitGroup
	var mu sync.Mutex // guards err
	for _, batch := range s.batches(fresh) {
		s.start(ctx, &work, batch, read, func(failed error) {
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, failed)
		})
	}
	work.Wait()
	return left, err
}

// missed names those of the channels that somebody else has tried to settle and that still are not.
func missed(ctx context.Context, s *Settler, tried []channel.State) error {
	ids := make([]common.Hash, len(tried))
	for i, state := range tried {
		ids[i] = state.ID
	}
	now, err := s.observe(ctx, ids, 0)
	if err != nil {
		return err
	}
	for _, was := range tried {
		state, wanted := now[was.ID], was.Payable()
		if state.Settled.Lt(&wanted) && state.Status != channel.Finalized {
			failed := errors.New("another settlement of it ended meanwhile")
			if why := s.queue.why(was.ID); why != nil {
				failed = fmt.Errorf("%w: %w", failed, why)
			}
			err = errors.Join(err, Unsettled(was.ID, failed))
		}
	}
	return err
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
// is not waited for, nor what was waited for in vain.
func (s *Settler) resume(ctx context.Context) error {
	if err := s.Sender.Sync(ctx); err != nil {
		return err
	}
	flying, err := s.Sender.InFlight(ctx)
	if err != nil {
		return err
	}
	spent := spentOf(s, flying)
	for _, tx := range flying {
		if tx.Call.To != s.Contract.Address() || tx.Most != nil || spent[tx.ID] {
			continue // another contract's, which the same key settles; or one for a payer, which gives way to a settlement
		}
		var states []channel.State
		for _, id := range tx.Call.Channels {
			states = append(states, channel.State{ID: id})
		}
		mine := s.queue.watch(states)
		if len(mine) == 0 {
			continue
		}
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			defer s.queue.release(mine)
			defer s.expect(ctx, tx.Call.Channels)
			if _, err := s.await(ctx, tx.ID, tx.Call.Channels, nil); err != nil && ctx.Err() == nil {
				s.log().Warn("resumed transaction", "tx", tx.ID, "call", tx.Call.String(), "err", err)
			}
		}()
	}
	return nil
}

// spend notes that a transaction's receipt was waited for in vain: nothing is kept for it any more.
func spend(s *Settler, id chain.TxID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unseen[id] = noNonce
}

// noNonce is no transaction's.
const noNonce = math.MaxUint64

// spentOf are those of the transactions whose receipt was waited for in vain. One that was signed anew since, under another nonce, is
// under way again.
func spentOf(s *Settler, flying []chain.Tx) map[chain.TxID]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	still, spent := make(map[chain.TxID]uint64), make(map[chain.TxID]bool)
	for _, tx := range flying {
		if nonce, found := s.unseen[tx.ID]; found && (nonce == noNonce || nonce == tx.Nonce) {
			still[tx.ID], spent[tx.ID] = tx.Nonce, true
		}
	}
	s.unseen = still
	return spent
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
func Unsettled(id common.Hash, err error) error { return &outcome.Unsettled{Channel: id, Err: err} }
