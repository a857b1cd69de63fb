package sdk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/tower"
	"github.com/gpupay/gpupay/sdk/wire"
)

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

var (
	_ Relay = Relayer{}
	_ Relay = (*tower.Tower)(nil)
	_ Relay = (*tower.Client)(nil)
)

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
	return sendOnce(ctx, r.Sender, call, 1)
}

// sendOnce sends a call that only works once, or waits for the one that is on
// its way already.
func sendOnce(ctx context.Context, sender *chain.Sender, call chain.Call, confirmations uint64) error {
	if err := sender.Sync(ctx); err != nil { // what a re-org undid is on its way again, and pending
		return err
	}
	sent, err := sender.Find(ctx, call.Channels[0])
	if err != nil {
		return err
	}
	for _, tx := range sent {
		if tx.Call.Kind == call.Kind && tx.State == chain.Pending {
			_, err := sender.Wait(ctx, tx.ID, confirmations)
			return err
		}
	}
	id, err := sender.Submit(ctx, call)
	if err != nil {
		return err
	}
	_, err = sender.Wait(ctx, id, confirmations)
	return err
}

// SignLeave signs a request to close that anyone can relay, and ends payments:
// no voucher is signed after it. Signing moves nothing.
func (l *Rental) SignLeave(ctx context.Context) (wire.LeaveRequest, error) {
	if _, err := l.payer.Close(ctx, l.id); err != nil {
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
	signature, err := l.r.config.Key.Sign(ctx, l.escrow.Domain().RequestCloseDigest(l.id, nonce, deadline))
	if err != nil {
		return wire.LeaveRequest{}, fmt.Errorf("channel %s: signing the request to leave: %w", l.id, err)
	}
	return wire.LeaveRequest{Terms: wire.NewTerms(l.terms), CloseRequests: nonce, Deadline: deadline, Signature: signature}, nil
}

// Leave gets the deposit back without the provider: it requests the close,
// waits out the grace period, in which the provider may still settle what was
// signed, and withdraws. Where there is too little native coin, the Relay of the
// configuration sends what was signed; without one the error is ErrNoGas, and
// SignLeave makes a document that anyone can send.
//
// It takes as long as the grace period. It can be cut off and called again,
// also in another process: it goes on from what the chain says.
func (l *Rental) Leave(ctx context.Context) (Closing, error) {
	release, err := l.takeOver(ctx)
	if err != nil {
		return Closing{}, err
	}
	defer release()
	if l.row.Closed != nil {
		return *l.row.Closed, nil
	}
	closed, err := l.closedOnChain(ctx)
	if err != nil || closed {
		return l.ending(ctx, true, err)
	}
	if _, err := l.payer.Close(ctx, l.id); err != nil {
		return Closing{}, err
	}
	if err := l.enter(ctx, RentalLeaving); err != nil {
		return Closing{}, err
	}
	if err := l.walkOut(ctx); err != nil {
		return Closing{}, err
	}
	return l.ending(ctx, true, nil)
}

// walkOut does what the chain says is next, until the channel is final.
func (l *Rental) walkOut(ctx context.Context) error {
	for {
		view, err := l.settledView(ctx)
		switch {
		case err != nil:
			l.r.config.Log.Warn("leaving: the chain cannot be read", "channel", l.id, "error", err)
		case view.Finalized:
			return nil
		case view.CloseRequestedAt == 0:
			err = l.requestClose(ctx)
		default:
			err = l.withdraw(ctx, view)
		}
		var revert *chain.Revert
		if err != nil && !errors.As(err, &revert) && !errors.Is(err, chain.ErrUnreachable) {
			return err
		}
		// A revert says that somebody was faster, or that the chain's clock is
		// not quite there: the next look at the chain tells.
		if err := chain.Pause(ctx, l.r.config.Poll); err != nil {
			return err
		}
	}
}

func (l *Rental) requestClose(ctx context.Context) error {
	own, err := l.r.hasGas(ctx)
	if err != nil {
		return err
	}
	if own {
		err := sendOnce(ctx, l.r.sender, l.escrow.RequestCloseCall(l.row.Terms), l.r.config.Confirmations)
		if l.r.config.Relay == nil || !errors.Is(err, chain.ErrFunds) {
			return err
		}
	}
	if l.r.config.Relay == nil {
		return fmt.Errorf("channel %s: %w: send %s some, or have someone relay what SignLeave signs", l.id, ErrNoGas, l.r.Address())
	}
	request, err := l.SignLeave(ctx)
	if err != nil {
		return err
	}
	return l.r.config.Relay.RequestClose(ctx, request)
}

// withdraw waits out the grace period by the chain's clock.
func (l *Rental) withdraw(ctx context.Context, view channel.ChainView) error {
	now, err := l.escrow.Now(ctx)
	if err != nil {
		return err
	}
	if now.Before(time.Unix(int64(view.CloseRequestedAt), 0).Add(l.escrow.Grace())) {
		return nil
	}
	own, err := l.r.hasGas(ctx)
	if err != nil {
		return err
	}
	if own {
		err := sendOnce(ctx, l.r.sender, l.escrow.WithdrawCall(l.row.Terms), l.r.config.Confirmations)
		if l.r.config.Relay == nil || !errors.Is(err, chain.ErrFunds) {
			return err
		}
	}
	if l.r.config.Relay == nil {
		return fmt.Errorf("channel %s: %w: the grace period is over: anyone may send the withdrawal", l.id, ErrNoGas)
	}
	return l.r.config.Relay.Withdraw(ctx, l.row.Terms)
}
