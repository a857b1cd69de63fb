package gateways

import (
	"context"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Offers are those of a provider: see package offering.
type Offers interface {
	Of(class string) (wire.SignedOffer, error)
	Challenged(ctx context.Context, class string) (wire.SignedOffer, error)
}

// Directory is a provider's leases wherever they run: those that run here, and of others what the shared database has.
type Directory struct {
	*lease.Manager
	Gateway *Gateway // nil where nobody shares the database
	Payee   *channel.Payee
	Offers        // under which new leases begin
	NoGPUs  error // why none could be listed at the start: no lease begins
}

// TakeUp takes up the leases of an earlier run and, where others share the database, those that nobody runs.
func (d *Directory) TakeUp(ctx context.Context) error {
	if d.Gateway != nil {
		return d.Gateway.Join(ctx)
	}
	if err := d.Restore(ctx); err != nil {
		return err
	}
	d.TakeBackHeld()
	return nil
}

// TakeBack takes back what an ended lease has, by one gateway at a time.
func (d *Directory) TakeBack(ctx context.Context, row leasestore.Row) error {
	if d.Gateway != nil {
		return d.Gateway.Resolve(ctx, row, "")
	}
	return d.Resolve(ctx, row, nil, "")
}

// TakesLeases refuses every new lease of a provider that stops, or that settles alone.
func (d *Directory) TakesLeases() error {
	if d.NoGPUs != nil {
		return wire.NoCapacity.With("no GPU of this provider can be metered")
	}
	if !d.Accepts() {
		return wire.Unavailable.With("this provider takes no new leases")
	}
	if err := d.Deps.Marks.Check(d.Lifetime()); err != nil {
		d.Deps.Log.Error("no new lease", "error", err)
		return placement.Unmarked()
	}
	return nil
}

// BeginLease begins a lease that belongs to this gateway, unless another has begun one on its channel meanwhile, or has the claim
// under which it is to begin.
func (d *Directory) BeginLease(ctx context.Context, row leasestore.Row, s channel.State, offer wire.SignedOffer, c *leasestore.Lock) (*lease.Lease, error) {
	if d.Gateway != nil {
		row.Owner, row.Term = d.Gateway.Identity(), 1
	}
	l, err := d.Start(ctx, row, s, offer, c.Guard())
	if d.Gateway != nil && store.Conflict(err) {
		return nil, leasestore.Elsewhere(s.ID)
	}
	return l, err
}

// Begun reports a lease that runs on the channel, here or at another gateway.
func (d *Directory) Begun(ctx context.Context, id common.Hash) bool {
	if d.Running(id) != nil {
		return true
	}
	if d.Gateway == nil {
		return false
	}
	row, ok, err := d.Store.Leases.Newest(ctx, id)
	return err == nil && ok && row.State != wire.StateEnded
}

// Serving finds the lease that runs on a channel, here or at another gateway.
// With one that is shown here only, the caller owes a Detach.
func (d *Directory) Serving(ctx context.Context, s channel.State) (*lease.Lease, error) {
	if l := d.Running(s.ID); l != nil || d.Gateway == nil {
		return l, nil
	}
	row, ok, err := d.Store.Leases.Newest(ctx, s.ID)
	switch {
	case err != nil || !ok || row.State == wire.StateEnded:
		return nil, err
	case row.State == wire.StateAllocating, row.State == wire.StateEnding:
		return nil, leasestore.Elsewhere(s.ID)
	}
	fresh, err := Image(ctx, d.Manager, row, s)
	if err != nil {
		return nil, err
	}
	return d.Gateway.shown.follow(fresh), nil
}

// Detach lets go of a lease that is shown here for another gateway.
func (d *Directory) Detach(l *lease.Lease) {
	if l.Mirror {
		d.Gateway.shown.unfollow(l)
	}
}

// Paid tells the lease of a channel, or what is known of its payer, what was vouchered.
func (d *Directory) Paid(s channel.State) {
	if l := d.Running(s.ID); l != nil {
		l.Balance.Pays(s)
		return
	}
	d.Deps.Accounts.Paid(s)
}

// NextStream numbers a stream: from now on no older one of the lease writes, at
// no gateway.
func (d *Directory) NextStream(ctx context.Context, l *lease.Lease) (number uint64, err error) {
	if d.Gateway != nil {
		if number, err = d.Store.Leases.NextStream(ctx, l.ID); err != nil {
			return 0, err
		}
	}
	l.Status.Update(func(v *lease.View) {
		if d.Gateway == nil {
			number = v.Stream + 1
		}
		v.Stream = max(v.Stream, number)
	})
	return number, nil
}

// EndLease ends the lease that runs on a channel, wherever it does.
func (d *Directory) EndLease(ctx context.Context, id common.Hash, row *leasestore.Row, reason string) error {
	if l := d.Running(id); l != nil {
		if err := l.End(ctx, lease.Stop{Reason: reason}); err != nil || l.Status.State() == leasestore.Ended {
			return err
		}
		if !l.Fence.Lost.Load() {
			return wire.Unavailable.With("the provider stops and lease %s goes on: try again", l.ID)
		}
		// It was let go while it was asked: it goes on at another gateway.
	}
	if d.Gateway == nil || row == nil || row.State == wire.StateEnded {
		return nil
	}
	return d.Gateway.end(ctx, common.HexToHash(row.ID), reason)
}
