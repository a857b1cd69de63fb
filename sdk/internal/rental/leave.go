package rental

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Channel is a rental's channel and all that needs no provider: deposits, how it ends on the chain, leaving it, and taking that back.
type Channel struct{ Deposits }

// leaveTTL is how long a signed request may wait to be relayed.
const leaveTTL = 24 * time.Hour

// Relay is a renter.Relay: it sends what a renter without native coin has signed.
type Relay interface {
	RequestClose(ctx context.Context, request wire.LeaveRequest) error
	Withdraw(ctx context.Context, terms channel.Terms) error
}

// SignLeave ends payments and signs a request to close that anyone can relay.
func (l *Channel) SignLeave(ctx context.Context) (wire.LeaveRequest, error) {
	l.account.left.Store(l.ID, true)
	if err := l.EndPayments(ctx); err != nil {
		return wire.LeaveRequest{}, err
	}
	nonce, err := l.Escrow.CloseRequests(ctx, l.ID)
	if err != nil {
		return wire.LeaveRequest{}, err
	}
	now, err := l.Escrow.Now(ctx)
	if err != nil {
		return wire.LeaveRequest{}, err
	}
	deadline := uint64(now.Add(leaveTTL).Unix())
	signature, err := l.Wallet.Key.Sign(ctx, l.Escrow.Domain().RequestCloseDigest(l.ID, nonce, deadline))
	if err != nil {
		return wire.LeaveRequest{}, fmt.Errorf("channel %s: signing the request to leave: %w", l.ID, err)
	}
	return wire.LeaveRequest{Terms: wire.NewTerms(l.Terms), CloseRequests: nonce, Deadline: deadline, Signature: signature}, nil
}

// Leave ends payments and does what the chain says is next, until the channel is final there. Where nobody can send the request to
// close it, the rental is as it was before.
func (l *Channel) Leave(ctx context.Context) error {
	before, err := l.Payer.State(ctx, l.ID)
	if err != nil {
		return err
	}
	phase := l.Row.Phase
	if err := l.EndPayments(ctx); err != nil {
		return err
	}
	if err := l.Enter(ctx, PhaseLeaving); err != nil {
		return err
	}
	err = l.exit(ctx)
	if errors.Is(err, wallet.ErrNoGas) && !before.Closed {
		err = errors.Join(err, l.stay(ctx, phase))
	}
	return err
}

// stay takes back that a channel is being left where nobody could send the request
// to close it: the rental goes on where it was, so that it can be resumed and paid,
// or closed by its provider. A request that was sent stays: vouchers end with it.
func (l *Channel) stay(ctx context.Context, phase Phase) error {
	sent, err := l.Outgoing(ctx, chain.RequestClose, 0)
	if err != nil || sent != "" {
		return err
	}
	view, err := l.Escrow.View(ctx, l.ID, nil)
	if err != nil || view.CloseRequestedAt != 0 {
		return err
	}
	if _, signed := l.account.left.Load(l.ID); signed { // meanwhile, and handed out
		return nil
	}
	if _, err := l.Payer.Reopen(ctx, l.ID); err != nil {
		return err
	}
	return l.Enter(ctx, phase)
}

// AwaitOpening waits until a channel that was being opened is on the chain, or
// cannot come to be there any more: then the rental is over. It sends nothing
// but what was in the outbox before.
func (l *Deposits) AwaitOpening(ctx context.Context) (there bool, err error) {
	for said := false; ; {
		there, never, err := l.opened(ctx)
		switch {
		case err != nil:
			boundlog.Warn(l.Wallet.Log, "leaving: it is not known yet whether the channel was opened", l.ID, err)
		case there:
			return true, nil
		case never:
			return false, l.neverFunded(ctx)
		case !said:
			l.Wallet.Log.Warn("leaving: the channel is not on the chain, and its deposit can still come"+l.Row.GoodUntil(), "channel", l.ID)
			said = true
		}
		if err := chain.Pause(ctx, l.Wallet.Poll); err != nil {
			return false, fmt.Errorf("channel %s: it is not on the chain, and its deposit can still come%s: leave it again: %w", l.ID, l.Row.GoodUntil(), err)
		}
	}
}

// opened looks at the outbox first and then at the chain: a transaction that is
// in neither was never sent.
func (l *Deposits) opened(ctx context.Context) (there, never bool, err error) {
	if err := l.Wallet.Sender.Sync(ctx); err != nil {
		return false, false, err
	}
	sent, err := l.opening(ctx)
	if err != nil {
		return false, false, err
	}
	seen, err := l.Look(ctx, l.Wallet.Confirmations)
	if err != nil || seen.There {
		return seen.There, false, err
	}
	never = !sent && l.Row.Until() == 0 && seen.time >= l.Row.fundedBy()
	return false, never, l.Save(ctx)
}

// exitStep is a step of leaving that can be taken now.
type exitStep struct {
	name string
	call chain.Call
	ask  func(context.Context, Relay) error // has a relay send it
	hint string                             // what to do without coin and relay
}

// exit does what the chain says is next, until the channel is final. A step
// that is refused is tried again: somebody may have been faster, or the chain's
// clock not quite there. Waiting for the grace period or an endpoint is no try.
func (l *Channel) exit(ctx context.Context) error {
	var before string
	pace := chain.Backoff{Least: l.Wallet.Poll, Most: 8 * l.Wallet.Poll}
	for tries := 0; ; {
		wait := l.Wallet.Poll
		view, err := l.SettledView(ctx)
		if err == nil && view.Finalized {
			return nil
		}
		var next *exitStep
		if err == nil {
			next, err = l.nextExit(ctx, view)
		}
		if next != nil {
			if next.name != before {
				before, tries = next.name, 0
				pace.Reset()
			}
			tries++
			if err = l.take(ctx, *next); errors.Is(err, wallet.ErrNoGas) || ctx.Err() != nil {
				return err
			}
			if tries >= wallet.LeaveRounds {
				return fmt.Errorf("channel %s: %w: to %s was tried %d times, and the chain shows nothing of it: %w", l.ID, wallet.ErrStuck, next.name, tries, cmp.Or(err, wallet.ErrNotYet))
			}
			wait = pace.Next()
		}
		if errors.Is(err, channel.ErrUnknown) { // a re-org took the deposit: if it was our transaction, it is sent again
			err = errors.Join(err, l.Wallet.Sender.Sync(ctx))
		}
		if err != nil {
			boundlog.Warn(l.Wallet.Log, "leaving: not yet", l.ID, err, "retry", wait)
		}
		if err := chain.Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// nextExit is the step that the chain has come to, nil while the grace period
// runs by the chain's clock.
func (l *Channel) nextExit(ctx context.Context, view channel.ChainView) (*exitStep, error) {
	if view.CloseRequestedAt == 0 {
		return &exitStep{"request the close", l.Escrow.RequestCloseCall(l.Row.Terms), func(ctx context.Context, relay Relay) error {
			request, err := l.SignLeave(ctx)
			if err != nil {
				return err
			}
			return relay.RequestClose(ctx, request)
		}, fmt.Sprintf("send %s some, or have someone relay what SignLeave signs", l.Wallet.Address())}, nil
	}
	now, err := l.Escrow.Now(ctx)
	if err != nil || now.Before(time.Unix(int64(view.CloseRequestedAt), 0).Add(l.Escrow.Grace())) {
		return nil, err
	}
	return &exitStep{"withdraw", l.Escrow.WithdrawCall(l.Row.Terms), func(ctx context.Context, relay Relay) error {
		return relay.Withdraw(ctx, l.Row.Terms)
	}, "the grace period is over: anyone may send the withdrawal"}, nil
}

// take sends a step by our own transaction or, where the coin does not pay for
// it, by the relay. Its error says which of them failed.
func (l *Channel) take(ctx context.Context, e exitStep) error {
	own, err := l.Wallet.HasGas(ctx)
	if err != nil {
		return err
	}
	relay := l.account.relay
	if own {
		err := outcome.SendOnce(ctx, l.Wallet.Sender, e.call, l.Wallet.Confirmations)
		if err == nil {
			return nil
		}
		if !errors.Is(err, chain.ErrFunds) {
			return fmt.Errorf("our own transaction to %s failed: %w", e.name, err)
		}
		if relay == nil {
			return fmt.Errorf("channel %s: %w: %s: %w", l.ID, wallet.ErrNoGas, e.hint, err)
		}
	}
	if relay == nil {
		return fmt.Errorf("channel %s: %w: %s", l.ID, wallet.ErrNoGas, e.hint)
	}
	if err := e.ask(ctx, relay); err != nil {
		return fmt.Errorf("the relay did not %s: %w", e.name, err)
	}
	return nil
}

// CancelClose has the chain forget a close request. Which one is on disk before that is signed: each can be taken back once.
func (l *Channel) CancelClose(ctx context.Context) error {
	if err := l.awaitRequest(ctx); err != nil {
		return err
	}
	pace := chain.Backoff{Least: l.Wallet.Poll, Most: 8 * l.Wallet.Poll}
	for try := 0; ; try++ {
		view, err := l.SettledView(ctx)
		var requests uint64
		if err == nil {
			requests, err = l.Escrow.CloseRequests(ctx, l.ID)
		}
		switch {
		case err != nil:
		case view.Finalized:
			return fmt.Errorf("channel %s: %w: rent again", l.ID, channel.ErrFinalized)
		case view.CloseRequestedAt == 0 && l.Row.Cancels != 0 && l.Row.Cancels == requests:
			return l.reopened(ctx, view)
		case view.CloseRequestedAt == 0:
			return fmt.Errorf("channel %s: %w: no close is requested on the chain, and who has the request that was signed can send it: leave it", l.ID, channel.ErrClosing)
		default:
			err = l.sendCancel(ctx, requests)
		}
		if errors.Is(err, wallet.ErrNoGas) || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if try >= wallet.LeaveRounds {
			return fmt.Errorf("channel %s: %w: to take the close request back was tried %d times: %w", l.ID, wallet.ErrStuck, try, errors.Join(err, wallet.ErrNotYet))
		}
		if err != nil {
			boundlog.Warn(l.Wallet.Log, "reopening: not yet", l.ID, err)
		}
		if err := chain.Pause(ctx, pace.Next()); err != nil {
			return err
		}
	}
}

// awaitRequest waits for a close request of ours that is on its way: one that comes later would close what was reopened.
func (l *Channel) awaitRequest(ctx context.Context) error {
	sent, err := l.Wallet.Sender.Find(ctx, l.ID, chain.RequestClose)
	if err != nil {
		return err
	}
	for _, tx := range sent {
		if tx.State != chain.Pending {
			continue
		}
		err := outcome.Over(ctx, l.Wallet.Sender, tx.ID, l.Wallet.Confirmations)
		var reverted *chain.Reverted
		if err != nil && !errors.As(err, &reverted) {
			return err
		}
	}
	return nil
}

func (l *Channel) sendCancel(ctx context.Context, requests uint64) error {
	own, err := l.Wallet.HasGas(ctx)
	if err != nil {
		return err
	}
	if !own {
		return l.noGasToReopen(nil)
	}
	now, err := l.Escrow.Now(ctx)
	if err != nil {
		return err
	}
	if l.Row.Cancels != requests {
		l.Row.Cancels = requests
		if err := l.Save(ctx); err != nil {
			return err
		}
	}
	deadline := uint64(now.Add(leaveTTL).Unix())
	signature, err := l.Wallet.Key.Sign(ctx, l.Escrow.Domain().CancelCloseDigest(l.ID, requests, deadline))
	if err != nil {
		return fmt.Errorf("channel %s: signing that the close request is taken back: %w", l.ID, err)
	}
	err = outcome.SendOnce(ctx, l.Wallet.Sender, l.Escrow.CancelCloseAuthorizedCall(l.Row.Terms, deadline, signature), l.Wallet.Confirmations)
	if errors.Is(err, chain.ErrFunds) { // a little coin is as good as none
		return l.noGasToReopen(err)
	}
	return err
}

func (l *Channel) noGasToReopen(cause error) error {
	err := fmt.Errorf("channel %s: %w: send %s some: taking a close request back is a transaction", l.ID, wallet.ErrNoGas, l.Wallet.Address())
	return errors.Join(err, cause)
}

// reopened has the channel paid again.
func (l *Channel) reopened(ctx context.Context, view channel.ChainView) error {
	if err := l.Wallet.Sender.Sync(ctx); err != nil { // what was cut off is in the books as mined
		return err
	}
	if _, err := l.Payer.Observe(ctx, l.ID, view); err != nil {
		return err
	}
	if _, err := l.Payer.Reopen(ctx, l.ID); err != nil {
		return err
	}
	l.Row.Cancels = 0
	return l.Enter(ctx, PhaseRunning)
}
