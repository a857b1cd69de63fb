package tower

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/wire"
)

const (
	// relaysAtOnce bounds the leaves that are worked on at a time.
	relaysAtOnce = 8
	// relayGas is what a transaction for a payer may take at most.
	relayGas = 400_000
	// relayWait is how long one is waited for before the others' turn.
	relayWait = time.Minute
)

// relay sees payers out that have no coin of their own: it keeps what they signed, sends it within the budget, and goes on until
// nothing is left to do for them.
type relay struct {
	*watched
	*books
	*budget
	settler *settle.Settler
	watcher *settle.Watcher
	metrics *metrics
	leaves  leaveStore

	sends   keyed.Mutex           // one relayed transaction at a time is looked up and sent for a channel
	turn    sync.Mutex            // held between looking at the budget and being in the outbox
	endings endings               // leaves that seem to be over
	mu      sync.Mutex            // guards rest
	rest    map[common.Hash]*rest // leaves that failed
}

// RequestClose takes a payer's signed request to close: it is on disk, and
// sent to the chain, when RequestClose returns without an error. After the
// grace period the tower withdraws for the payer. If ctx ends before the
// transaction is mined, Run sees it through.
func (t *Tower) RequestClose(ctx context.Context, q wire.LeaveRequest) error {
	return t.relay.requestClose(ctx, "", q)
}

// requestClose is RequestClose for who has an address; "": one without bounds of its own.
func (r *relay) requestClose(ctx context.Context, client string, q wire.LeaveRequest) error {
	terms := q.Channel()
	if err := errors.Join(r.serves(terms), q.Check()); err != nil {
		return err
	}
	if err := errors.Join(r.guard.leave(terms), r.guard.read(client)); err != nil {
		return err
	}
	state, err := r.books.look(ctx, terms)
	if err != nil {
		return err
	}
	if state.Status == channel.Finalized {
		return fmt.Errorf("channel %s: %w: there is nothing to get back", state.ID, channel.ErrFinalized)
	}
	if err := r.worth(terms, state.refund()); err != nil {
		return err
	}
	if state.Status == channel.Closing { // somebody was faster: only the withdrawal is left
		return r.keepLeave(ctx, q, false)
	}
	return r.relayNew(ctx, q)
}

// keepLeave has a leave on disk, and looked after at once, whatever came of an earlier request of its channel. See leaveStore.put.
func (r *relay) keepLeave(ctx context.Context, q wire.LeaveRequest, next bool) error {
	if err := r.leaves.put(ctx, q, next); err != nil {
		return err
	}
	r.tire(q.Channel().ID(), nil)
	r.endings.goesOn(q.Channel().ID())
	return nil
}

// relayNew keeps a request and sends it, unless the contract would refuse it.
func (r *relay) relayNew(ctx context.Context, q wire.LeaveRequest) error {
	terms := q.Channel()
	if err := r.usable(ctx, q); err != nil {
		return err
	}
	call := r.escrow.RequestCloseAuthorizedCall(terms, q.Deadline, q.Signature)
	if err := r.escrow.Simulate(ctx, r.sender.Address(), call); err != nil {
		return err
	}
	if err := r.budget.relayBudget(ctx, terms); err != nil { // before a promise is made
		return err
	}
	if err := r.keepLeave(ctx, q, true); err != nil {
		return err
	}
	return r.send(ctx, terms, call)
}

// usable reports whether a request is the next that the channel takes, by one of two endpoints at least.
func (r *relay) usable(ctx context.Context, q wire.LeaveRequest) error {
	id := q.Channel().ID()
	least, most, err := r.escrow.CloseRequestsBounds(ctx, id)
	if err != nil {
		return err
	}
	if q.CloseRequests < least || q.CloseRequests > most {
		return fmt.Errorf("%w: channel %s has seen %d close requests, this one is for %d", errUsed, id, most, q.CloseRequests)
	}
	now, _, err := r.escrow.Times(ctx)
	if err != nil {
		return err
	}
	if uint64(now.Unix()) > q.Deadline {
		return fmt.Errorf("%w: channel %s: its deadline has passed: sign another", errUsed, id)
	}
	return nil
}

// Withdraw pays the payer of a channel whose grace period is over, after
// settling what the tower holds for the payee. Of a channel that is over it pays
// the payer what the token refused to pay before.
func (t *Tower) Withdraw(ctx context.Context, terms channel.Terms) error {
	return t.relay.withdrawFor(ctx, "", terms)
}

// withdrawFor is Withdraw for who has an address; "": one without bounds of its own. Nobody signed it.
func (r *relay) withdrawFor(ctx context.Context, client string, terms channel.Terms) error {
	if err := r.serves(terms); err != nil {
		return err
	}
	if r.guard.missing(terms.ID()) {
		return fmt.Errorf("%w: escrow %s has no channel %s", channel.ErrUnknown, r.escrow.Address(), terms.ID())
	}
	if err := r.guard.ask(client, terms.ID()); err != nil {
		return err
	}
	state, err := r.books.look(ctx, terms)
	if errors.Is(err, channel.ErrUnknown) {
		r.guard.miss(terms.ID())
	}
	if errors.Is(err, channel.ErrFinalized) || err == nil && state.Status == channel.Finalized {
		return r.payCredit(ctx, terms)
	}
	if err != nil {
		return err
	}
	return r.withdraw(ctx, state)
}

// payCredit pays a payer what the contract owes it in a channel's token. It goes
// to the payer itself, which takes no signature.
func (r *relay) payCredit(ctx context.Context, terms channel.Terms) error {
	call, amount, err := r.escrow.PayoutCall(ctx, terms.Payer, terms.Token)
	if err != nil || amount.IsZero() {
		return err
	}
	if err := r.worth(terms, amount.Int); err != nil {
		return err
	}
	call.Channels = []common.Hash{terms.ID()}
	return r.send(ctx, terms, call)
}

// refund is what the payer gets back if the newest voucher is settled first.
func refund(s channel.State) uint256.Int {
	var left uint256.Int
	paid := s.Settled
	if s.Accepted.Gt(&paid) {
		paid = s.Accepted
	}
	if s.Deposit.Gt(&paid) {
		left.Sub(&s.Deposit, &paid)
	}
	return left
}

func (r *relay) withdraw(ctx context.Context, s sighting) error {
	if s.Status == channel.Finalized {
		return nil
	}
	if s.Status != channel.Closing {
		return fmt.Errorf("%w: nobody asked to close channel %s", errNotDue, s.ID)
	}
	now, err := r.time(ctx)
	if err != nil {
		return err
	}
	if due := r.due(s.State); now.Before(due) {
		return fmt.Errorf("%w: channel %s: at %s", errNotDue, s.ID, due.UTC().Format(time.RFC3339))
	}
	if err := r.settleFirst(ctx, s.State); err != nil {
		return err
	}
	if err := r.worth(s.Terms, s.refund()); err != nil {
		return err
	}
	return r.send(ctx, s.Terms, r.escrow.WithdrawCall(s.Terms))
}

// settleFirst gives the payee its due while there is time: after the withdrawal
// the voucher is worth nothing. Without the budget for that there is no withdrawal.
// What the contract refuses of this channel, or is not worth its gas, does not hold up the payer, nor
// does an endpoint that does not know yet what a settlement of ours brought. What became of others says nothing of
// this channel: a payee whom a token blocks must not cost another its voucher.
func (r *relay) settleFirst(ctx context.Context, s channel.State) error {
	failed := r.settler.SettleOnly(ctx, s.ID)
	if outcome.Refused(failed, s.ID) {
		return nil
	}
	s, err := r.settler.State(ctx, s.ID)
	if err != nil {
		return fmt.Errorf("settling channel %s before its withdrawal: %w", s.ID, errors.Join(failed, err))
	}
	left := s.Unsettled()
	if left.IsZero() || r.worth(s.Terms, left) != nil {
		return nil
	}
	if failed != nil {
		return fmt.Errorf("settling channel %s before its withdrawal: %w", s.ID, failed)
	}
	within, err := r.budget.affordable(ctx, []channel.State{s})
	if err != nil {
		return err
	}
	if len(within) == 0 {
		return fmt.Errorf("%w: channel %s: a voucher over %s base units that are not settled would be lost by its withdrawal: try again later", errBudget, s.ID, left.Dec())
	}
	return fmt.Errorf("%w: channel %s: a voucher over %s base units would be lost by its withdrawal, which waits until the chain, and each of two endpoints that still follows it, shows it settled", errBusy, s.ID, left.Dec())
}

// send puts a payer's transaction on the chain, or waits for the one that is on
// its way already.
func (r *relay) send(ctx context.Context, terms channel.Terms, call chain.Call) error {
	defer r.sends.Lock(terms.ID())()
	tx, err := r.submit(ctx, terms, call)
	if err != nil {
		return err
	}
	if _, err := r.sender.Wait(ctx, tx, 1); err != nil {
		return err
	}
	r.metrics.relayed(call.Kind)
	if _, err := r.books.look(ctx, terms); err != nil {
		r.config.Log.Debug("the watcher will see it", "call", call.String(), "err", err)
	}
	return nil
}

func (r *relay) submit(ctx context.Context, terms channel.Terms, call chain.Call) (chain.TxID, error) {
	if err := r.sender.Sync(ctx); err != nil { // what a re-org undid is on its way again
		return "", err
	}
	sent, err := r.sender.Find(ctx, terms.ID())
	if err != nil {
		return "", err
	}
	for _, tx := range sent {
		// One that succeeded and whose work is not seen is being undone by a re-org,
		// and will be sent again.
		same := tx.Call.Kind == call.Kind && (tx.State == chain.Pending && tx.Sender == r.sender.Address() || tx.Succeeded && bytes.Equal(tx.Call.Data, call.Data))
		if same {
			return tx.ID, nil
		}
	}
	r.turn.Lock()
	defer r.turn.Unlock()
	if err := r.budget.relayBudget(ctx, terms); err != nil {
		return "", err
	}
	call.MaxGas = relayGas            // a payer that is a contract checks its signature itself
	return r.sender.Submit(ctx, call) // which runs it first: what the contract refuses costs nothing
}

func (b *budget) relayBudget(ctx context.Context, terms channel.Terms) error {
	spent, err := b.spent(ctx, payerOf, chain.RequestClose, chain.Withdraw, chain.WithdrawCredit)
	if err != nil {
		return err
	}
	return spent.within(b.config.RelayGas, terms.Payer)
}

// relayAll sees the requests through that are on disk, until ctx ends.
func (r *relay) relayAll(ctx context.Context) error {
	for {
		if err := r.relayOnce(ctx); err != nil && ctx.Err() == nil {
			r.config.Log.Warn("relaying for payers", "err", err)
		}
		if err := chain.Pause(ctx, r.config.Chain.Poll); err != nil {
			return err
		}
	}
}

func (r *relay) relayOnce(ctx context.Context) error {
	requests, err := r.leaves.open(ctx)
	if err != nil || len(requests) == 0 {
		return err
	}
	now, err := r.time(ctx)
	if err != nil {
		return err
	}
	r.largestFirst(ctx, requests)
	slots := make(chan struct{}, relaysAtOnce)
	var work sync.WaitGroup
	defer work.Wait()
	for _, q := range requests {
		id := q.Channel().ID()
		if r.resting(id) || r.waits(ctx, id, now) {
			continue
		}
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, relayWait)
			defer cancel()
			r.tire(id, r.seeThrough(ctx, q))
		})
	}
	return nil
}

// waits reports whether the watcher knows a channel to be in its grace period.
func (r *relay) waits(ctx context.Context, id common.Hash, now time.Time) bool {
	state, err := r.payee.State(ctx, id)
	return err == nil && state.Status == channel.Closing && now.Before(r.due(state))
}

// seeThrough does what is next for a payer who wants out, by what the chain says
// at this moment. It ends a leave only after an hour of looks that all say that
// nothing is left to do: an endpoint may be wrong for a while.
func (r *relay) seeThrough(ctx context.Context, q wire.LeaveRequest) error {
	id := q.Channel().ID()
	s, err := r.books.look(ctx, q.Channel())
	if err != nil {
		return err
	}
	err = r.next(ctx, q, s)
	if !errors.Is(err, errOver) {
		if err == nil {
			r.endings.goesOn(id)
		}
		return err
	}
	if !r.endings.lasts(id, time.Now(), s.known) {
		return err
	}
	r.config.Log.Info("a payer's leave has come to its end", "channel", id, "why", err)
	return r.leaves.finish(ctx, q)
}

// next does what is next for a payer who wants out. It is errOver if that is nothing.
func (r *relay) next(ctx context.Context, q wire.LeaveRequest, s sighting) error {
	if s.Status == channel.Finalized {
		if !s.final {
			r.endings.goesOn(s.ID)
			r.watcher.Doubt(s.ID)
			return fmt.Errorf("channel %s: the chain takes back that it is finalized: waiting until that is sure", s.ID)
		}
		return fmt.Errorf("%w: the channel is finalized", errOver)
	}
	if s.Status == channel.Closing {
		err := r.withdraw(ctx, s)
		if errors.Is(err, errTooSmall) { // all of it became the payee's
			return fmt.Errorf("%w: %w", errOver, err)
		}
		if errors.Is(err, errNotDue) {
			return nil
		}
		return err
	}
	if err := r.usable(ctx, q); errors.Is(err, errUsed) { // taken back, or nobody could send it in time
		return fmt.Errorf("%w: %w", errOver, err)
	} else if err != nil {
		return err
	}
	terms := q.Channel()
	return r.send(ctx, terms, r.escrow.RequestCloseAuthorizedCall(terms, q.Deadline, q.Signature))
}

// resting reports whether a leave failed not long ago.
func (r *relay) resting(id common.Hash) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.rest[id]
	return p != nil && time.Now().Before(p.until)
}

// rest is how long a leave that failed waits.
type rest struct {
	until time.Time
	pace  chain.Backoff
}

// tire has a leave that failed wait, longer each time, so that one that cannot
// succeed costs the endpoint little.
func (r *relay) tire(id common.Hash, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.rest, id)
		return
	}
	p := r.rest[id]
	if p == nil {
		p = &rest{pace: chain.Backoff{Least: r.config.Chain.Poll, Most: min(10*time.Minute, r.escrow.Grace()/10)}}
		r.rest[id] = p
	}
	wait := p.pace.Next()
	p.until = time.Now().Add(wait)
	level := slog.LevelWarn
	if errors.Is(err, errOver) {
		level = slog.LevelDebug
	}
	r.config.Log.Log(context.Background(), level, "relaying for a payer", "channel", id, "err", err, "retry", wait)
}
