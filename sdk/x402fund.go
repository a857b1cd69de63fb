package sdk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// fund sends a payment's deposit and waits until the chain has it. That it was
// sent, or mined, moves nothing here: what counts is what the contract says of
// the channel afterwards.
func (d *x402Desk) fund(ctx context.Context, r *x402Request, tab x402Tab, note *x402Note) (x402Tab, error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.OpenTimeout)
	defer cancel()
	defer context.AfterFunc(d.leases.lifetime(), cancel)()
	slot, err := d.limiter.Deposit(r.Request)
	if err != nil {
		return tab, err
	}
	defer slot.Release()
	a, err := d.depositOf(r, tab)
	if err != nil {
		return tab, err
	}
	if err := d.worthSending(ctx, r, tab, a.Value); err != nil {
		return tab, err
	}
	hash, err := d.sendDeposit(ctx, r, a)
	if err != nil {
		return tab, err
	}
	note.Tx, note.Moved = hash, a.Value.Dec()
	for {
		s, pending, err := d.confirmed(ctx, r.terms)
		if err != nil {
			return tab, err
		}
		if s.Status != channel.Open {
			return tab, fmt.Errorf("channel %s: %w", s.ID, errWithdrawing)
		}
		if !r.voucher.Cumulative.Gt(&s.Deposit) || !pending {
			if err := d.refreshNonce(ctx, r, s); err != nil {
				return tab, err
			}
			return d.tab(ctx, s)
		}
		if d.pause(ctx) != nil {
			return tab, wire.Unavailable.With("the deposit of channel %s has not %d confirmations yet: send the same request again later", r.id, d.config.Confirmations)
		}
	}
}

// depositOf checks what can be checked of a deposit before gas is spent on it.
func (d *x402Desk) depositOf(r *x402Request, tab x402Tab) (chain.Authorization, error) {
	a := chain.Authorization{Authorization: r.payment.Payload.Authorization(), Signature: r.payment.Payload.Deposit.Authorization.Signature[:]}
	now := time.Now()
	after := tab.Deposit
	after.Add(&after, &a.Value)
	switch {
	case a.Value.Lt(&r.offer.Extra.MinDeposit.Int):
		return a, fmt.Errorf("%w: the deposit is %s, the least that is taken is %s", x402.CodeDepositBelowMinimum, a.Value.Dec(), r.offer.Extra.MinDeposit.Dec())
	case r.voucher.Cumulative.Gt(&after):
		return a, fmt.Errorf("%w: the voucher is over %s, with the deposit channel %s holds %s", x402.CodeCumulativeExceedsBalance, r.voucher.Cumulative.Dec(), r.id, after.Dec())
	case a.ValidAfter >= uint64(now.Unix()):
		return a, fmt.Errorf("%w: the authorization is not valid yet", x402.CodeValidAfter)
	case a.ValidBefore <= uint64(now.Add(authorizationMargin).Unix()):
		return a, fmt.Errorf("%w: the authorization ends within %s: its transaction could come too late", x402.CodeValidBefore, authorizationMargin)
	}
	return a, nil
}

// worthSending refuses a deposit after which the request would be refused: by what
// the chain says of the channel now, and of a voucher that would not be taken.
func (d *x402Desk) worthSending(ctx context.Context, r *x402Request, tab x402Tab, value uint256.Int) error {
	after := tab.State
	if tab.known {
		s, _, err := d.confirmed(ctx, r.terms)
		if err != nil {
			return err
		}
		after = s
	}
	if after.Status != channel.Open {
		return fmt.Errorf("channel %s: %w", r.id, errWithdrawing)
	}
	after.Deposit.Add(&after.Deposit, &value)
	_, err := d.book.Judge(ctx, after, r.voucher)
	return err
}

// sendDeposit sends a deposit unless it was sent before, and waits for it. It
// returns the transaction's hash.
func (d *x402Desk) sendDeposit(ctx context.Context, r *x402Request, a chain.Authorization) (string, error) {
	call := d.contract.DepositCall(r.terms, [32]byte(r.payment.Payload.Deposit.Authorization.Salt), a)
	call.Guard = r.claim.Guard()
	tx, err := d.outbox.submitOnce(ctx, r.terms, call, func() error { return d.reserveFor(r) })
	var refused *chain.Revert
	if errors.As(err, &refused) {
		return "", fmt.Errorf("%w: %s", x402.CodeDepositSimulation, refused.Refusal())
	}
	if err != nil {
		return "", err
	}
	result, err := d.sender.Wait(ctx, tx, d.config.Confirmations)
	var reverted *chain.Reverted
	if errors.As(err, &reverted) && !errors.Is(err, chain.ErrGaveWay) {
		return "", fmt.Errorf("%w: transaction %s was mined and reverted", x402.CodeDepositFailed, reverted.Hash)
	}
	if err != nil {
		return "", err
	}
	return result.Hash.Hex(), nil
}

// reserveFor keeps what an x402 request wants, if it wants a lease to begin.
func (d *x402Desk) reserveFor(r *x402Request) error {
	if r.metered != nil {
		return d.keepDevices(r.Context(), r)
	}
	gpus, current, err := d.runs(r.Context(), r.id)
	if err == nil && !current {
		r.seat, err = d.gpus.reserve(r.Context(), r.id, r.route.gpus, gpus)
	}
	return err
}

// refreshNonce remembers the refund nonce, which receipts show.
func (d *x402Desk) refreshNonce(ctx context.Context, r *x402Request, s channel.State) error {
	on, err := d.contract.State(ctx, s.ID)
	if err != nil {
		return err
	}
	return d.notesOf(r).setNonce(ctx, s.ID, on.RefundNonce)
}
