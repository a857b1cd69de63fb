// Package x402scheme is x402's scheme batch-settlement as a provider serves it over HTTP: ticks and streams of GPU time, handlers that
// are paid by the request, deposits and refunds. Its books are package x402server, and of its provider it knows what package scheme says.
package x402scheme

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/cors"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Scheme takes the payments of stock x402 clients. What it takes goes into the provider's store, is metered by the
// same leases and fetched by the same settler as every other payment; its own are the wire and the rule by which
// requests of one channel follow one another.
type Scheme struct {
	core
	ticks    ticks
	Refunds  Refunds
	metered  metered
	deposits deposits

	Queue    x402server.Queue
	Claims   x402server.Claims
	arrivals x402server.Arrivals
}

// New takes payments by what accounts know of channels. It opens their journal, and reads what else they need from the token.
func New(ctx context.Context, deps Deps, accounts *x402server.Accounts, token *chain.Token) (*Scheme, error) {
	leases := core{&deps, accounts}
	d := &Scheme{core: leases, ticks: ticks{leases}, Refunds: Refunds{leases}, metered: metered{leases}}
	d.deposits = deposits{leases, &d.metered}
	var err error
	if d.Name, d.Version, err = token.Domain(ctx); err != nil {
		return nil, fmt.Errorf("provider: X402: %w", err)
	}
	if d.Journal, err = x402server.OpenJournal(ctx, d.DB); err != nil {
		return nil, err
	}
	d.Queue = x402server.Queue{Most: d.Line, All: d.Waiting, Hold: x402server.CorrectedWithin}
	d.Claims = x402server.Claims{Shared: d.Shared, Locks: d.Store.Locks, Life: d.Leases.Lifetime, Poll: d.GatewayPoll / 4, Log: d.Log}
	for _, price := range d.Prices {
		if _, err := d.Ceiling(price, 1, 0); err != nil {
			return nil, err
		}
	}
	return d, d.warnKeyless(ctx)
}

// warnKeyless says so where the key that a channel names is neither today's nor
// one of PastKeys: nobody else can claim what it was paid.
func (d *Scheme) warnKeyless(ctx context.Context) error {
	states, err := d.Book.Unsettled(ctx)
	for _, s := range states {
		if _, past := d.PastOffer(x402.Requirements{}, wire.Address(s.Terms.Payee)); !past && s.Terms.PayeeAuthorizer != d.Key {
			left := s.Unsettled()
			d.Log.Warn("a channel of x402 cannot be claimed without its key: name it in provider.Config.PastKeys", "channel", s.ID, "key", s.Terms.PayeeAuthorizer, "unclaimed", left.Dec())
		}
	}
	return err
}

// Pays reports whether a request brings a payment of x402.
func (d *Scheme) Pays(r *http.Request) bool { return len(r.Header.Values(x402.HeaderSignature)) > 0 }

// Path is the resource for clients that come again for each piece of time.
func (d *Scheme) Path() string { return "/tick" }

// Offer adds the offer of x402 to an answer that asks for a payment. Not every
// request for a payment is one for a resource that x402 can pay. It never fails.
func (d *Scheme) Offer(h http.Header, r *http.Request) error {
	if r.Header.Get(x402.HeaderSignature) != "" {
		return nil
	}
	gpus, err := scheme.GPUsOf(r)
	if err != nil {
		return nil
	}
	offer, err := d.Leases.Of(scheme.ClassOf(r))
	if err != nil {
		return nil // a challenge may be for a lease that runs, and this offer is for a new one
	}
	route, err := d.NewRoute(x402server.KindTick, offer, gpus)
	if err != nil {
		return nil
	}
	if err := d.required(r, x402.FirstError, d.Offered(route)).Set(h); err != nil {
		d.Log.Warn("x402's offer was left out of an answer", "error", err)
	}
	return nil
}

// ServePaid serves a request for /tick or /lease that is paid by x402.
func (d *Scheme) ServePaid(w http.ResponseWriter, r *http.Request) {
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
		var offer wire.SignedOffer
		if offer, err = d.Leases.Of(scheme.ClassOf(r)); err == nil {
			route, err = d.NewRoute(kind, offer, gpus)
		}
	}
	if err != nil {
		d.Front.Refuse(w, r, err)
		return
	}
	d.serve(w, r, &Request{PaidRequest: x402server.PaidRequest{Route: route}})
}

// Takes has a lease on a channel of x402 run on what the channel's requests reserve.
func (d *Scheme) Takes(l *lease.Lease) (bool, error) {
	if l.Terms.Scheme != channel.BatchSettlement {
		return false, nil
	}
	note, err := d.Journal.Balance(context.Background(), l.Terms.ID())
	if err != nil {
		return true, err
	}
	quantum := uint64(len(l.Allocation.Devices)) * uint64(d.Window)
	if l.Allocation.Shared {
		quantum = math.MaxInt64 // one request, one record; nothing of it is billed before it has ended
	} else if placement.ForOneRequest(l.Allocation) {
		quantum, l.Read = math.MaxInt64, make(chan struct{}) // one request, one record
	}
	l.Prepay(quantum, note.Reserved)
	d.carries(l)
	return true, nil
}

// Notice tells a lease that runs here what requests at other gateways reserved.
func (d *Scheme) Notice(ctx context.Context, l *lease.Lease) error {
	if l.Terms.Scheme != channel.BatchSettlement {
		return nil
	}
	note, err := d.Journal.Balance(ctx, l.Terms.ID())
	if err != nil {
		return err
	}
	if v, _ := l.Status.Snapshot(); note.Reserved.Gt(&v.Reserved) {
		l.Balance.Reserve(note.Reserved)
	}
	return nil
}

// Metered is a handler behind payments, whose route was checked.
func (d *Scheme) Metered(route MeteredRoute, h http.Handler) (http.Handler, error) {
	route.WriteTimeout = cmp.Or(route.WriteTimeout, serve.WriteTimeout)
	// The lease stops two ticks before what is reserved, and a reading may be late.
	offer, err := d.Leases.Of(route.Class)
	if err != nil {
		return nil, err
	}
	var paid x402server.Route
	if route.Service != nil {
		paid, err = d.SlotRoute(offer, route.MaxTime+4*d.Tick)
	} else {
		paid, err = d.RouteOf(x402server.KindMetered, offer, len(route.Devices), route.MaxTime+4*d.Tick)
	}
	if err != nil {
		return nil, err
	}
	d.Named.route(route.Devices...)
	return Handler{d, &meteredRoute{d: &d.metered, MeteredRoute: route, handler: h, running: make(chan struct{}, 1), route: paid}}, nil
}

// Handler is an operator's handler behind payments.
type Handler struct {
	d     *Scheme
	route *meteredRoute
}

// RunsAs has a lease count as that of a request of the route: it is given the route's devices.
func (m Handler) RunsAs(lease common.Hash) { m.d.Named.put(lease, m.route) }

// ServeHTTP asks for a payment, or serves what was paid for.
func (m Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if cors.Origins(m.d.AllowedOrigins).Answer(w, r) {
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	if m.d.Pays(r) {
		m.d.serve(w, r, &Request{PaidRequest: x402server.PaidRequest{Route: m.route.route}, metered: m.route})
		return
	}
	m.d.ask(w, r, m.route.route)
}

// ask answers a request without a payment.
func (d *Scheme) ask(w http.ResponseWriter, r *http.Request, route x402server.Route) {
	var err error
	if !d.Limiter.Challenge(r) {
		err = wire.TooMany.With("too many requests without a payment from your address: wait a second")
	}
	if err == nil {
		err = d.required(r, x402.FirstError, d.Offered(route)).Set(w.Header())
	}
	if err != nil {
		d.Front.Refuse(w, r, err)
		return
	}
	serve.JSON(w, http.StatusPaymentRequired, struct{}{})
}

// required is the 402 of a request: the offer, and what of it must be said about a channel.
func (d *Scheme) required(r *http.Request, reason string, offer x402.Requirements) x402.PaymentRequired {
	return x402.PaymentRequired{
		Error:    reason,
		Resource: x402.Resource{URL: d.Front.AddressOf(r), Description: "GPU time, metered by the second", MimeType: "application/json"},
		Accepts:  []x402.Requirements{offer},
	}
}
