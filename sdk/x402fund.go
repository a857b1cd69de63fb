package sdk

import (
	"context"
	"fmt"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// x402Deposits sends the deposits that payments bring.
type x402Deposits struct {
	x402Leases
	metered *x402Metered
}

// fund sends a payment's deposit and waits until the chain has it. That it was sent, or mined, moves nothing here: what
// counts is what the contract says of the channel afterwards.
func (d *x402Deposits) fund(ctx context.Context, r *x402Request, tab x402server.Account, note *x402server.Entry) (x402server.Account, error) {
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
		s, pending, err := d.Confirmed(ctx, r.Terms)
		if err != nil {
			return tab, err
		}
		if s.Status != channel.Open {
			return tab, fmt.Errorf("channel %s: %w", s.ID, x402server.ErrWithdrawing)
		}
		if !r.Voucher.Cumulative.Gt(&s.Deposit) || !pending {
			if err := d.RefreshNonce(ctx, &r.PaidRequest, s); err != nil {
				return tab, err
			}
			return d.Account(ctx, s)
		}
		if d.Pause(ctx) != nil {
			return tab, wire.Unavailable.With("the deposit of channel %s has not %d confirmations yet: send the same request again later", r.ID, d.config.Confirmations)
		}
	}
}

// depositOf checks what can be checked of a deposit before gas is spent on it.
func (d *x402Deposits) depositOf(r *x402Request, tab x402server.Account) (chain.Authorization, error) {
	a := chain.Authorization{Authorization: r.Paid.Payload.Authorization(), Signature: r.Paid.Payload.Deposit.Authorization.Signature[:]}
	now := time.Now()
	after := tab.Deposit
	after.Add(&after, &a.Value)
	switch {
	case a.Value.Lt(&r.Offer.Extra.MinDeposit.Int):
		return a, fmt.Errorf("%w: the deposit is %s, the least that is taken is %s", x402.CodeDepositBelowMinimum, a.Value.Dec(), r.Offer.Extra.MinDeposit.Dec())
	case r.Voucher.Cumulative.Gt(&after):
		return a, fmt.Errorf("%w: the voucher is over %s, with the deposit channel %s holds %s", x402.CodeCumulativeExceedsBalance, r.Voucher.Cumulative.Dec(), r.ID, after.Dec())
	case a.ValidAfter >= uint64(now.Unix()):
		return a, fmt.Errorf("%w: the authorization is not valid yet", x402.CodeValidAfter)
	case a.ValidBefore <= uint64(now.Add(authorizationMargin).Unix()):
		return a, fmt.Errorf("%w: the authorization ends within %s: its transaction could come too late", x402.CodeValidBefore, authorizationMargin)
	}
	return a, nil
}

// worthSending refuses a deposit after which the request would be refused: by what
// the chain says of the channel now, and of a voucher that would not be taken.
func (d *x402Deposits) worthSending(ctx context.Context, r *x402Request, tab x402server.Account, value uint256.Int) error {
	after := tab.State
	if tab.Known {
		s, _, err := d.Confirmed(ctx, r.Terms)
		if err != nil {
			return err
		}
		after = s
	}
	if after.Status != channel.Open {
		return fmt.Errorf("channel %s: %w", r.ID, x402server.ErrWithdrawing)
	}
	after.Deposit.Add(&after.Deposit, &value)
	_, err := d.Book.Judge(ctx, after, r.Voucher)
	return err
}

// sendDeposit sends a deposit unless it was sent before, and waits for it. It returns the transaction's hash.
func (d *x402Deposits) sendDeposit(ctx context.Context, r *x402Request, a chain.Authorization) (string, error) {
	call := d.Contract.DepositCall(r.Terms, [32]byte(r.Paid.Payload.Deposit.Authorization.Salt), a)
	call.Guard = r.claim.Guard()
	tx, err := d.outbox.submitOnce(ctx, r.Terms, call, func() error { return d.reserveFor(r) })
	if err != nil {
		return "", x402server.Refused(err, x402.CodeDepositSimulation)
	}
	result, err := d.Mined(ctx, tx, x402.CodeDepositFailed)
	if err != nil {
		return "", err
	}
	return result.Hash.Hex(), nil
}

// reserveFor keeps what an x402 request wants, if it wants a lease to begin.
func (d *x402Deposits) reserveFor(r *x402Request) error {
	if r.metered != nil {
		return d.metered.keepDevices(r.Context(), r)
	}
	gpus, current, err := d.runs(r.Context(), r.ID)
	if err == nil && !current {
		r.seat, err = d.gpus.reserve(r.Context(), r.ID, r.Route.GPUs, gpus)
	}
	return err
}
