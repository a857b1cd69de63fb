package provider

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/sessionscheme"
	"github.com/gpupay/gpupay/sdk/internal/x402scheme"
)

// mounts are the schemes by which providers are paid, each a line. The first takes what no other does.
var mounts = []mount{
	mountSession,
	mountX402,
}

// mount has a provider paid by a scheme, if its configuration and the chain have what that needs. It is asked once, at the start.
type mount func(ctx context.Context, p *Server) (mounted, error)

// mounted is a scheme by which a provider is paid.
type mounted struct {
	contract chain.Contract                                                    // of its channels: they are watched and settled there, also where no more are paid on; nil: of none
	open     func(ctx context.Context, deps schemeDeps) (scheme.Scheme, error) // has leases paid by it; nil: the provider does not take it
}

// chooseSchemes has the provider paid by those schemes that are in order here, and its settlements go to their contracts.
func (p *Server) chooseSchemes(ctx context.Context) error {
	for _, by := range slices.Concat(mounts, p.config.mounts) {
		m, err := by(ctx, p)
		if err != nil {
			return err
		}
		if m.open != nil {
			p.mounted = append(p.mounted, m)
		}
		if to := &p.settlement.contracts; m.contract != nil && !slices.Contains(*to, m.contract) {
			*to = append(*to, m.contract)
		}
	}
	return nil
}

// takes reports whether leases on channels of these terms are paid here: others are left to the gateways that take them.
func (p *Server) takes(t channel.Terms) bool {
	return slices.ContainsFunc(p.mounted, func(m mounted) bool { return m.contract.Domain().Holds(t) == nil })
}

// openSchemes has leases paid by the schemes that were chosen.
func (p *Server) openSchemes(ctx context.Context) error {
	p.openBooks()
	deps := schemeDeps{
		config: p.config, minDeposit: p.minDeposit, minTransfer: p.minTransfer,
		db: p.db, store: p.store, escrow: p.escrow, payee: p.payee, sender: p.sender, limiter: p.limiter, sponsor: p.sponsor, metrics: p.metrics, starts: &p.starts,
		leases: p.directory, gpus: p.reserved, debts: p.debts, outbox: p.outbox(), front: frontDesk{p},
	}
	for _, m := range p.mounted {
		s, err := m.open(ctx, deps)
		if err != nil {
			return err
		}
		p.schemes = append(p.schemes, s)
	}
	return nil
}

// outbox sends deposits for the schemes.
func (p *Server) outbox() *scheme.DepositOutbox {
	o := &scheme.DepositOutbox{Sender: p.sender, Sponsor: p.sponsor, Log: p.config.Log}
	if p.gateway != nil {
		o.Alone = func(ctx context.Context, name string) (*leasestore.Lock, error) {
			return p.store.Locks.Take(ctx, p.leases.Lifetime(), name, p.gateway.Poll()/4, p.config.Log)
		}
	}
	return o
}

// mountSession has the provider paid by vouchers on the escrow's channels, its own scheme.
func mountSession(_ context.Context, p *Server) (mounted, error) {
	return mounted{p.escrow, func(ctx context.Context, deps schemeDeps) (scheme.Scheme, error) {
		minter, err := p.challenges(ctx)
		c := deps.config
		return sessionscheme.New(sessionscheme.Deps{
			Key: c.Key, PastKeys: c.PastKeys, Meter: c.Metering.Key.Address(), Gasless: p.gasless,
			Credit: c.Terms.Credit, Tick: c.Metering.Tick, RecordEvery: c.Metering.RecordEvery, OpenTimeout: c.Deposits.Timeout, Poll: c.Chain.Poll,
			Confirmations: c.Chain.Confirmations, MinTransfer: deps.minTransfer,
			DB: deps.db, Store: deps.store, Escrow: deps.escrow, Payee: deps.payee, Sender: deps.sender, Limiter: deps.limiter, Sponsor: deps.sponsor,
			Marks: p.leases.Deps.Marks, Metrics: deps.metrics, OpenStreams: deps.metrics.streams, Starts: deps.starts, Log: c.Log,
			Leases: deps.leases, GPUs: deps.gpus, Debts: deps.debts, Outbox: deps.outbox, Front: deps.front, Mute: p.directory.Mute,
		}, minter), err
	}}, nil
}

// Metered puts a handler behind payments of x402: each request is charged the time of the route's GPUs while the handler runs, whatever
// status it answers. The handler's context ends when the time that was paid for is used up, and what it writes to a client that does not
// read fails soon after. An answer that is kept may have Config.X402.MaxReply bytes, and so may a request's body.
func (p *Server) Metered(route Route, h http.Handler) (http.Handler, error) {
	x := scheme.Of[*x402scheme.Scheme](p.schemes)
	if x == nil {
		return nil, errors.New("provider: Metered needs Config.X402")
	}
	if route.Slots {
		return x.MeteredSlots(p.leases.Services, x402scheme.MeteredRoute{Class: route.Class, Devices: route.Devices, Streamed: route.Streamed, Streams: route.Streams, WriteTimeout: route.writeTimeout}, h)
	}
	if len(route.Devices) == 0 || route.MaxTime < p.config.Metering.Tick {
		return nil, fmt.Errorf("provider: Metered: a route needs Devices, and a MaxTime of at least a tick (%s)", p.config.Metering.Tick)
	}
	class, err := p.leases.Offered.ClassOf(route.Devices)
	if err != nil {
		return nil, fmt.Errorf("provider: Metered: %w", err)
	}
	return x.Metered(x402scheme.MeteredRoute{Class: class, Devices: route.Devices, MaxTime: route.MaxTime, Streamed: route.Streamed, WriteTimeout: route.writeTimeout}, h)
}

// SlotOf is the slot that a request of a Route with Slots holds: its handler may end it, and is told by the slot's Ctx when it must.
func SlotOf(ctx context.Context) *Request { return x402scheme.SlotOf(ctx) }

// deviceBook is where the devices of metered requests are, beside those of leases.
func (p *Server) deviceBook() inventory.Book {
	a, ok := p.config.Allocator.(inventory.Keeper)
	switch {
	case ok:
		return a.Inventory().Book()
	case p.gateway != nil:
		return p.gateway.Devices()
	}
	return &p.named.Own
}
