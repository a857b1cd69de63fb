package x402client

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	"github.com/gpupay/gpupay/sdk/internal/x402account"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// Leave gets back what is in a channel without the server: it starts the withdrawal, waits out the channel's delay, in
// which the server may still claim what was signed, and finishes it. Both transactions are the renter's own and need
// native coin (ErrNoGas); nobody can send them for it.
//
// It takes as long as the delay, 15 minutes at least. It can be cut off and called again, also in another process, and
// makes one withdrawal; who calls it beside another call of this process waits for what comes of that. Nothing is paid
// from the channel meanwhile; after it, a payment deposits again. What somebody deposited during the delay stays, and
// is Refund.Left: another Leave gets that. ErrStuck says that the contract refuses.
func (x *Client) Leave(ctx context.Context, id common.Hash) (Refund, error) {
	return x.leaves.join(ctx, id, func() (Refund, error) { return x.leave(ctx, id) })
}

func (x *Client) leave(ctx context.Context, id common.Hash) (Refund, error) {
	known, err := x.accounts().Load(ctx, id)
	if err != nil {
		return Refund{}, err
	}
	if known == nil {
		return Refund{}, fmt.Errorf("%w: %s is no channel with an x402 server in this database", channel.ErrUnknown, id)
	}
	paid, err := x.payer.State(ctx, id)
	if err != nil {
		return Refund{}, err
	}
	turn := known.Turn(paid.Terms)
	b := &leaving{ledger{x: x, terms: paid.Terms, id: id, site: turn.Site, salt: turn.Salt}}
	before, err := b.beginLeaving(ctx)
	if err != nil {
		return Refund{}, err
	}
	if err := b.exit(ctx); err != nil { // nobody pays meanwhile: the account says so
		return Refund{}, err
	}
	return b.endLeaving(ctx, before)
}

// leaving is a channel whose money is got back without its server.
type leaving struct{ ledger }

// inTurn runs a step of leaving on the newest account, when it is the channel's turn.
func (b *leaving) inTurn(ctx context.Context, step func() error) error {
	release, err := b.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	known, err := b.x.accounts().Load(ctx, b.id)
	if err != nil {
		return err
	}
	b.account = *known
	return step()
}

// beginLeaving ends payments on a channel that is left, and returns what it holds.
func (b *leaving) beginLeaving(ctx context.Context) (before channel.ChainView, err error) {
	err = b.inTurn(ctx, func() error {
		if b.account.Leaving = true; b.account.Deposit != nil {
			if err := b.awaitDeposit(ctx); err != nil {
				return err
			}
		}
		if err := b.save(ctx); err != nil { // before the chain knows of it
			return err
		}
		if _, err := b.x.payer.Close(ctx, b.id); err != nil {
			return err
		}
		var err error
		_, before, err = b.observe(ctx)
		return err
	})
	return before, err
}

// endLeaving is what came back from a channel that was left.
func (b *leaving) endLeaving(ctx context.Context, before channel.ChainView) (refund Refund, err error) {
	err = b.inTurn(ctx, func() error {
		_, after, err := b.observe(ctx)
		if err != nil {
			return err
		}
		refund = Refund{Channel: b.id}
		if w := b.account.Withdrawal; w != nil { // it may have been over before this call
			before.Deposit = u256.Max(before.Deposit, w.Deposit)
		}
		if before.Deposit.Gt(&after.Deposit) { // all that leaves a channel unclaimed goes to the payer
			refund.Amount.Sub(&before.Deposit, &after.Deposit)
		}
		refund.Left.Sub(&after.Deposit, &after.Settled)
		b.account.Leaving, b.account.Dispute, b.account.Accused = false, "", nil // the money is back: to pay again is a new decision
		b.account.Tick, b.account.Open, b.account.Lost, b.account.Withdrawal = nil, nil, uint256.Int{}, nil
		return b.save(ctx)
	})
	return refund, err
}

// awaitDeposit waits until a deposit that is on its way has arrived or cannot
// any more: else it would arrive behind the withdrawal.
func (b *leaving) awaitDeposit(ctx context.Context) error {
	for {
		under, err := b.depositInFlight(ctx)
		if err != nil || !under {
			return err
		}
		if err := chain.Pause(ctx, b.x.w.Poll); err != nil {
			return err
		}
	}
}

// exit does what the chain says is next, until nothing is left to withdraw or one withdrawal of all that was there is
// over: anybody can deposit dust meanwhile, and each withdrawal takes the delay and the renter's gas. A step that is
// refused wallet.LeaveRounds times is ErrStuck; waiting for the delay or an endpoint is no try.
func (b *leaving) exit(ctx context.Context) error {
	var last channel.ChainView
	pace := chain.Backoff{Least: b.x.w.Poll, Most: 8 * b.x.w.Poll}
	for tries := 0; ; {
		wait, over := b.x.w.Poll, false
		_, view, err := b.observe(ctx)
		if err == nil && view.CloseRequestedAt == 0 {
			over, err = b.withdrawn(ctx, view, last)
		}
		if err == nil {
			if view.CloseRequestedAt == 0 && !view.Deposit.Gt(&view.Settled) || over {
				return nil
			}
			if view.CloseRequestedAt != last.CloseRequestedAt {
				tries = 0
			}
			last = view
			err = b.nextStep(ctx, view)
		}
		var revert *chain.Revert
		switch {
		case errors.As(err, &revert):
			if tries++; tries >= wallet.LeaveRounds {
				return fmt.Errorf("channel %s: %w: the contract refused %d times: %w", b.id, wallet.ErrStuck, tries, err)
			}
			wait = pace.Next()
		case errors.Is(err, chain.ErrUnreachable):
			boundlog.Warn(b.x.w.Log, "leaving: not yet", b.id, err)
		case err != nil:
			return err
		}
		if err := chain.Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// nextStep takes the step that the chain has come to.
func (b *leaving) nextStep(ctx context.Context, view channel.ChainView) error {
	if view.CloseRequestedAt != 0 {
		return b.finalize(ctx, view)
	}
	var free uint256.Int
	free.Sub(&view.Deposit, &view.Settled)
	if err := b.beginWithdrawal(ctx, view.Deposit); err != nil {
		return err
	}
	return b.sendOwn(ctx, b.x.escrow.InitiateWithdrawCall(b.terms, free))
}

// beginWithdrawal has the account know of a withdrawal before it is asked for: what is deposited from then on is not of it,
// whoever goes on with it. One that is known already is gone on with.
func (b *leaving) beginWithdrawal(ctx context.Context, deposit uint256.Int) error {
	return b.inTurn(ctx, func() error {
		if b.account.Withdrawal != nil {
			return nil
		}
		before, err := b.begun(ctx)
		if err != nil {
			return err
		}
		b.account.Withdrawal = &x402account.Withdrawal{Deposit: deposit, Before: before}
		return b.save(ctx)
	})
}

// begun counts the channel's withdrawals that transactions of ours began, also those of which only the used nonce is seen.
func (b *leaving) begun(ctx context.Context) (n int, err error) {
	if err := b.x.w.Sender.Sync(ctx); err != nil {
		return 0, err
	}
	sent, err := b.x.w.Sender.Find(ctx, b.id, chain.InitiateWithdraw)
	for _, tx := range sent {
		if tx.Succeeded || tx.State == chain.Pending && outcome.Used(ctx, b.x.w.Sender, tx.ID, b.x.w.Confirmations) {
			n++
		}
	}
	return n, err
}

// withdrawn reports whether the withdrawal that the account knows of was begun and is over, by a view in which none is pending:
// the channel holds less than it did, in the newest view before or when it was asked for.
func (b *leaving) withdrawn(ctx context.Context, view, last channel.ChainView) (bool, error) {
	w := b.account.Withdrawal
	if w == nil || !view.Deposit.Lt(&w.Deposit) && !view.Deposit.Lt(&last.Deposit) {
		return false, nil
	}
	begun, err := b.begun(ctx)
	return begun > w.Before, err
}

// finalize waits out the delay by the chain's clock.
func (b *leaving) finalize(ctx context.Context, view channel.ChainView) error {
	now, err := chain.Now(ctx, b.x.w.Backend)
	if err != nil || uint64(now.Unix()) < view.CloseRequestedAt+b.terms.WithdrawDelay {
		return err
	}
	return b.sendOwn(ctx, b.x.escrow.FinalizeWithdrawCall(b.terms))
}

// sendOwn sends a transaction of our own, which nobody can send for us.
func (b *leaving) sendOwn(ctx context.Context, call chain.Call) error {
	own, err := b.x.w.HasGas(ctx)
	if err == nil && !own {
		err = fmt.Errorf("channel %s: %w: only %s can withdraw: send it some and call again", b.id, wallet.ErrNoGas, b.x.w.Address())
	}
	if err != nil {
		return err
	}
	if err = outcome.SendOnce(ctx, b.x.w.Sender, call, b.x.w.Confirmations); errors.Is(err, chain.ErrFunds) { // a little coin is as good as none
		err = fmt.Errorf("channel %s: %w: only %s can withdraw: send it some and call again: %w", b.id, wallet.ErrNoGas, b.x.w.Address(), err)
	}
	return err
}
