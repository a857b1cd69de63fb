package sdk

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/sessionscheme"
	"github.com/gpupay/gpupay/sdk/internal/x402scheme"
	"github.com/gpupay/gpupay/sdk/wire"
)

// servePaid hands a request for a paid resource to the scheme that it is paid by.
func (p *Provider) servePaid(w http.ResponseWriter, r *http.Request) {
	for _, s := range slices.Backward(p.schemes) {
		if s.Pays(r) {
			s.ServePaid(w, r)
			return
		}
	}
}

// askToPay adds to a 402 what every scheme asks for.
func (p *Provider) askToPay(h http.Header, r *http.Request) error {
	for _, s := range p.schemes {
		if err := s.Offer(h, r); err != nil {
			return err
		}
	}
	return nil
}

// x402Contract is the contract of x402's channels, nil where x402 is not offered. It checks that the chain and the token have what
// x402 needs.
func (p *Provider) x402Contract(ctx context.Context) (*chain.BatchSettlement, error) {
	if p.config.X402 == nil {
		return nil, p.warnUnclaimed(ctx)
	}
	if err := p.x402Config().check(p.config); err != nil {
		return nil, err
	}
	if !p.gasless {
		return nil, fmt.Errorf("provider: X402: token %s has no receiveWithAuthorization (ERC-3009), by which x402's clients deposit", p.config.Token)
	}
	contract, err := chain.NewBatchSettlement(ctx, p.escrow.Backend())
	if err != nil {
		return nil, fmt.Errorf("provider: X402: %w", err)
	}
	contract.Past = p.config.PastKeys
	return contract, nil
}

func (p *Provider) x402Config() X402Config {
	return p.config.X402.withDefaults(p.config.Settlement, p.config.graceFloor(p.escrow))
}

// mountSchemes has leases paid by the provider's own scheme and, where it is offered, by x402.
func (p *Provider) mountSchemes(ctx context.Context) error {
	deps := schemeDeps{
		config: p.config, minDeposit: p.minDeposit, minTransfer: p.minTransfer,
		db: p.db, store: p.store, sender: p.sender, limiter: p.limiter, sponsor: p.sponsor, metrics: p.metrics, starts: &p.starts,
		leases: p.directory, gpus: &p.reserved, debts: p.debts, outbox: &depositOutbox{p: p}, front: frontDesk{p},
	}
	p.reserved.Left = p.capacity.left
	if p.gateway != nil {
		p.reserved.Shared = &reserve.Shared{DB: p.db, Pool: p.capacity.pool, Log: p.config.Log,
			TTL: func() time.Duration { return p.config.OpenTimeout + p.leases.Deps.Timing.Begins() }}
	}
	minter, err := p.challenges(ctx)
	if err != nil {
		return err
	}
	p.session = newSession(p, deps, minter)
	p.schemes = []scheme.Scheme{p.session}
	if p.batch != nil {
		if p.x402, err = newX402(ctx, p, deps, p.x402Config()); err != nil {
			return err
		}
		p.schemes = append(p.schemes, p.x402)
	}
	return nil
}

// newSession takes payments by vouchers on the escrow's channels.
func newSession(p *Provider, deps schemeDeps, minter *wire.Minter) *sessionscheme.Scheme {
	c := deps.config
	return sessionscheme.New(sessionscheme.Deps{
		Key: c.Key, PastKeys: c.PastKeys, Meter: c.MeterKey.Address(), Gasless: p.gasless,
		Credit: c.Credit, Tick: c.Tick, RecordEvery: c.RecordEvery, OpenTimeout: c.OpenTimeout, Poll: c.Poll,
		Confirmations: c.Confirmations, MinTransfer: deps.minTransfer,
		DB: deps.db, Store: deps.store, Escrow: p.escrow, Payee: p.payee, Sender: deps.sender, Limiter: deps.limiter, Sponsor: deps.sponsor,
		Marks: p.leases.Deps.Marks, Metrics: deps.metrics, OpenStreams: deps.metrics.streams, Starts: deps.starts, Log: c.Log,
		Leases: deps.leases, GPUs: deps.gpus, Debts: deps.debts, Outbox: deps.outbox, Front: deps.front, Mute: p.directory.Mute,
	}, minter)
}

// prepaid has a new lease run on what its channel's requests reserve, if its
// channel is one of x402.
func (p *Provider) prepaid(l *lease.Lease) error {
	if l.Terms.Scheme != channel.BatchSettlement {
		return nil
	}
	if p.x402 == nil {
		return lease.OverError("its channel is one of x402, which this provider does not take any more")
	}
	return p.x402.Prepaid(l)
}

// warnUnclaimed says so where a provider took x402 before and does not now:
// nobody claims what it was paid.
func (p *Provider) warnUnclaimed(ctx context.Context) error {
	states, err := p.db.Payee().Unsettled(ctx)
	for _, s := range states {
		if s.Terms.Scheme == channel.BatchSettlement {
			left := s.Unsettled()
			p.config.Log.Warn("a channel of x402 is not claimed: set ProviderConfig.X402 until it is", "channel", s.ID, "unclaimed", left.Dec())
		}
	}
	return err
}

// Metered puts a handler behind payments of x402: each request is charged the
// time of the route's GPUs while the handler runs, whatever status it answers.
// The handler's context ends when the time that was paid for is used up, and what
// it writes to a client that does not read fails soon after. An answer that is
// kept may have ProviderConfig.X402.MaxReply bytes, and so may a request's body.
func (p *Provider) Metered(route MeteredRoute, h http.Handler) (http.Handler, error) {
	if p.x402 == nil {
		return nil, errors.New("provider: Metered needs ProviderConfig.X402")
	}
	if len(route.Devices) == 0 || route.MaxTime < p.config.Tick {
		return nil, fmt.Errorf("provider: Metered: a route needs Devices, and a MaxTime of at least a tick (%s)", p.config.Tick)
	}
	for i, uuid := range route.Devices {
		known := slices.ContainsFunc(p.leases.Offered.Devices, func(d metering.Device) bool { return d.UUID == uuid })
		if !known || slices.Contains(route.Devices[:i], uuid) {
			return nil, fmt.Errorf("provider: Metered: %s has no device %q, or it is named twice", p.config.Source.Name(), uuid)
		}
	}
	return p.x402.Metered(x402scheme.MeteredRoute{Devices: route.Devices, MaxTime: route.MaxTime, Streamed: route.Streamed, WriteTimeout: route.writeTimeout}, h)
}

// deviceBook is where the devices of metered requests are, beside those of leases.
func (p *Provider) deviceBook() inventory.Book {
	a, ok := p.config.Allocator.(inventory.Keeper)
	switch {
	case ok:
		return a.Inventory().Book()
	case p.gateway != nil:
		return p.gateway.Devices()
	}
	return &p.named.Own
}
