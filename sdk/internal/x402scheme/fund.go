package x402scheme

import (
	"context"
	"errors"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/x402"
)

// deposits sends the deposits that payments bring.
type deposits struct {
	core
	metered *metered
}

// fund sends a payment's deposit and waits until the chain has it.
func (d *deposits) fund(ctx context.Context, r *Request, tab x402server.Account, note *x402server.Entry) (x402server.Account, error) {
	ctx, cancel := context.WithTimeout(ctx, d.OpenTimeout)
	defer cancel()
	defer context.AfterFunc(d.Leases.Lifetime(), cancel)()
	slot, err := d.Limiter.Deposit(r.Request)
	if err != nil {
		return tab, err
	}
	defer slot.Release()
	a, err := r.DepositOf(tab)
	if err != nil {
		return tab, err
	}
	if err := d.WorthDepositing(ctx, &r.PaidRequest, tab, a.Value); err != nil {
		return tab, err
	}
	hash, err := d.sendDeposit(ctx, r, a)
	if err != nil {
		return tab, err
	}
	note.Tx, note.Moved = hash, a.Value.Dec()
	return d.Arrived(ctx, &r.PaidRequest)
}

// sendDeposit sends a deposit unless it was sent before, and waits for it. It returns the transaction's hash.
func (d *deposits) sendDeposit(ctx context.Context, r *Request, a chain.Authorization) (string, error) {
	call := d.Contract.DepositCall(r.Terms, [32]byte(r.Paid.Payload.Deposit.Authorization.Salt), a)
	call.Guard = r.Claim.Guard()
	tx, err := d.Outbox.SubmitOnce(ctx, r.Terms, call, func() error { return d.reserveFor(r) })
	if err != nil {
		return "", x402server.Refused(err, x402.CodeDepositSimulation)
	}
	result, err := d.Mined(ctx, tx, x402.CodeDepositFailed)
	if errors.Is(err, outcome.ErrUnseen) {
		hash, err := outcome.Newest(ctx, d.Sender, tx) // whether it came the contract says
		return hash.Hex(), err
	}
	if err != nil {
		return "", err
	}
	return result.Hash.Hex(), nil
}

// reserveFor keeps what an x402 request wants, if it wants a lease to begin.
func (d *deposits) reserveFor(r *Request) error {
	if r.metered != nil {
		return d.metered.keepDevices(r.Context(), r)
	}
	now, err := d.runs(r.Context(), r)
	if err != nil {
		return err
	}
	goesOn, err := d.fits(r, now)
	if err == nil && !goesOn {
		r.seat, err = d.GPUs.Reserve(r.Context(), r.Route.Class, r.ID, r.Route.GPUs, now.back(r))
	}
	return err
}
