package sharing

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Request is a request that holds a slot. Whoever took it ends it, however it goes.
type Request struct {
	ID  uint64 // what its client calls it, or was given
	Ctx context.Context

	lease   *Lease
	cancel  context.CancelCauseFunc
	stopped time.Time   // when it was, first; guarded by the service's mu
	late    *time.Timer // stops it at the longest time that its offer names; nil: none is named
	once    sync.Once
}

// Unknown refuses a token that is no lease's here.
var Unknown = wire.Problem{Type: "about:blank", Title: "Unknown Token", Status: 401}

// Turn is a request that may be read, and has no slot yet. Whoever has it calls Leave, however it goes.
type Turn struct {
	lease *Lease
	once  sync.Once
}

// inLine is how many requests of a lease may be read or wait for a slot beside as many as may run.
const inLine = 16

// Admit lets in a request of the lease that has the token, before its body is read: within the lease's rate, and while no more of them
// wait than can have a slot soon.
func (s *Service) Admit(token string) (*Turn, error) {
	l := s.of(token)
	if l == nil {
		return nil, Unknown.With("no lease that runs here has this token")
	}
	if !l.rate.Allow() {
		return nil, wire.TooMany.With("this lease sends more than %v requests a second", s.config.Limits.Rate)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.waiting >= s.config.Limits.Concurrent+inLine {
		return nil, wire.TooMany.With("%d requests of this lease are read or wait for a slot, and no more may: ask again", l.waiting)
	}
	l.waiting++
	return &Turn{lease: l}, nil
}

// Lease is whose request it is.
func (t *Turn) Lease() common.Hash { return t.lease.id }

// Leave has it wait no more. It may be called more than once.
func (t *Turn) Leave() {
	t.once.Do(func() {
		t.lease.service.mu.Lock()
		defer t.lease.service.mu.Unlock()
		t.lease.waiting--
	})
}

// Take has a request take a slot. id is what its client calls it, once in a lease; zero: it is given one. It waits for a slot for
// Limits.Wait, which costs nothing, and leaves. Its refusals are problems: of a lease that has ended, a limit (429), what has to be paid
// first (402), and a service that does not work (503). ctx ends the request: its cause says why (context.Cause of Request.Ctx).
func (t *Turn) Take(ctx context.Context, id uint64) (*Request, error) {
	defer t.Leave()
	l, s := t.lease, t.lease.service
	if err := s.Fit(); err != nil {
		return nil, err
	}
	give, cancel := context.WithTimeout(ctx, s.config.Limits.Wait)
	defer cancel()
	for {
		if err := l.owner.Affords(give); err != nil {
			return nil, err
		}
		r, freed, err := l.take(ctx, id)
		if err == nil || freed == nil {
			return r, err
		}
		select {
		case <-freed:
		case <-give.Done():
			return nil, err
		}
	}
}

// Take has a request of a lease take a slot whose payment came with it, and no token: see Turn.Take.
func (l *Lease) Take(ctx context.Context) (*Request, error) {
	l.service.mu.Lock()
	l.waiting++
	l.service.mu.Unlock()
	return (&Turn{lease: l}).Take(ctx, 0)
}

// Vacant refuses a request that would find no slot, or no service, before anything is paid for it.
func (s *Service) Vacant() error {
	if err := s.Fit(); err != nil {
		return err
	}
	if s.meter.Busy() >= int(s.config.Share.Slots) {
		return wire.TooMany.With("all %d slots are taken: ask again", s.config.Share.Slots)
	}
	return nil
}

// of is the lease that has a token, nil if none has.
func (s *Service) of(token string) *Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[sha256.Sum256([]byte(token))]
}

// take takes a slot, if there is one. Where there is none it returns what is closed when one is given back. The lease's means are looked at
// while no other request of the service takes one.
func (l *Lease) take(ctx context.Context, id uint64) (*Request, <-chan struct{}, error) {
	s := l.service
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case l.closed:
		return nil, nil, Unknown.With("this lease has ended")
	case len(l.requests) >= s.config.Limits.Concurrent:
		return nil, s.freed, wire.TooMany.With("%d requests of this lease run, and no more may: ask again", len(l.requests))
	case !l.owner.Covers():
		return nil, s.freed, wire.TooMany.With("what this lease may owe is taken by its requests that run: ask again")
	}
	if id == 0 {
		next, err := s.meter.NextID(l.id)
		if errors.Is(err, slots.ErrID) {
			return nil, nil, wire.BadRequest.With("this lease has used the last number: rent another")
		} else if err != nil {
			return nil, nil, err
		}
		id = next
	}
	err := s.meter.Take(l.id, id, s.config.Clock.Now().Mono)
	switch {
	case errors.Is(err, slots.ErrBusy):
		return nil, s.freed, wire.TooMany.With("all %d slots are taken: ask again", s.config.Share.Slots)
	case errors.Is(err, slots.ErrID):
		return nil, nil, wire.BadRequest.With("request %d: %v: give each the next number", id, slots.ErrID)
	case err != nil:
		return nil, nil, err
	}
	r := &Request{ID: id, lease: l}
	r.Ctx, r.cancel = context.WithCancelCause(ctx)
	l.requests[id] = r
	if l.most > 0 {
		r.late = time.AfterFunc(l.most, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			r.stop(ErrTime)
		})
	}
	return r, nil, nil
}

// stop ends the request, for the first reason that there is. The caller holds the service's mu.
func (r *Request) stop(cause error) {
	if r.stopped.IsZero() {
		r.stopped = time.Now()
	}
	r.cancel(cause)
}

// Lease is whose request it is.
func (r *Request) Lease() common.Hash { return r.lease.id }

// Stopped is how a request is billed that was stopped here, and not by its client or its upstream: up to its credit, up to the longest time
// that its offer names, if begun says that it was being answered by then, or up to when its renter ended the lease. It costs nothing where
// the provider stops.
func (r *Request) Stopped(begun bool) metering.Outcome {
	switch cause := context.Cause(r.Ctx); {
	case errors.Is(cause, ErrCredit), errors.Is(cause, ErrTime) && begun:
		return metering.RequestLimit
	case errors.Is(cause, ErrReleased):
		return metering.RequestAborted
	}
	return metering.RequestFailed
}

// End gives the slot back, once. at is when the request's last byte was sent or when it was known to be over, which has passed.
func (r *Request) End(outcome metering.Outcome, at time.Time) {
	r.once.Do(func() {
		if r.late != nil {
			r.late.Stop()
		}
		l, s := r.lease, r.lease.service
		mono := s.config.Clock.Now().Mono - max(0, int64(time.Since(at)))
		s.mu.Lock()
		delete(l.requests, r.ID)
		if err := s.meter.Give(l.id, r.ID, mono, outcome); err != nil {
			s.config.Log.Error("a request is not billed", "lease", l.id, "request", r.ID, "error", err)
		}
		close(s.freed)
		s.freed = make(chan struct{})
		s.mu.Unlock()
		r.cancel(nil)
	})
}
