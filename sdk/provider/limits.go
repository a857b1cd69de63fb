package provider

import (
	"cmp"
	"errors"
	"math/big"
	"net/http"

	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/limit"
)

// Limits bound what strangers may cost a provider: memory, signatures to check,
// questions to the chain, and gas. A zero field is its default. What a renter
// pays with is not limited by where it comes from: a renter behind the same
// address as an attacker can still send its vouchers.
type Limits struct {
	// ClientIP says who a request is from, where Config.HTTP.TrustedProxies is
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

// limiter is what holds the provider's clients to the limits.
func (l Limits) limiter() *admit.Limiter {
	return admit.NewLimiter(admit.Limits{ClientIP: l.ClientIP, Challenges: l.Challenges, Deposits: l.Deposits, Pending: l.Pending, Unmined: l.Unmined, Clients: l.Clients})
}

func (l Limits) gasBudget() admit.Budget {
	return admit.Budget{Lost: l.LostGas, Spent: l.SponsoredGas, PerPayer: l.SponsoredGasPerPayer, ReservedSettlements: l.ReservedSettlements}
}
