package renter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// onChain does what needs no provider: it follows how the channel ends on the chain, leaves it, and takes a leave back.
type onChain struct{ deposits }

// leaveTTL is how long a signed request may wait to be relayed.
const leaveTTL = 24 * time.Hour

// Relay sends what a renter without native coin has signed. Relayer is one, and a
// tower.Client; anybody with a little coin can run it, and it can take nothing.
type Relay interface {
	// RequestClose starts the grace period of a channel for its payer.
	RequestClose(ctx context.Context, request wire.LeaveRequest) error
	// Withdraw pays the payer of a channel after its grace period.
	Withdraw(ctx context.Context, terms channel.Terms) error
}

// Relayer is a Relay with a key of its own that pays the gas.
type Relayer struct {
	Escrow *chain.Escrow
	Sender *chain.Sender
}

var _ Relay = Relayer{}

// RequestClose sends a signed request and waits until it is mined. What the
// contract would refuse is not sent.
func (r Relayer) RequestClose(ctx context.Context, q wire.LeaveRequest) error {
	if err := q.Check(); err != nil {
		return err
	}
	return r.send(ctx, q.Channel(), r.Escrow.RequestCloseAuthorizedCall(q.Channel(), q.Deadline, q.Signature))
}

// Withdraw sends a withdrawal and waits until it is mined.
func (r Relayer) Withdraw(ctx context.Context, terms channel.Terms) error {
	return r.send(ctx, terms, r.Escrow.WithdrawCall(terms))
}

func (r Relayer) send(ctx context.Context, terms channel.Terms, call chain.Call) error {
	if terms.ChainID != r.Escrow.ChainID() || terms.Escrow != r.Escrow.Address() {
		return fmt.Errorf("%w: channel %s is in escrow %s on chain %d, this relayer serves %s on chain %d", channel.ErrTerms,
			terms.ID(), terms.Escrow, terms.ChainID, r.Escrow.Address(), r.Escrow.ChainID())
	}
	return r.Sender.SendOnce(ctx, call, 1)
}

// SignLeave signs a request to close that anyone can relay, and ends payments:
// no voucher and no deposit is signed after it. Signing moves nothing. A top-up by
// our own transaction that was sent before it, and is mined after the request,
// takes the request back: sign another one then.
//
// The lease is given back to the provider at once, if that answers, since what it
// serves from then on would be paid no more; a Run ends with channel.ErrClosing.
func (l *Rental) SignLeave(ctx context.Context) (wire.LeaveRequest, error) {
	request, err := l.signLeave(ctx)
	if err != nil {
		return request, err
	}
	if release, free := l.takeOverRun(ctx); free {
		defer release()
		defer l.detach()
		l.giveBack(ctx)
	}
	return request, nil
}

// takeOverRun claims the rental from a Run, or where nothing goes on. A Close or a Leave that goes on ends the lease itself.
func (l *ledger) takeOverRun(ctx context.Context) (release func(), free bool) {
	l.mu.Lock()
	runs := l.stop != nil
	l.mu.Unlock()
	if runs {
		release, err := l.takeOver(ctx)
		return release, err == nil
	}
	select {
	case <-l.busy:
		return func() { l.busy <- struct{}{} }, true
	default:
		return nil, false
	}
}

// unpaid is channel.ErrClosing where payments were ended.
func (l *ledger) unpaid(ctx context.Context) error {
	paid, err := l.payer.State(context.WithoutCancel(ctx), l.id)
	if err == nil && paid.Closed {
		err = l.paidNoMore()
	}
	return err
}

// giveBack ends the lease of a channel that is paid no more, keeps its last record, and forgets a top-up that was not signed. A
// provider that does not answer ends the lease when it sees the request to close, or when its credit is used.
func (l *Rental) giveBack(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, peer.AnswerTimeout)
	defer cancel()
	var err error
	if l.checker != nil && l.row.Ended == "" {
		runs := l.row.Checker
		var answer wire.Released
		if err = l.stopClock(ctx); err == nil {
			answer, err = l.release(ctx)
		}
		if err == nil {
			l.row.Ended = "it was given back: a leave is signed"
			err = errors.Join(l.save(ctx), l.released(ctx, answer))
		} else { // it goes on, and is paid if the leave is taken back
			l.row.Checker = runs
			err = errors.Join(err, l.forget())
		}
	}
	if err = errors.Join(err, l.finishTopUp(ctx)); err != nil {
		l.r.w.Log.Warn("a leave is signed, and the lease is not given back, or its last record or a top-up not known", "channel", l.id, "error", err)
	}
}

func (l *onChain) signLeave(ctx context.Context) (wire.LeaveRequest, error) {
	l.r.left.Store(l.id, true)
	if err := l.endPayments(ctx); err != nil {
		return wire.LeaveRequest{}, err
	}
	nonce, err := l.escrow.CloseRequests(ctx, l.id)
	if err != nil {
		return wire.LeaveRequest{}, err
	}
	now, err := l.escrow.Now(ctx)
	if err != nil {
		return wire.LeaveRequest{}, err
	}
	deadline := uint64(now.Add(leaveTTL).Unix())
	signature, err := l.r.w.Key.Sign(ctx, l.escrow.Domain().RequestCloseDigest(l.id, nonce, deadline))
	if err != nil {
		return wire.LeaveRequest{}, fmt.Errorf("channel %s: signing the request to leave: %w", l.id, err)
	}
	return wire.LeaveRequest{Terms: wire.NewTerms(l.terms), CloseRequests: nonce, Deadline: deadline, Signature: signature}, nil
}

// Leave gets the deposit back without the provider: it requests the close,
// waits out the grace period, in which the provider may still settle what was
// signed, and withdraws. Where there is too little native coin, the Relay of the
// configuration sends what was signed; without one the error is ErrNoGas, and
// SignLeave makes a document that anyone can send; the rental is then as it was
// before, and can be paid, closed or left.
//
// Of a rental that was being opened (see Client.Rental) it asks the chain alone,
// and never makes the deposit: it waits until one that was handed out is there or
// has ended, and leaves what came.
//
// Of one that is over in the books it asks the chain too, and goes on where that
// has the channel open.
//
// It takes as long as the grace period. It can be cut off and called again,
// also in another process: it goes on from what the chain says. ErrStuck says
// whose refusal it gave up on; nothing is lost by it.
func (l *Rental) Leave(ctx context.Context) (Closing, error) {
	release, err := l.takeOver(ctx)
	if err != nil {
		return Closing{}, err
	}
	defer release()
	if l.row.isOver() { // also one that is final in the books: who leaves asks the chain
		if done, err := l.stillOver(ctx); done || err != nil {
			return l.closing(), err
		}
	}
	if l.row.Phase == PhaseOpening {
		if there, err := l.awaitOpening(ctx); err != nil || !there {
			return l.closing(), err
		}
	}
	closed, err := l.awaitChain(ctx)
	if err != nil || closed {
		return l.ending(ctx, true, err)
	}
	before, err := l.payer.State(ctx, l.id)
	if err != nil {
		return Closing{}, err
	}
	phase := l.row.Phase
	if err := l.endPayments(ctx); err != nil {
		return Closing{}, err
	}
	if err := l.enter(ctx, PhaseLeaving); err != nil {
		return Closing{}, err
	}
	if err := l.exit(ctx); err != nil {
		if errors.Is(err, wallet.ErrNoGas) && !before.Closed {
			err = errors.Join(err, l.stay(ctx, phase))
		}
		return Closing{}, err
	}
	return l.ending(ctx, true, nil)
}

// stay takes back that a channel is being left where nobody could send the request
// to close it: the rental goes on where it was, so that it can be resumed and paid,
// or closed by its provider. A request that was sent stays: vouchers end with it.
func (l *onChain) stay(ctx context.Context, phase Phase) error {
	sent, err := l.outgoing(ctx, chain.RequestClose, 0)
	if err != nil || sent != "" {
		return err
	}
	view, err := l.escrow.View(ctx, l.id, nil)
	if err != nil || view.CloseRequestedAt != 0 {
		return err
	}
	if _, signed := l.r.left.Load(l.id); signed { // meanwhile, and handed out
		return nil
	}
	if _, err := l.payer.Reopen(ctx, l.id); err != nil {
		return err
	}
	return l.enter(ctx, phase)
}

// awaitOpening waits until a channel that was being opened is on the chain, or
// cannot come to be there any more: then the rental is over. It sends nothing
// but what was in the outbox before.
func (l *deposits) awaitOpening(ctx context.Context) (there bool, err error) {
	for said := false; ; {
		there, never, err := l.opened(ctx)
		switch {
		case err != nil:
			boundlog.Warn(l.r.w.Log, "leaving: it is not known yet whether the channel was opened", l.id, err)
		case there:
			return true, nil
		case never:
			return false, l.neverFunded(ctx)
		case !said:
			l.r.w.Log.Warn("leaving: the channel is not on the chain, and its deposit can still come"+l.row.goodUntil(), "channel", l.id)
			said = true
		}
		if err := chain.Pause(ctx, l.r.w.Poll); err != nil {
			return false, fmt.Errorf("channel %s: it is not on the chain, and its deposit can still come%s: leave it again: %w", l.id, l.row.goodUntil(), err)
		}
	}
}

// opened looks at the outbox first and then at the chain: a transaction that is
// in neither was never sent.
func (l *deposits) opened(ctx context.Context) (there, never bool, err error) {
	if err := l.r.w.Sender.Sync(ctx); err != nil {
		return false, false, err
	}
	sent, err := l.opening(ctx)
	if err != nil {
		return false, false, err
	}
	seen, err := l.look(ctx, l.r.w.Confirmations)
	if err != nil || seen.there {
		return seen.there, false, err
	}
	never = !sent && l.row.until() == 0 && uint64(seen.time.Unix()) >= l.row.fundedBy()
	return false, never, l.save(ctx)
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
func (l *onChain) exit(ctx context.Context) error {
	var before string
	pace := chain.Backoff{Least: l.r.w.Poll, Most: 8 * l.r.w.Poll}
	for tries := 0; ; {
		wait := l.r.w.Poll
		view, err := l.settledView(ctx)
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
				return fmt.Errorf("channel %s: %w: to %s was tried %d times, and the chain shows nothing of it: %w", l.id, wallet.ErrStuck, next.name, tries, cmp.Or(err, wallet.ErrNotYet))
			}
			wait = pace.Next()
		}
		if errors.Is(err, channel.ErrUnknown) { // a re-org took the deposit: if it was our transaction, it is sent again
			err = errors.Join(err, l.r.w.Sender.Sync(ctx))
		}
		if err != nil {
			boundlog.Warn(l.r.w.Log, "leaving: not yet", l.id, err, "retry", wait)
		}
		if err := chain.Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// nextExit is the step that the chain has come to, nil while the grace period
// runs by the chain's clock.
func (l *onChain) nextExit(ctx context.Context, view channel.ChainView) (*exitStep, error) {
	if view.CloseRequestedAt == 0 {
		return &exitStep{"request the close", l.escrow.RequestCloseCall(l.row.Terms), func(ctx context.Context, relay Relay) error {
			request, err := l.signLeave(ctx)
			if err != nil {
				return err
			}
			return relay.RequestClose(ctx, request)
		}, fmt.Sprintf("send %s some, or have someone relay what SignLeave signs", l.r.Address())}, nil
	}
	now, err := l.escrow.Now(ctx)
	if err != nil || now.Before(time.Unix(int64(view.CloseRequestedAt), 0).Add(l.escrow.Grace())) {
		return nil, err
	}
	return &exitStep{"withdraw", l.escrow.WithdrawCall(l.row.Terms), func(ctx context.Context, relay Relay) error {
		return relay.Withdraw(ctx, l.row.Terms)
	}, "the grace period is over: anyone may send the withdrawal"}, nil
}

// take sends a step by our own transaction or, where the coin does not pay for
// it, by the relay. Its error says which of them failed.
func (l *onChain) take(ctx context.Context, e exitStep) error {
	own, err := l.r.w.HasGas(ctx)
	if err != nil {
		return err
	}
	relay := l.r.config.Relay
	if own {
		err := l.r.w.Sender.SendOnce(ctx, e.call, l.r.w.Confirmations)
		if err == nil {
			return nil
		}
		if !errors.Is(err, chain.ErrFunds) {
			return fmt.Errorf("our own transaction to %s failed: %w", e.name, err)
		}
		if relay == nil {
			return fmt.Errorf("channel %s: %w: %s: %w", l.id, wallet.ErrNoGas, e.hint, err)
		}
	}
	if relay == nil {
		return fmt.Errorf("channel %s: %w: %s", l.id, wallet.ErrNoGas, e.hint)
	}
	if err := e.ask(ctx, relay); err != nil {
		return fmt.Errorf("the relay did not %s: %w", e.name, err)
	}
	return nil
}
