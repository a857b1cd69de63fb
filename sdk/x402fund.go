package sdk

import (
	"context"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/x402"
)

// x402Deposits sends the deposits that payments bring.
type x402Deposits struct {
	x402Leases
	metered *x402Metered
}

// fund sends a payment's deposit and waits until the chain has it.
func (d *x402Deposits) fund(ctx context.Context, r *x402Request, tab x402server.Account, note *x402server.Entry) (x402server.Account, error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.OpenTimeout)
	defer cancel()
	defer context.AfterFunc(d.leases.Lifetime(), cancel)()
	slot, err := d.limiter.Deposit(r.Request)
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
func (d *x402Deposits) sendDeposit(ctx context.Context, r *x402Request, a chain.Authorization) (string, error) {
	call := d.Contract.DepositCall(r.Terms, [32]byte(r.Paid.Payload.Deposit.Authorization.Salt), a)
	call.Guard = r.Claim.Guard()
	tx, err := d.outbox.SubmitOnce(ctx, r.Terms, call, func() error { return d.reserveFor(r) })
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
		r.seat, err = d.gpus.Reserve(r.Context(), r.ID, r.Route.GPUs, gpus)
	}
	return err
}
