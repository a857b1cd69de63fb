// Package admit decides what clients of a provider may cost it: requests without a payment, opens and top-ups that are worked on
// at once, and the gas of transactions that are sent for renters.
package admit

import (
	"net/http"
	"sync"

	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Limits are what a Limiter holds clients to. All are set.
type Limits struct {
	ClientIP   func(*http.Request) string // who a request is from; "" is nobody in particular
	Challenges limit.Rate                 // a client's requests without a credential or with a wrong one
	Deposits   limit.Rate                 // a client's opens and top-ups
	Pending    int                        // opens and top-ups of all clients at once; a client gets an eighth
	Unmined    int                        // those of them that wait for a transaction that the chain does not know; likewise
	Clients    int                        // that are remembered, the latest
}

// Limiter holds a provider's clients to its Limits.
type Limiter struct {
	limits  Limits
	clients *limit.Clients[*client]

	mu  sync.Mutex // also of every client's pending
	all pending
}

// client is one address. Of its own bounds it has none if it stands for many.
type client struct {
	challenges *rate.Limiter
	deposits   *rate.Limiter
	pending    pending
}

// pending counts opens and top-ups that are worked on.
type pending struct{ deposits, unmined int }

// NewLimiter returns a Limiter that has seen nobody.
func NewLimiter(limits Limits) *Limiter {
	return &Limiter{limits: limits, clients: limit.NewClients[*client](limits.Clients)}
}

// client finds who a request is from, or nil.
func (l *Limiter) client(r *http.Request) *client {
	name := limit.Client(l.limits.ClientIP(r))
	if name == "" {
		return nil
	}
	return l.clients.Get(name, func() *client {
		return &client{challenges: l.limits.Challenges.Limiter(), deposits: l.limits.Deposits.Limiter()}
	})
}

// Challenge reports whether a client may have one more challenge.
func (l *Limiter) Challenge(r *http.Request) bool {
	c := l.client(r)
	return c == nil || c.challenges.Allow()
}

// Remembered is how many clients are remembered.
func (l *Limiter) Remembered() int { return l.clients.Len() }

// Held is how many Slots are held, and how many of them wait for a transaction that the chain does not know.
func (l *Limiter) Held() (deposits, unmined int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.deposits, l.all.unmined
}

// Slot is the leave to work on one open or top-up.
type Slot struct {
	limiter *Limiter
	client  *client // nil: it stands for many
	unmined bool
}

// Deposit admits one open or top-up. Its Slot is to be released when it is done.
func (l *Limiter) Deposit(r *http.Request) (*Slot, error) {
	c := l.client(r)
	l.mu.Lock()
	defer l.mu.Unlock()
	if c != nil && !c.deposits.Allow() {
		return nil, wire.TooMany.With("too many opens and top-ups from your address: send fewer, or wait")
	}
	if c != nil && c.pending.deposits >= share(l.limits.Pending) {
		return nil, wire.TooMany.With("%d opens and top-ups from your address are under way: wait for one of them", c.pending.deposits)
	}
	if l.all.deposits >= l.limits.Pending {
		return nil, wire.Unavailable.With("too many opens and top-ups are under way: send the same request again later")
	}
	s := &Slot{limiter: l, client: c}
	for _, p := range s.counts() {
		p.deposits++
	}
	return s, nil
}

// share is what one client gets of something that all share.
func share(of int) int { return max(of/8, 1) }

// Wait reports whether the request may wait for a transaction that the chain does not know.
func (s *Slot) Wait() bool {
	l := s.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.unmined {
		return true
	}
	if l.all.unmined >= l.limits.Unmined || s.client != nil && s.client.pending.unmined >= share(l.limits.Unmined) {
		return false
	}
	for _, p := range s.counts() {
		p.unmined++
	}
	s.unmined = true
	return true
}

// Release makes room for others.
func (s *Slot) Release() {
	s.limiter.mu.Lock()
	defer s.limiter.mu.Unlock()
	for _, p := range s.counts() {
		p.deposits--
		if s.unmined {
			p.unmined--
		}
	}
}

// counts is where this slot counts.
func (s *Slot) counts() []*pending {
	if s.client == nil {
		return []*pending{&s.limiter.all}
	}
	return []*pending{&s.limiter.all, &s.client.pending}
}
