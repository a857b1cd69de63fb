package provider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/x402scheme"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/wire"
)

// X402 has a provider take payments of x402's scheme batch-settlement beside its own. The zero value is usable.
// It needs a Config.Metering.MaxGap of 10 s at most.
type X402 struct {
	// WithdrawDelay is how long a payer that takes its money back without asking must wait; whole seconds, 15 minutes
	// to 30 days. Within it the provider must have seen the withdrawal and claimed, also after an outage. Another delay
	// is another channel for every client: do not change it. Twice the settlement's MaxAge if zero, and at least 15
	// minutes and the provider's MinGrace.
	WithdrawDelay time.Duration
	// Window is the GPU time that one request for /tick or /lease pays for, on
	// each of its GPUs; 10 s if zero, at least 50 ms and Tick.
	Window time.Duration
	// Slack is how long a lease goes on between two requests, under the voucher
	// of the first; 5 s if zero, and at least four ticks.
	Slack time.Duration
	// MaxTimeout is how long a deposit's authorization is good, by the client's
	// clock; it has to be mined in that time. 5 min if zero.
	MaxTimeout time.Duration
	// MaxReply bounds an answer of a Metered handler that is kept for a client
	// whose connection broke, and its request's body; bytes, 1 MiB if zero.
	MaxReply int
	// Line is how many requests of one channel may wait for one another; 64 if
	// zero. Waiting is the same of all channels; 4096 if zero.
	Line, Waiting int
}

func (c X402) withDefaults(p settle.Policy, floor time.Duration) X402 {
	age := p.Age()
	c.WithdrawDelay = cmp.Or(c.WithdrawDelay, max(channel.MinWithdrawDelay, floor, (2*age).Round(time.Second)))
	c.Window = cmp.Or(c.Window, 10*time.Second)
	c.Slack = cmp.Or(c.Slack, 5*time.Second)
	c.MaxTimeout = cmp.Or(c.MaxTimeout, 5*time.Minute)
	c.MaxReply = cmp.Or(c.MaxReply, 1<<20)
	c.Line, c.Waiting = cmp.Or(c.Line, 64), cmp.Or(c.Waiting, 4096)
	return c
}

func (c X402) check(p Config) error {
	switch {
	case p.Deposits.NoGasless:
		return errors.New("provider: X402 needs Deposits.NoGasless to be false: its clients pay by deposits that the provider sends")
	case c.WithdrawDelay < channel.MinWithdrawDelay || c.WithdrawDelay > channel.MaxWithdrawDelay || c.WithdrawDelay%time.Second != 0:
		return fmt.Errorf("provider: X402.WithdrawDelay (%s) must be whole seconds from %s to %s", c.WithdrawDelay, channel.MinWithdrawDelay, channel.MaxWithdrawDelay)
	case c.Window < p.Metering.Tick:
		return fmt.Errorf("provider: X402.Window (%s) is shorter than Metering.Tick (%s)", c.Window, p.Metering.Tick)
	case c.Window < metering.MinRecordEvery:
		return fmt.Errorf("provider: X402.Window (%s) must be at least %s: each has a record, and renters refuse more, which would fill their disks", c.Window, metering.MinRecordEvery)
	case c.Slack < 4*p.Metering.Tick:
		return fmt.Errorf("provider: X402.Slack (%s) must be at least four ticks (%s): less suspends every lease at once", c.Slack, 4*p.Metering.Tick)
	case p.Metering.MaxGap > wire.MaxGapOfTicks:
		return fmt.Errorf("provider: X402: Metering.MaxGap (%s) must be at most %s: whoever pays in advance takes no offer of readings that are later", p.Metering.MaxGap, wire.MaxGapOfTicks)
	case c.MaxTimeout < 2*chain.AuthorizationMargin || c.MaxTimeout%time.Second != 0:
		return fmt.Errorf("provider: X402.MaxTimeout (%s) must be whole seconds, at least %s: a deposit must be mined in it", c.MaxTimeout, 2*chain.AuthorizationMargin)
	case c.MaxReply < 0 || c.Line < 0 || c.Waiting < 0:
		return errors.New("provider: X402: MaxReply, Line and Waiting cannot be negative")
	}
	return nil
}

// mountX402 has the provider paid on x402's contract, if the chain and the token have what that needs; where it is not offered, what
// was paid there is claimed all the same.
func mountX402(ctx context.Context, p *Server) (mounted, error) {
	if p.config.X402 == nil {
		return watchX402(ctx, p)
	}
	x := p.config.X402.withDefaults(p.config.Settlement, p.config.graceFloor(p.escrow))
	if err := x.check(p.config); err != nil {
		return mounted{}, err
	}
	if !p.gasless {
		return mounted{}, fmt.Errorf("provider: X402: token %s has no receiveWithAuthorization (ERC-3009), by which x402's clients deposit", p.config.Token)
	}
	contract, err := newBatchSettlement(ctx, p)
	if err != nil {
		return mounted{}, err
	}
	return mounted{contract, func(ctx context.Context, deps schemeDeps) (scheme.Scheme, error) {
		return newX402(ctx, p, deps, x, contract)
	}}, nil
}

// watchX402 has what was paid on x402's contract claimed by a provider that takes no payments of x402: it did before, or another
// gateway of its database does, now or soon. Of a contract that is not on this chain settlement.unwatched tells.
func watchX402(ctx context.Context, p *Server) (mounted, error) {
	states, err := p.db.Payee().List(ctx)
	paid := func(s channel.State) bool { return s.Terms.Scheme == channel.BatchSettlement }
	if err != nil || !p.db.Shared() && !slices.ContainsFunc(states, paid) {
		return mounted{}, err
	}
	contract, err := newBatchSettlement(ctx, p)
	switch {
	case errors.Is(err, chain.ErrNoContract), errors.Is(err, chain.ErrNotEscrow):
		return mounted{}, nil
	case err != nil:
		return mounted{}, err
	}
	return mounted{contract: contract}, nil
}

func newBatchSettlement(ctx context.Context, p *Server) (*chain.BatchSettlement, error) {
	contract, err := chain.NewBatchSettlement(ctx, p.escrow.Backend())
	if err != nil {
		return nil, fmt.Errorf("provider: X402: %w", err)
	}
	contract.Past = p.config.PastKeys
	return contract, nil
}

// newX402 takes payments on x402's contract, by X402 with its defaults.
func newX402(ctx context.Context, p *Server, deps schemeDeps, x X402, contract *chain.BatchSettlement) (*x402scheme.Scheme, error) {
	c := deps.config
	own := x402scheme.Deps{
		Tick: c.Metering.Tick, OpenTimeout: c.Deposits.Timeout, CallTimeout: c.Commands.Timeout, MaxReply: x.MaxReply, Line: x.Line, Waiting: x.Waiting,
		AllowedOrigins: c.HTTP.AllowedOrigins, Allocator: c.Allocator, Credit: p.credit,
		Store: deps.store, Settlement: p.settlement.service, Sponsor: deps.sponsor, Metrics: deps.metrics,
		Named: &p.named, Starts: deps.starts, Devices: p.deviceBook,
		Leases: deps.leases, GPUs: deps.gpus, Debts: deps.debts, Outbox: deps.outbox, Front: deps.front,
	}
	if p.gateway != nil {
		own.Shared, own.GatewayPoll = true, p.gateway.Poll()
	}
	return x402scheme.New(ctx, own, &x402server.Accounts{
		DB: deps.db, Book: &channel.Payee{Store: deps.db.Payee(), Domain: contract.Domain()}, Contract: contract,
		Sender: deps.sender, Limiter: deps.limiter, Whole: deps.outbox.IsWhole, Log: c.Log,
		Key: c.Key.Address(), PastKeys: c.PastKeys, Token: c.Token, Confirmations: c.Chain.Confirmations, Poll: c.Chain.Poll,
		Prices: p.hourly(), MinDeposit: deps.minDeposit, LeastRefund: deps.minTransfer,
		Window: x.Window, Slack: x.Slack, MaxTimeout: x.MaxTimeout, WithdrawDelay: x.WithdrawDelay,
	}, p.token)
}

// Route is a handler's price: the time of named GPUs while it runs.
type Route struct {
	// Devices are UUIDs, as the provider's source names them. Each is billed to one request or lease at a time: requests of a route wait for
	// each other, and whoever finds a device in a lease, or in another route's request, is refused with a 503 before money moves.
	Devices []string
	MaxTime time.Duration // that one request may run; its ceiling is the price of it
	// Slots has each request take a slot of the GPUs of Class that leases share, in place of Devices of its own, for the Share's MaxTime at
	// most, and be billed as theirs are: nothing where it failed. The handler has its slot by SlotOf. Streams says whether a request is
	// Streamed, by its body. A payer has as many at once as it may have leases.
	Slots   bool
	Class   string
	Streams func(r *http.Request, body []byte) bool
	// Streamed has the answer written as the handler writes it: the whole ceiling is charged first, and what was not used is credit for the
	// next request. Otherwise the answer is kept until the handler returns, and the charge is what was used.
	Streamed bool

	writeTimeout time.Duration // of a piece of a streamed answer
}
