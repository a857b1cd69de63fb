package tower

import (
	"cmp"
	"fmt"
	"net/http"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/limit"
)

// Limits bound what strangers may cost a watchtower beside gas: signatures
// to check, rows on disk and questions to the chain. A zero field is its
// default. A payee's or payer's own rate counts only what was rightly signed and is
// new, of channels that there are, and of vouchers for each client that sends them:
// nobody uses up another's.
type Limits struct {
	// ClientIP is who a request is from, in place of TrustedProxies: see
	// sdk.Limits.ClientIP.
	ClientIP func(*http.Request) string

	Requests limit.Rate // of a client; 10 a second, 100 at once
	Vouchers limit.Rate // of a payee, from a client; 200 a second, 10,000 at once
	Channel  limit.Rate // of a channel, from a client: its vouchers; one a second, 10 at once
	Leaves   limit.Rate // of a payer: its close requests; one in 5 s, 10 at once
	Reads    limit.Rate // of the chain, by all; 50 a second, 200 at once
	Names    int        // clients, payees, channels and payers that are remembered, the latest; 50,000, in about 15 MB
}

func (l Limits) withDefaults() Limits {
	l.Requests = cmp.Or(l.Requests, limit.Rate{PerSecond: 10, Burst: 100})
	l.Vouchers = cmp.Or(l.Vouchers, limit.Rate{PerSecond: 200, Burst: 10_000})
	l.Channel = cmp.Or(l.Channel, limit.Rate{PerSecond: 1, Burst: 10})
	l.Leaves = cmp.Or(l.Leaves, limit.Rate{PerSecond: 0.2, Burst: 10})
	l.Reads = cmp.Or(l.Reads, limit.Rate{PerSecond: 50, Burst: 200})
	l.Names = cmp.Or(l.Names, 50_000)
	if l.ClientIP == nil {
		l.ClientIP = func(r *http.Request) string { return r.RemoteAddr }
	}
	return l
}

// guard holds a tower's clients to its limits.
type guard struct {
	limits Limits
	reads  *rate.Limiter
	names  *limit.Clients[*rate.Limiter]
}

func newGuard(limits Limits) *guard {
	return &guard{limits: limits, reads: limits.Reads.Limiter(), names: limit.NewClients[*rate.Limiter](limits.Names)}
}

func (g *guard) allow(name string, r limit.Rate) bool {
	return g.names.Get(name, r.Limiter).Allow()
}

// request admits a client's request. Who stands for many has no bound of its
// own.
func (g *guard) request(r *http.Request) bool {
	client := limit.Client(g.limits.ClientIP(r))
	return client == "" || g.allow("client "+client, g.limits.Requests)
}

// voucher admits one of a channel that there is, whose signature was checked. A payer can
// sign as many as it likes: those that it sends itself leave its payee's alone.
func (g *guard) voucher(client string, t channel.Terms) error {
	client = limit.Client(client)
	if !g.allow("channel "+t.ID().Hex()+" "+client, g.limits.Channel) {
		return fmt.Errorf("%w: too many vouchers of channel %s: send the newest, later", errBusy, t.ID())
	}
	if !g.allow("payee "+t.Payee.Hex()+" "+client, g.limits.Vouchers) {
		return fmt.Errorf("%w: too many vouchers for payee %s", errBusy, t.Payee)
	}
	return nil
}

// leave admits a close request whose signature was checked.
func (g *guard) leave(t channel.Terms) error {
	if !g.allow("payer "+t.Payer.Hex(), g.limits.Leaves) {
		return fmt.Errorf("%w: too many close requests of payer %s", errBusy, t.Payer)
	}
	return nil
}

// read admits one look at the chain.
func (g *guard) read() error {
	if !g.reads.Allow() {
		return fmt.Errorf("%w: too many channels are asked about", errBusy)
	}
	return nil
}

// mention keeps what repeats out of the log.
func (g *guard) mention(payee common.Address) bool {
	return g.allow("log "+payee.Hex(), limit.Rate{PerSecond: 1. / 60, Burst: 1})
}
