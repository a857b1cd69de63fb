package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/wire"
)

// ErrLimit says that a request was ended because it had run for as long as its reservation pays: no fault of its provider's. It is a
// context.DeadlineExceeded.
var ErrLimit = fmt.Errorf("request has run for as long as was reserved for it: %w", context.DeadlineExceeded)

// Hold is a reservation for one request. End it by Done, or Fail, whatever became of the request.
type Hold struct {
	p     *Pool
	id    int64
	lease *lease
	most  route.Nano

	mu     sync.Mutex
	sent   bool   // RoundTrip was called
	over   bool   // Done was
	named  bool   // it may have reached the provider
	number uint64 // of the request that was sent last
	free   bool   // it failed in a way that bills nothing
	began  time.Time
	took   time.Duration
	ended  bool
	cancel context.CancelFunc
}

// Reserve reserves what a request may cost at an endpoint, for a local key's name or the empty one, on disk when it returns. Where no
// rental runs there it opens one, which takes some blocks of the chain; where that fails nothing stays reserved. A budget that does not hold it is a
// *budget.ExceededError, which says when the day ends; an endpoint that takes no requests is ErrEndpoint, and so is one that became dearer than
// at says, which is as Endpoints had it: most pays for less there than was meant. Endpoints has its new price.
func (p *Pool) Reserve(ctx context.Context, key string, at route.Endpoint, most route.Nano) (*Hold, error) {
	endpoint, price := at.ID, at.Price.PerSlotSecond
	p.mu.Lock()
	s, closing := p.sites[base(endpoint)], p.closing
	p.mu.Unlock()
	if closing {
		return nil, ErrClosed
	}
	if s == nil {
		return nil, fmt.Errorf("endpoint %.200q: %w: it is no candidate", endpoint, ErrEndpoint)
	}
	t, ok := s.terms()
	if short := s.wants(); !ok && short != nil {
		return nil, fmt.Errorf("endpoint %.200q: %w: %w", endpoint, ErrEndpoint, short)
	}
	if !ok {
		return nil, fmt.Errorf("endpoint %.200q: %w: no signed offer of it stands", endpoint, ErrEndpoint)
	}
	if err := s.within(t.price, price); err != nil {
		return nil, err
	}
	if runs := most.TimeFor(t.price); runs < time.Millisecond {
		return nil, fmt.Errorf("endpoint %.200q: %s base units pay for %s of a slot there, at %s a second: reserve more", endpoint, most, runs, t.price)
	}
	limits, now := p.limits(key), p.now()
	day := budget.Day(now) + key
	over := s.over(day)
	id, err := p.books.Reserve(ctx, now, key, limits, most.Add(over))
	if err != nil {
		return nil, err
	}
	h := &Hold{p: p, id: id, most: most}
	if h.lease, err = s.acquire(ctx, price); err == nil {
		if err = h.aside(ctx, day, limits, over); err != nil {
			h.lease.release()
		}
	}
	if err != nil {
		return nil, errors.Join(err, p.done(context.WithoutCancel(ctx), id, route.Nano{}))
	}
	return h, nil
}

// Room is what one request of a local key may cost at an endpoint now, where as much is left as Left says: the first one there each day has
// more set aside, for what the provider's records may come to. A larger one does not fit the budget.
func (p *Pool) Room(key, endpoint string, left route.Nano) route.Nano {
	p.mu.Lock()
	s := p.sites[base(endpoint)]
	p.mu.Unlock()
	if s == nil {
		return left
	}
	return left.Sub(s.over(budget.Day(p.now()) + key))
}

// over is what is still to be set aside at the site for a day's requests of a key.
func (s *site) over(day string) route.Nano {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease == nil {
		return s.offer.over()
	}
	if s.lease.aside[day] {
		return route.Nano{}
	}
	return s.lease.terms.over()
}

var errDearer = errors.New("its price has risen since it was chosen")

// within refuses what costs more now than a reservation was made by.
func (s *site) within(now, price route.Nano) error {
	if now.Cmp(price) > 0 {
		return fmt.Errorf("provider %s: %w: %w: a second of a slot is %s base units there, and was %s", s.url, ErrEndpoint, errDearer, now, price)
	}
	return nil
}

// over is what the records of a lease may come to over our own clock.
func (t terms) over() route.Nano {
	return route.Price{PerSlotSecond: t.price}.Pay(slots.DefaultTolerance, 0, 0)
}

// aside keeps that, once for each day and key, of the reservation, which was made with so much over.
func (h *Hold) aside(ctx context.Context, day string, limits budget.Limits, over route.Nano) error {
	l := h.lease
	l.site.mu.Lock()
	kept := l.aside[day]
	l.site.mu.Unlock()
	if kept && over.IsZero() {
		return nil
	}
	if err := h.p.books.Aside(ctx, h.id, l.rental.ID().Hex(), limits, h.most, l.terms.over()); err != nil {
		return err
	}
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	l.aside[day] = true
	return nil
}

// RoundTrip sends one request, once: its path and query are those of the API, such as /v1/chat/completions, and its host is the
// provider's, whatever it says. The request is ended, as by its context, when it has run for as long as the reservation pays, and its
// answer's body is closed then, whether anybody reads it or not: that is ErrLimit, also when the body is read.
func (h *Hold) RoundTrip(r *http.Request) (*http.Response, error) {
	to, err := h.lease.rental.Endpoint()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), h.most.TimeFor(h.lease.terms.price), ErrLimit)
	h.mu.Lock()
	if h.sent || h.over {
		h.mu.Unlock()
		cancel()
		return nil, errors.New("pool: a reservation is for one request: reserve again")
	}
	h.sent, h.began, h.cancel = true, time.Now(), cancel
	h.mu.Unlock()
	out := r.Clone(ctx)
	target := *to
	target.Path, target.RawPath, target.RawQuery = strings.TrimRight(to.Path, "/")+r.URL.Path, "", r.URL.RawQuery
	out.URL, out.Host = &target, ""
	res, err := h.lease.rental.Transport(named{h}).RoundTrip(out)
	if err != nil {
		h.end(false)
		return nil, limited(ctx, err)
	}
	refused := res.StatusCode >= 400 && wire.IsProblem(res) && res.Header.Get(wire.RequestHeader) == ""
	if refused || res.StatusCode >= 500 && res.StatusCode != http.StatusServiceUnavailable {
		h.end(true)
	}
	answer := &body{res.Body, h, ctx}
	res.Body = answer
	context.AfterFunc(ctx, func() { _ = answer.Close() })
	return res, nil
}

// named puts on disk which request a reservation is for, before it is sent.
type named struct{ h *Hold }

func (n named) RoundTrip(r *http.Request) (*http.Response, error) {
	h := n.h
	id, err := strconv.ParseUint(r.Header.Get(wire.RequestHeader), 10, 64)
	if err == nil {
		err = h.p.books.Dispatch(r.Context(), h.id, h.lease.rental.ID().Hex(), id)
	}
	if err != nil {
		return nil, fmt.Errorf("pool: the request was not sent: %w", err)
	}
	h.mu.Lock()
	h.named, h.number = true, id
	h.mu.Unlock()
	return h.p.http.RoundTrip(r)
}

// body is an answer's, whose end is that of its request.
type body struct {
	io.ReadCloser
	h   *Hold
	ctx context.Context // of its request
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.h.end(false)
	}
	if err != nil && err != io.EOF {
		err = limited(b.ctx, err)
	}
	return n, err
}

// limited says of a request's error that it is that of its limit.
func limited(ctx context.Context, err error) error {
	if context.Cause(ctx) == ErrLimit && !errors.Is(err, ErrLimit) {
		return fmt.Errorf("%w: %w", ErrLimit, err)
	}
	return err
}

func (b *body) Close() error {
	b.h.end(false)
	return b.ReadCloser.Close()
}

// end notes when the request was over, once.
func (h *Hold) end(free bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ended && h.sent {
		h.ended, h.took, h.free = true, time.Since(h.began), free
		h.cancel()
	}
}

// Fail is Done for a request that was answered with a failure, such as an error within a stream: it costs nothing, and a record that bills
// it is not paid once all of its lease's are 2 s over what requests took. What broke off is told from that by the pool itself: it is Done.
func (h *Hold) Fail(ctx context.Context) error {
	h.end(true)
	h.mu.Lock()
	fails, number := h.named && !h.over, h.number
	h.free = true
	h.mu.Unlock()
	if fails {
		h.lease.rental.Failed(number)
	}
	return h.Done(ctx, route.Nano{})
}

// Done ends the reservation, and the request if that still runs: it counts from now on at cost, and at no less than the pool measured
// unless it failed in a way that bills nothing, but at no more than its most; later at what is billed. Once is enough, and no more is
// harmless. Where it fails, as on a full disk, the request counts at its most until the pool, which tries again each second, has written it.
func (h *Hold) Done(ctx context.Context, cost route.Nano) error {
	h.end(false)
	h.mu.Lock()
	again := h.over
	h.over = true
	if measured := (route.Price{PerSlotSecond: h.lease.terms.price}).Pay(h.took, 0, 0); h.named && !h.free && cost.Cmp(measured) < 0 {
		cost = measured
	}
	if cost.Cmp(h.most) > 0 {
		cost = h.most
	}
	h.mu.Unlock()
	if again {
		return nil
	}
	h.lease.release()
	if err := h.p.done(context.WithoutCancel(ctx), h.id, cost); err != nil {
		return fmt.Errorf("pool: reservation %d counts at its most: %w", h.id, err)
	}
	return nil
}

// done has a reservation count at a cost, and remembers one that could not be written: of what was never sent no record says anything.
func (p *Pool) done(ctx context.Context, id int64, cost route.Nano) error {
	err := p.books.Done(ctx, id, cost)
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.undone[id] = cost
	}
	return err
}

// redo tries again what could not be written.
func (p *Pool) redo(ctx context.Context) {
	p.mu.Lock()
	undone := maps.Clone(p.undone)
	p.mu.Unlock()
	for id, cost := range undone {
		if p.books.Done(ctx, id, cost) == nil {
			p.mu.Lock()
			delete(p.undone, id)
			p.mu.Unlock()
		}
	}
}
