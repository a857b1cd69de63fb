package sdk

import (
	"cmp"
	"errors"
	"io"
	"math/big"
	"net/http"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common/lru"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Limits bound what strangers may cost a provider: memory, signatures to check,
// questions to the chain, and gas. A zero field is its default. What a renter
// pays with is not limited by where it comes from: a renter behind the same
// address as an attacker can still send its vouchers.
type Limits struct {
	// ClientIP says who a request is from, where ProviderConfig.TrustedProxies is
	// not enough: the address that the proxy itself saw and not one that a client
	// can claim. "" is nobody in particular. By TrustedProxies if nil.
	//
	// Clients are told apart by address, IPv6 ones by their /64. The addresses of
	// this host, and what is no address, stand for many clients and have only
	// the bounds that all share.
	ClientIP func(*http.Request) string

	Challenges limit.Rate // a client's requests without a credential or with a wrong one; 10 a second, 100 at once
	Deposits   limit.Rate // a client's opens and top-ups; one in 2 s, 20 at once

	// Opens and top-ups of all clients that are worked on at once, most of them
	// waiting for a block; 256. No client gets more than an eighth.
	Pending int
	// How many of these may wait for a renter's own transaction that the chain
	// does not know: it may never come. 32, an eighth for each client. Who finds
	// none free is told at once to come back when it is mined.
	Unmined int
	// Clients that are remembered, the latest; 10,000, in about 5 MB.
	Clients int

	// LostGas is how much native coin, in wei, deposits that we sent for renters
	// in the last hour may have cost us by reverting, those in flight included. A
	// deposit is simulated before it is sent, but a payer can move its tokens away
	// in between. Where the bound is met, renters must send their own deposits
	// until an hour has passed. It can be exceeded by one transaction for each
	// process on a database. 0.01 ether if nil.
	LostGas *big.Int

	// SponsoredGas is how much native coin, in wei, the transactions that we sent
	// for renters (opens, top-ups, closes, x402's deposits and refunds) may cost
	// in a day, and SponsoredGasPerPayer what those for the channels of one payer
	// may; those in flight count at the most that they may cost. Where a bound is
	// met, deposits must be sent by renters themselves, and parts of an x402
	// deposit are not given back. Closes and whole refunds count; the first for a
	// payer in a day is sent all the same, for others it leaves by itself or comes
	// back the next day. Each can be exceeded by one transaction for each process on a
	// database. A transaction that is stuck is sent again at a fee of at most twice
	// the first, and within what is left of both; one that holds up a settlement is
	// given up, for the gas of its nonce, and eight at most may be in flight. A
	// close that fetches MinTransfer is a settlement. 0.1 ether, and 0.01 ether, if
	// nil.
	SponsoredGas, SponsoredGasPerPayer *big.Int
	// ReservedSettlements is how many settlements of one channel, at twice the
	// present price of gas, the key's coin must pay for besides whatever is sent
	// for a renter. With less, nothing is sent for renters but what fetches at
	// least MinTransfer itself. 20 if zero; negative: none.
	ReservedSettlements int
}

func (l Limits) withDefaults() Limits {
	l.Challenges = cmp.Or(l.Challenges, limit.Rate{PerSecond: 10, Burst: 100})
	l.Deposits = cmp.Or(l.Deposits, limit.Rate{PerSecond: 0.5, Burst: 20})
	l.Pending = cmp.Or(l.Pending, 256)
	l.Unmined = cmp.Or(l.Unmined, 32)
	l.Clients = cmp.Or(l.Clients, 10_000)
	if l.ClientIP == nil {
		l.ClientIP = func(r *http.Request) string { return r.RemoteAddr }
	}
	if l.LostGas == nil {
		l.LostGas = big.NewInt(1e16)
	}
	if l.SponsoredGas == nil {
		l.SponsoredGas = big.NewInt(1e17)
	}
	if l.SponsoredGasPerPayer == nil {
		l.SponsoredGasPerPayer = big.NewInt(1e16)
	}
	l.ReservedSettlements = cmp.Or(l.ReservedSettlements, 20)
	return l
}

func (l Limits) check() error {
	if l.Pending < 0 || l.Unmined < 0 || l.Clients < 0 || l.Challenges.Burst < 0 || l.Deposits.Burst < 0 || l.LostGas.Sign() < 0 ||
		l.SponsoredGas.Sign() < 0 || l.SponsoredGasPerPayer.Sign() < 0 {
		return errors.New("provider: Limits: only a rate and ReservedSettlements may be negative: there is none then")
	}
	return nil
}

// guard holds the provider's clients to its Limits.
type guard struct {
	limits Limits

	mu      sync.Mutex
	clients lru.BasicLRU[string, *client]
	all     pending
}

// client is one address. Of its own bounds it has none if it stands for many.
type client struct {
	challenges *rate.Limiter
	deposits   *rate.Limiter
	pending    pending
}

// pending counts opens and top-ups that are worked on.
type pending struct{ deposits, unmined int }

func newGuard(limits Limits) *guard {
	return &guard{limits: limits, clients: lru.NewBasicLRU[string, *client](limits.Clients)}
}

// client finds who a request is from, or nil. The caller holds mu.
func (g *guard) client(r *http.Request) *client {
	name := limit.Client(g.limits.ClientIP(r))
	if name == "" {
		return nil
	}
	if c, ok := g.clients.Get(name); ok {
		return c
	}
	c := &client{challenges: g.limits.Challenges.Limiter(), deposits: g.limits.Deposits.Limiter()}
	g.clients.Add(name, c)
	return c
}

// challenge reports whether a client may have one more challenge.
func (g *guard) challenge(r *http.Request) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.client(r)
	return c == nil || c.challenges.Allow()
}

// admission is the leave to work on one open or top-up.
type admission struct {
	guard   *guard
	client  *client // nil: it stands for many
	unmined bool
}

// deposit admits one open or top-up, to be left when it is done.
func (g *guard) deposit(r *http.Request) (*admission, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.client(r)
	if c != nil && !c.deposits.Allow() {
		return nil, wire.TooMany.With("too many opens and top-ups from your address: send fewer, or wait")
	}
	if c != nil && c.pending.deposits >= share(g.limits.Pending) {
		return nil, wire.TooMany.With("%d opens and top-ups from your address are under way: wait for one of them", c.pending.deposits)
	}
	if g.all.deposits >= g.limits.Pending {
		return nil, wire.Unavailable.With("too many opens and top-ups are under way: send the same request again later")
	}
	a := &admission{guard: g, client: c}
	for _, p := range a.counts() {
		p.deposits++
	}
	return a, nil
}

// share is what one client gets of something that all share.
func share(of int) int { return max(of/8, 1) }

// await reports whether the request may wait for a transaction that the chain
// does not know.
func (a *admission) await() bool {
	a.guard.mu.Lock()
	defer a.guard.mu.Unlock()
	if a.unmined {
		return true
	}
	if a.guard.all.unmined >= a.guard.limits.Unmined || a.client != nil && a.client.pending.unmined >= share(a.guard.limits.Unmined) {
		return false
	}
	for _, p := range a.counts() {
		p.unmined++
	}
	a.unmined = true
	return true
}

// leave makes room for others.
func (a *admission) leave() {
	a.guard.mu.Lock()
	defer a.guard.mu.Unlock()
	for _, p := range a.counts() {
		p.deposits--
		if a.unmined {
			p.unmined--
		}
	}
}

// counts is where this admission counts.
func (a *admission) counts() []*pending {
	if a.client == nil {
		return []*pending{&a.guard.all}
	}
	return []*pending{&a.guard.all, &a.client.pending}
}

// maxBody bounds what is read of a body. The wire has none, but an HTTP server
// reads on to the end of what a client announced.
const maxBody = 64 << 10

// spare reads the body that nobody asked for.
func spare(w http.ResponseWriter, r *http.Request) error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	control := http.NewResponseController(w)
	// A ResponseWriter without deadlines leaves it to the server's own.
	_ = control.SetReadDeadline(time.Now().Add(serve.BodyTimeout))
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		w.Header().Set("Connection", "close")
		return wire.MalformedCredential.With("the body was not read: credentials go into the Authorization header")
	}
	_ = control.SetReadDeadline(time.Time{})
	return nil
}
