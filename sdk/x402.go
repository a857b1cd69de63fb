package sdk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/cors"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// X402Config has a provider take payments of x402's scheme batch-settlement beside its own. The zero value is usable.
// It needs a ProviderConfig.MaxGap of 10 s at most.
type X402Config struct {
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

func (c X402Config) withDefaults(p settle.Policy, floor time.Duration) X402Config {
	age := p.Age()
	c.WithdrawDelay = cmp.Or(c.WithdrawDelay, max(channel.MinWithdrawDelay, floor, (2*age).Round(time.Second)))
	c.Window = cmp.Or(c.Window, 10*time.Second)
	c.Slack = cmp.Or(c.Slack, 5*time.Second)
	c.MaxTimeout = cmp.Or(c.MaxTimeout, 5*time.Minute)
	c.MaxReply = cmp.Or(c.MaxReply, 1<<20)
	c.Line, c.Waiting = cmp.Or(c.Line, 64), cmp.Or(c.Waiting, 4096)
	return c
}

func (c X402Config) check(p ProviderConfig) error {
	switch {
	case len(p.Nodes) > 0:
		return errors.New("provider: X402 does not go with Nodes: it is the gateway that meters what is paid in advance")
	case p.NoGasless:
		return errors.New("provider: X402 needs NoGasless to be false: its clients pay by deposits that the provider sends")
	case c.WithdrawDelay < channel.MinWithdrawDelay || c.WithdrawDelay > channel.MaxWithdrawDelay || c.WithdrawDelay%time.Second != 0:
		return fmt.Errorf("provider: X402.WithdrawDelay (%s) must be whole seconds from %s to %s", c.WithdrawDelay, channel.MinWithdrawDelay, channel.MaxWithdrawDelay)
	case c.Window < p.Tick:
		return fmt.Errorf("provider: X402.Window (%s) is shorter than Tick (%s)", c.Window, p.Tick)
	case c.Window < metering.MinRecordEvery:
		return fmt.Errorf("provider: X402.Window (%s) must be at least %s: each has a record, and renters refuse more, which would fill their disks", c.Window, metering.MinRecordEvery)
	case c.Slack < 4*p.Tick:
		return fmt.Errorf("provider: X402.Slack (%s) must be at least four ticks (%s): less suspends every lease at once", c.Slack, 4*p.Tick)
	case p.MaxGap > wire.MaxGapOfTicks:
		return fmt.Errorf("provider: X402: MaxGap (%s) must be at most %s: whoever pays in advance takes no offer of readings that are later", p.MaxGap, wire.MaxGapOfTicks)
	case c.MaxTimeout < 2*chain.AuthorizationMargin || c.MaxTimeout%time.Second != 0:
		return fmt.Errorf("provider: X402.MaxTimeout (%s) must be whole seconds, at least %s: a deposit must be mined in it", c.MaxTimeout, 2*chain.AuthorizationMargin)
	case c.MaxReply < 0 || c.Line < 0 || c.Waiting < 0:
		return errors.New("provider: X402: MaxReply, Line and Waiting cannot be negative")
	}
	return nil
}

// x402Desk takes the payments of stock x402 clients. What it takes goes into the provider's store, is metered by the
// same leases and fetched by the same settler as every other payment; its own are the wire and the rule by which
// requests of one channel follow one another.
type x402Desk struct {
	x402Leases
	ticks    x402Ticks
	refunds  x402Refunds
	metered  x402Metered
	deposits x402Deposits

	queue    x402server.Queue
	claims   x402server.Claims
	arrivals x402server.Arrivals
}

// newX402 takes payments on a contract, with X402Config's defaults in x.
func newX402(ctx context.Context, deps schemeDeps, x X402Config, contract *chain.BatchSettlement, token *chain.Token) (*x402Desk, error) {
	book := &channel.Payee{Store: deps.db.Payee(), Domain: contract.Domain()}
	c := deps.config
	leases := x402Leases{&deps, x, &x402server.Accounts{
		DB: deps.db, Book: book, Contract: contract, Sender: deps.sender, Limiter: deps.limiter, Whole: deps.outbox.IsWhole, Log: c.Log,
		Key: c.Key.Address(), PastKeys: c.PastKeys, Token: c.Token, Confirmations: c.Confirmations, Poll: c.Poll,
		Price: deps.price, MinDeposit: deps.minDeposit, LeastRefund: deps.minTransfer, Window: x.Window, Slack: x.Slack, MaxTimeout: x.MaxTimeout, WithdrawDelay: x.WithdrawDelay,
	}}
	d := &x402Desk{x402Leases: leases, ticks: x402Ticks{leases}, refunds: x402Refunds{leases}, metered: x402Metered{leases}}
	d.deposits = x402Deposits{leases, &d.metered}
	var err error
	if d.Name, d.Version, err = token.Domain(ctx); err != nil {
		return nil, fmt.Errorf("provider: X402: %w", err)
	}
	if d.Journal, err = x402server.OpenJournal(ctx, d.db); err != nil {
		return nil, err
	}
	d.queue = x402server.Queue{Most: x.Line, All: x.Waiting, Hold: x402server.CorrectedWithin}
	d.claims = x402server.Claims{Shared: d.shared, Locks: d.store.Locks, Life: d.leases.Lifetime, Poll: d.poll / 4, Log: c.Log}
	if _, err := d.Ceiling(1, 0); err != nil {
		return nil, err
	}
	return d, d.warnKeyless(ctx)
}

// warnKeyless says so where the key that a channel names is neither today's nor
// one of PastKeys: nobody else can claim what it was paid.
func (d *x402Desk) warnKeyless(ctx context.Context) error {
	states, err := d.Book.Unsettled(ctx)
	for _, s := range states {
		if _, past := d.PastOffer(x402.Requirements{}, wire.Address(s.Terms.Payee)); !past && s.Terms.PayeeAuthorizer != d.config.Key.Address() {
			left := s.Unsettled()
			d.config.Log.Warn("a channel of x402 cannot be claimed without its key: name it in ProviderConfig.PastKeys", "channel", s.ID, "key", s.Terms.PayeeAuthorizer, "unclaimed", left.Dec())
		}
	}
	return err
}

// Pays reports whether a request brings a payment of x402.
func (d *x402Desk) Pays(r *http.Request) bool { return len(r.Header.Values(x402.HeaderSignature)) > 0 }

// Path is the resource for clients that come again for each piece of time.
func (d *x402Desk) Path() string { return "/tick" }

// Offer adds the offer of x402 to an answer that asks for a payment. Not every
// request for a payment is one for a resource that x402 can pay. It never fails.
func (d *x402Desk) Offer(h http.Header, r *http.Request) error {
	if r.Header.Get(x402.HeaderSignature) != "" {
		return nil
	}
	gpus, err := scheme.GPUsOf(r)
	if err != nil {
		return nil
	}
	route, err := d.NewRoute(x402server.KindTick, gpus)
	if err != nil {
		return nil
	}
	if err := d.required(r, x402.FirstError, d.Offered(route)).Set(h); err != nil {
		d.config.Log.Warn("x402's offer was left out of an answer", "error", err)
	}
	return nil
}

// ServePaid serves a request for /tick or /lease that is paid by x402.
func (d *x402Desk) ServePaid(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	kind := x402server.KindStream
	if r.URL.Path == d.Path() {
		kind = x402server.KindTick
	}
	gpus, err := scheme.GPUsOf(r)
	if err == nil && r.Method != http.MethodGet {
		err = wire.MethodUnsupported.With("x402 pays for GET here, not for %.10s", r.Method)
	}
	if err == nil && r.Header.Get("Authorization") != "" {
		err = wire.MalformedCredential.With("the request has a credential and an x402 payment: send one of them")
	}
	var route x402server.Route
	if err == nil {
		route, err = d.NewRoute(kind, gpus)
	}
	if err != nil {
		d.front.Refuse(w, r, err)
		return
	}
	d.serve(w, r, &x402Request{PaidRequest: x402server.PaidRequest{Route: route}})
}

// prepaid has a new lease of a channel of x402 run on what the channel's requests reserve.
func (d *x402Desk) prepaid(l *lease.Lease) error {
	note, err := d.Journal.Balance(context.Background(), l.Terms.ID())
	if err != nil {
		return err
	}
	quantum := uint64(len(l.Allocation.Devices)) * uint64(d.x.Window)
	if placement.ForOneRequest(l.Allocation) {
		quantum, l.Read = math.MaxInt64, make(chan struct{}) // one request, one record
	}
	l.Prepay(quantum, note.Reserved)
	d.carries(l)
	return nil
}

// notice tells a lease that runs here what requests at other gateways reserved.
func (d *x402Desk) notice(ctx context.Context, l *lease.Lease) error {
	if d == nil || l.Credit.Postpaid() {
		return nil
	}
	note, err := d.Journal.Balance(ctx, l.Terms.ID())
	if err != nil {
		return err
	}
	if v, _ := l.Snapshot(); note.Reserved.Gt(&v.Reserved) {
		l.Reserve(note.Reserved)
	}
	return nil
}

// newMeteredRoute is a handler behind payments, whose route was checked.
func (d *x402Desk) newMeteredRoute(route MeteredRoute, h http.Handler) (http.Handler, error) {
	route.writeTimeout = cmp.Or(route.writeTimeout, serve.WriteTimeout)
	// The lease stops two ticks before what is reserved, and a reading may be late.
	most, err := d.Ceiling(len(route.Devices), route.MaxTime+4*d.config.Tick)
	if err != nil {
		return nil, err
	}
	d.named.route(route.Devices...)
	return meteredHandler{d, &meteredRoute{d: &d.metered, MeteredRoute: route, handler: h, running: make(chan struct{}, 1),
		route: x402server.Route{Kind: x402server.KindMetered, GPUs: len(route.Devices), Most: most}}}, nil
}

// meteredHandler is a handler behind payments.
type meteredHandler struct {
	d     *x402Desk
	route *meteredRoute
}

// ServeHTTP asks for a payment, or serves what was paid for.
func (m meteredHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if cors.Origins(m.d.config.AllowedOrigins).Answer(w, r) {
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	if m.d.Pays(r) {
		m.d.serve(w, r, &x402Request{PaidRequest: x402server.PaidRequest{Route: m.route.route}, metered: m.route})
		return
	}
	m.d.ask(w, r, m.route.route)
}

// ask answers a request without a payment.
func (d *x402Desk) ask(w http.ResponseWriter, r *http.Request, route x402server.Route) {
	var err error
	if !d.limiter.Challenge(r) {
		err = wire.TooMany.With("too many requests without a payment from your address: wait a second")
	}
	if err == nil {
		err = d.required(r, x402.FirstError, d.Offered(route)).Set(w.Header())
	}
	if err != nil {
		d.front.Refuse(w, r, err)
		return
	}
	serve.JSON(w, http.StatusPaymentRequired, struct{}{})
}

// required is the 402 of a request: the offer, and what of it must be said about a channel.
func (d *x402Desk) required(r *http.Request, reason string, offer x402.Requirements) x402.PaymentRequired {
	return x402.PaymentRequired{
		Error:    reason,
		Resource: x402.Resource{URL: d.front.AddressOf(r), Description: "GPU time, metered by the second", MimeType: "application/json"},
		Accepts:  []x402.Requirements{offer},
	}
}
