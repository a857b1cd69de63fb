package sdk

import (
	"context"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/wire"
)

// leaseDirectory is the provider's leases for its schemes: those that run here, and of others what the shared database has.
type leaseDirectory struct {
	*lease.Manager
	p *Provider
}

// Offer returns the offer that new leases are made under.
func (d leaseDirectory) Offer() wire.SignedOffer { return d.p.Offer() }

// BeginLease begins a lease that belongs to this gateway, unless another has begun one on its channel meanwhile, or has the claim
// under which it is to begin.
func (d leaseDirectory) BeginLease(ctx context.Context, row leasestore.Row, s channel.State, offer wire.SignedOffer, c *leasestore.Lock) (*lease.Lease, error) {
	if d.p.replicas != nil {
		row.Owner, row.Term = d.p.replicas.identity(), 1
	}
	l, err := d.Start(ctx, row, s, offer, c.Guard())
	if d.p.replicas != nil && store.Conflict(err) {
		return nil, leasestore.Elsewhere(s.ID)
	}
	return l, err
}

func (p *Provider) running(channelID common.Hash) *lease.Lease { return p.leases.Running(channelID) }

// Paid tells the lease of a channel, or what is known of its payer, what was vouchered.
func (d leaseDirectory) Paid(s channel.State) {
	if l := d.Running(s.ID); l != nil {
		l.Balance.Pays(s)
		return
	}
	d.Deps.Accounts.Paid(s)
}

// Detach lets go of a lease that is shown here for another gateway.
func (d leaseDirectory) Detach(l *lease.Lease) {
	if l.Mirror {
		d.p.replicas.unfollow(l)
	}
}

// TakesLeases refuses every new lease of a provider that stops, or that settles alone.
func (d leaseDirectory) TakesLeases() error {
	if d.p.noGPUs != nil {
		return wire.NoCapacity.With("no GPU of this provider can be metered")
	}
	if !d.Accepts() {
		return wire.Unavailable.With("this provider takes no new leases")
	}
	if err := d.Deps.Marks.Check(d.Lifetime()); err != nil {
		d.p.config.Log.Error("no new lease", "error", err)
		return placement.Unmarked()
	}
	return nil
}

// closeGrace is how long a renter has, after its lease, to pay what is left and
// close: a settlement before that would be paid for twice.
const closeGrace = time.Minute

// leaseEnded makes room for the next lease on the channel and has what is owed
// settled, unless the renter closes first.
func (p *Provider) leaseEnded(l *lease.Lease) {
	p.leases.Drop(l)
	if p.replicas != nil {
		return // the leader finds it in the table
	}
	if !l.Credit.Postpaid() {
		return // its client comes back and goes on; the settlement's policy says when to claim
	}
	p.soon(closeGrace, l.Terms) // after a restart the policy's MaxAge settles it
}

// soon has a channel settled after a while, unless the provider stops or the next lease
// runs on it by then: that one pays on, and has it settled when it ends. Nothing of the
// lease is kept for it, and nothing at all afterwards.
func (p *Provider) soon(wait time.Duration, terms channel.Terms) {
	waiting, done := context.WithCancel(p.leases.Lifetime())
	timer := time.AfterFunc(wait, func() {
		done()
		if p.running(terms.ID()) == nil {
			p.settlement.Urgent(terms)
		}
	})
	context.AfterFunc(waiting, func() { timer.Stop() })
}

// restore takes up the leases of an earlier run.
func (p *Provider) restore(ctx context.Context) error {
	if p.replicas != nil {
		return p.replicas.join(ctx)
	}
	if err := p.leases.Restore(ctx); err != nil {
		return err
	}
	p.leases.TakeBackHeld()
	return nil
}
