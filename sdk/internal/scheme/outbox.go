package scheme

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// DepositOutbox sends deposits for a provider's schemes, each once.
type DepositOutbox struct {
	Sender  *chain.Sender
	Sponsor *admit.GasSponsor
	Alone   func(ctx context.Context, name string) (*leasestore.Lock, error) // Claim, where gateways share the database; nil: nobody does
	Log     *slog.Logger

	submits keyed.Mutex // one deposit at a time is looked up and sent for a channel
	whole   atomic.Bool // the outbox knows what is on its way: see IsWhole
}

// SubmitOnce sends a deposit unless it was sent before. What it is for is reserved
// when it is its turn: what only waits to be simulated keeps nothing from others.
func (o *DepositOutbox) SubmitOnce(ctx context.Context, terms channel.Terms, call chain.Call, reserve func() error) (chain.TxID, error) {
	id := terms.ID()
	defer o.submits.Lock(id)()
	held, err := o.Claim(ctx, "deposit "+id.Hex())
	if err != nil {
		return "", err
	}
	defer held.Release(ctx)
	call.Guard = leasestore.All(call.Guard, held.Guard())
	tx, err := o.Sender.Sent(ctx, id, call.Kind, call.Data)
	if err == nil && tx != "" {
		_ = reserve() // the money has moved: without a GPU it is refused when it is in the channel
	}
	if err != nil || tx != "" {
		return tx, err
	}
	if tx, err = o.Sponsor.Submit(ctx, terms, call, reserve); err == nil {
		o.Log.Info("deposit sent for a renter", "call", call.String(), "tx", tx)
	}
	return tx, err
}

// IsWhole refuses to begin anything while transactions of this key may still
// be mined that the outbox does not know: the database is from a backup, and a close
// or a refund may be among them. Once it knows all of them it always will, since it
// is written before anything is sent.
func (o *DepositOutbox) IsWhole(ctx context.Context) error {
	if o.whole.Load() {
		return nil
	}
	unknown, err := o.Sender.Unknown(ctx)
	if err != nil {
		return err
	}
	if unknown > 0 {
		return wire.Unavailable.With("%d transactions of this provider's key are on their way that its database does not know, as after a restore: nothing begins before they are mined or replaced", unknown)
	}
	o.whole.Store(true)
	return nil
}

// Claim makes this gateway the only one to do what it names; without others it
// is nothing.
func (o *DepositOutbox) Claim(ctx context.Context, name string) (*leasestore.Lock, error) {
	if o.Alone == nil {
		return nil, nil
	}
	c, err := o.Alone(ctx, name)
	if err != nil && ctx.Err() != nil {
		err = wire.Unavailable.With("another gateway is at work on this: %s: try again", name)
	}
	return c, err
}
